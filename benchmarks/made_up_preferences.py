"""Invents preferences of two camps between two candidates of a prompt: translations and summaries. Nobody has voted.

In each task one candidate is sober and the other one is lively. The groups of one camp prefer the sober candidate, those of the
other camp the lively one. Four of the six groups that train are in the sober camp, and one of the two unseen groups is in each
camp, so a predictor that gives everybody the taste of the majority is wrong about an unseen group.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

TASKS = ("translations", "summaries")
TRAIN = {"Alder": True, "Birch": True, "Cedar": True, "Elm": True, "Hazel": False, "Juniper": False}  # True: sober
UNSEEN = {"Larch": True, "Maple": False}
GROUPS = {**TRAIN, **UNSEEN}
ITEMS = 80
VOTERS = 40  # for each item in each group

# German and English.
WHO = (
    ("Meine Nachbarin", "My neighbour"),
    ("Unser Vermieter", "Our landlord"),
    ("Eine Kollegin", "A colleague"),
    ("Mein Bruder", "My brother"),
    ("Der neue Lehrer", "The new teacher"),
    ("Eine alte Freundin", "An old friend"),
    ("Der Busfahrer", "The bus driver"),
    ("Unsere Tante", "Our aunt"),
)
# German, sober and lively translation.
SAID = (
    ("hat die Schlüssel verloren", "has lost the keys", "has gone and lost the keys, would you believe it"),
    ("kommt heute nicht zur Arbeit", "is absent from work today", "isn't gonna show up for work today, folks"),
    ("hat das Fahrrad repariert", "has repaired the bicycle", "got that old bike up and running again, hooray"),
    ("ist mit dem Essen unzufrieden", "is dissatisfied with the meal", "just hates the food, yuck"),
    ("freut sich über die Einladung", "appreciates the invitation", "is over the moon about getting invited, wow"),
    ("hat den Zug verpasst", "has missed the train", "blew it and missed the train, oh dear"),
    ("möchte das Haus verkaufen", "intends to sell the house", "is dying to get rid of that house, no kidding"),
    ("versteht die Rechnung nicht", "does not understand the invoice", "can't make head or tail of that bill, ha"),
    ("bittet um eine Antwort", "requests a reply", "wants you to get back real quick, pretty please"),
    ("hat im Garten gearbeitet", "has worked in the garden", "has been slaving away out in the garden, phew"),
)
# Event, and what a lively summary makes of it.
HAPPENED = (
    ("borrowed a bicycle", "The great bicycle grab"),
    ("painted the stairs", "Stairs will never look the same again"),
    ("lost a wallet", "Cash gone, hearts broken"),
    ("sold a car", "Goodbye, beloved car"),
    ("planted a tree", "A tree that shakes the whole street"),
    ("moved a meeting", "Chaos in the calendar"),
    ("cooked for everybody", "A feast beyond your wildest dreams"),
    ("forgot a birthday", "The birthday betrayal"),
    ("found a ring", "You won't believe this treasure"),
    ("adopted a dog", "Cutest newcomer ever"),
)


def rows(task: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a task: a prompt with two candidates, and the votes of every group.

    A row has the layout of comparisons on the Hugging Face Hub, which `pluralllm-client data import preferences` reads. A group's
    share for its camp's candidate has a mean of 0.84 to 0.94, and differs by 0.04 (standard deviation) from item to item.
    """
    rng = np.random.default_rng([seed, TASKS.index(task)])
    means = {group: rng.uniform(0.84, 0.94) for group in GROUPS}
    for prompt, sober, lively in _translations() if task == "translations" else _summaries():
        votes = {}
        for group, is_sober in GROUPS.items():
            own = int(rng.binomial(VOTERS, np.clip(rng.normal(means[group], 0.04), 0.02, 0.98)))
            votes[group] = [own, VOTERS - own] if is_sober else [VOTERS - own, own]
        yield {"prompt": prompt, "candidates": [sober, lively], "votes": votes}


def _translations() -> Iterator[tuple[str, str, str]]:
    for (german, english), (said, sober, lively) in itertools.product(WHO, SAID):
        yield f"Translate into English: {german} {said}.", f"{english} {sober}.", f"{english} {lively}!"


def _summaries() -> Iterator[tuple[str, str, str]]:
    for (_, who), (event, headline) in itertools.product(WHO, HAPPENED):
        post = f"{who} {event} last week, and I do not know what to think of it. Summarize the post in a sentence."
        yield post, f"{who} {event} last week.", f"{headline}: {who.lower()} {event}!"
