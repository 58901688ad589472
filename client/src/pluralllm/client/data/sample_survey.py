"""An invented survey for demonstrations: invented groups answer English questions.

The survey is not about real people. Each group is a point in a space of five values, such as tradition. Each question depends
on some of these values. A group's answers to a question are spread around a position that follows from the group's values and a
seeded random shift.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.common.words.ids import GroupName
from pluralllm.common.words.questions import Question

# The five values: order and tradition, care for nature, free markets, openness to strangers, trust in technology. Each -1 .. 1.
VALUES = ("tradition", "nature", "market", "openness", "technology")

MOST_GROUPS = 64
MOST_QUESTIONS = 312  # every statement in every frame, and every choice
RESPONDENTS = 1_000  # invented people of each group; all of them have answered all questions of their group
USUAL_QUESTIONS = 240  # of a group; a fifth of them, withheld from training, is more than the 30 that a score needs

# Invented groups. If more are asked for, settlements follow; the values of each are drawn with its number as the seed.
GROUPS: Mapping[str, tuple[float, float, float, float, float]] = {
    "Harbourland": (-0.6, 0.3, 0.5, 0.8, 0.6),
    "Northmark": (-0.4, 0.8, -0.5, 0.5, 0.1),
    "Old Valley": (0.9, 0.1, -0.3, -0.7, -0.6),
    "Foundry": (0.2, -0.7, -0.6, -0.3, 0.3),
    "Goldcrest": (0.3, -0.5, 0.9, -0.1, 0.5),
    "Greenhill": (0.1, 0.9, -0.2, 0.2, -0.7),
    "Riverton": (-0.5, 0.0, 0.1, 0.6, 0.8),
    "Stonebridge": (0.7, 0.4, 0.3, -0.5, -0.2),
}

STATEMENTS: tuple[tuple[str, tuple[float, float, float, float, float]], ...] = (
    ("children should learn to respect their elders before anything else", (1.0, 0, 0, -0.2, 0)),
    ("the customs of our grandparents are a good guide for today", (1.0, 0.1, 0, -0.2, -0.2)),
    ("religious holidays should shape the public calendar", (0.9, 0, 0, -0.1, 0)),
    ("a family works best when roles are clear", (0.9, 0, 0.1, -0.2, 0)),
    ("strong leaders matter more than long debates", (0.7, 0, 0.1, -0.4, 0)),
    ("people should be free to live as they like, whatever others think", (-0.9, 0, 0.1, 0.4, 0.1)),
    ("schools should teach pupils to question authority", (-0.9, 0, 0, 0.3, 0.1)),
    ("forests should be protected even if jobs are lost", (0, 1.0, -0.4, 0, 0)),
    ("petrol should cost more so that people drive less", (-0.1, 0.9, -0.3, 0, 0)),
    ("climate change is the greatest danger of our time", (-0.2, 0.9, -0.2, 0.2, 0)),
    ("farmers should be paid for leaving land to wild animals", (0, 0.9, -0.1, 0, 0)),
    ("plastic packaging should be forbidden", (0, 0.9, -0.3, 0, 0)),
    ("new mines should open if they bring work", (0.1, -0.9, 0.3, 0, 0.2)),
    ("economic growth comes before the environment", (0.1, -1.0, 0.4, 0, 0.1)),
    ("taxes on high incomes should be lower", (0, -0.1, 1.0, 0, 0)),
    ("companies know better than governments what people need", (0, -0.1, 0.9, 0, 0.2)),
    ("hospitals should compete for patients", (0, 0, 0.9, 0, 0.1)),
    ("the state should own railways and power stations", (0, 0.2, -0.9, 0, 0)),
    ("a minimum wage should protect every worker", (0, 0.1, -0.8, 0.1, 0)),
    ("rents should be limited by law", (0, 0.1, -0.8, 0, 0)),
    ("people who work harder deserve much more than others", (0.2, 0, 0.8, 0, 0)),
    ("refugees should be welcome in our towns", (-0.2, 0.1, -0.1, 1.0, 0)),
    ("immigrants make our culture richer", (-0.3, 0, 0, 1.0, 0)),
    ("foreign doctors and nurses should find it easy to work here", (-0.1, 0, 0.1, 0.8, 0.1)),
    ("borders should be guarded more strictly", (0.3, 0, 0.1, -0.9, 0)),
    ("our country should put its own people first", (0.4, 0, 0, -0.9, 0)),
    ("trade with other countries makes everybody better off", (-0.1, -0.1, 0.5, 0.6, 0.1)),
    ("artificial intelligence will do more good than harm", (-0.1, 0, 0.1, 0.1, 1.0)),
    ("robots should take over dangerous work", (-0.1, 0, 0, 0, 0.9)),
    ("nuclear power should be used more", (0, -0.3, 0.2, 0, 0.8)),
    ("genetically changed crops are safe to eat", (-0.1, -0.4, 0.2, 0, 0.8)),
    ("doctors should rely on computers for their diagnoses", (-0.1, 0, 0, 0, 0.9)),
    ("children spend too much time with screens", (0.4, 0.2, 0, 0, -0.8)),
    ("cash should never be abolished", (0.4, 0, 0, -0.1, -0.8)),
    ("social media do more harm than good", (0.3, 0.1, -0.1, 0, -0.7)),
    ("self-driving cars should be allowed everywhere", (-0.1, 0, 0.1, 0, 1.0)),
    ("a wedding should follow the customs of both families", (0.9, 0, 0, -0.1, -0.1)),
    ("grandparents should have a say in how children are raised", (0.9, 0, 0, -0.2, 0)),
    ("boys and girls should be brought up in the same way", (-0.9, 0, 0, 0.2, 0.1)),
    ("marriage is out of date", (-1.0, 0, 0, 0.1, 0.1)),
    ("soldiers deserve more honour than they get", (0.7, -0.1, 0.1, -0.4, 0)),
    ("a good citizen obeys a law even if it is a bad law", (0.8, 0, 0, -0.1, 0)),
    ("artists should be free to mock what others hold sacred", (-0.8, 0, 0.1, 0.3, 0)),
    ("everybody should eat less meat", (-0.2, 0.9, -0.1, 0.1, 0)),
    ("rivers should be freed from their dams", (0, 0.9, -0.2, 0, -0.2)),
    ("cities should have fewer cars and more trees", (-0.1, 0.9, -0.2, 0.1, 0)),
    ("short flights should be forbidden where a train goes", (-0.1, 0.9, -0.4, 0, 0)),
    ("hunting should be allowed only to protect crops", (-0.2, 0.8, 0, 0, 0)),
    ("coal should be burnt as long as it is cheap", (0.1, -1.0, 0.3, 0, 0)),
    ("a new airport is worth a lost wetland", (0, -0.9, 0.4, 0, 0.2)),
    ("water and electricity should be sold by private companies", (0, -0.1, 1.0, 0, 0.1)),
    ("shops should be open on every day of the week", (-0.3, 0, 0.8, 0, 0.1)),
    ("rich people should pay a tax on what they own", (0, 0.1, -0.9, 0, 0)),
    ("trade unions should have more power", (0, 0.1, -0.9, 0, 0)),
    ("university should be free for everybody", (-0.1, 0.1, -0.8, 0.1, 0)),
    ("competition makes people better", (0.1, -0.1, 0.9, 0, 0.1)),
    ("an unemployed person should take any job that is offered", (0.3, -0.1, 0.8, -0.1, 0)),
    ("newcomers should get the right to vote after a few years", (-0.2, 0, -0.1, 1.0, 0)),
    ("schools should teach in the languages of all their pupils", (-0.2, 0, -0.1, 0.9, 0)),
    ("every young person should live abroad for a year", (-0.2, 0, 0, 0.8, 0.1)),
    ("we have too many foreign films and songs", (0.4, 0, 0, -0.9, -0.1)),
    ("our soldiers should stay out of the conflicts of others", (0.1, 0, -0.1, -0.7, 0)),
    ("help for poor countries should be cut", (0.1, -0.1, 0.2, -0.9, 0)),
    ("neighbouring countries should share one currency", (-0.2, 0, 0.2, 0.8, 0.1)),
    ("people should travel to other planets", (-0.1, -0.1, 0.1, 0.1, 0.9)),
    ("computers should help judges to decide", (-0.1, 0, 0.1, 0, 0.9)),
    ("elections should be held over the internet", (-0.2, 0, 0, 0.1, 0.9)),
    ("every pupil should learn to program", (-0.1, 0, 0.1, 0.1, 0.8)),
    ("vaccines are among the best things that science has given us", (-0.2, 0, 0, 0.1, 0.8)),
    ("a letter on paper is better than a message on a screen", (0.5, 0.1, 0, 0, -0.8)),
    ("machines take more jobs than they make", (0.2, 0.1, -0.3, -0.1, -0.8)),
    ("telephones should be forbidden at school", (0.4, 0.1, 0, 0, -0.7)),
)

# A frame for a statement, its options from one end of the scale to the other, and whether the last option is off the scale.
FRAMES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    (
        "How much do you agree or disagree: {s}?",
        ("Strongly disagree", "Disagree", "Neither agree nor disagree", "Agree", "Strongly agree"),
        False,
    ),
    (
        "Some people say that {s}. Is this close to your own view?",
        ("Not at all", "A little", "Mostly", "Completely", "Don't know"),
        True,
    ),
    (
        "Thinking about your country: would it be good or bad if more people believed that {s}?",
        ("Bad", "Neither", "Good"),
        False,
    ),
    (
        "Would you vote for somebody who says that {s}?",
        ("Certainly not", "Probably not", "Probably", "Certainly", "Don't know"),
        True,
    ),
)

CHOICES: tuple[tuple[str, tuple[float, float, float, float, float]], ...] = (
    ("Keeping traditions alive", (1.2, 0, 0, -0.3, -0.2)),
    ("Protecting nature", (0, 1.4, -0.3, 0, 0)),
    ("Lower taxes", (0, -0.1, 1.4, 0, 0)),
    ("Fair wages", (0, 0.1, -1.2, 0.1, 0)),
    ("Welcoming newcomers", (-0.2, 0, 0, 1.4, 0)),
    ("Secure borders", (0.3, 0, 0, -1.3, 0)),
    ("New technology", (-0.1, 0, 0.2, 0.1, 1.3)),
    ("More personal freedom", (-1.2, 0, 0.2, 0.2, 0.1)),
)
CHOICE_FRAME = "Which of these should be the first concern of the {who}?"
DECIDERS = ("government", "local council", "parliament", "next generation", "schools", "newspapers")

SPREAD = 0.32  # standard deviation of the answers around a group's position, on the scale 0 .. 1
DISTURBANCE = 0.07  # standard deviation of the random shift of a group's position in a question
DONT_KNOW = 0.08  # mean share of the option "Don't know"


@dataclass(frozen=True, slots=True)
class _Item:
    """One question of the invented survey, before any group has answered the question."""

    text: str
    options: tuple[str, ...]
    loadings: NDArray[np.float64]  # (values,) for a scale, (options, values) for a choice
    off_scale: bool

    @property
    def is_choice(self) -> bool:
        return self.loadings.ndim == 2


def sample_groups(count: int, questions_per_group: int, seed: int) -> dict[GroupName, tuple[Question, ...]]:
    """Returns the answers of the first `count` groups (2 .. 64). Each group answers its own random selection of the questions.

    Raises ValueError if the survey does not have that many groups or questions.
    """
    if not 2 <= count <= MOST_GROUPS:
        raise ValueError(f"2 to {MOST_GROUPS} groups, not {count}")
    items = _items()
    if not 2 <= questions_per_group <= MOST_QUESTIONS:
        raise ValueError(f"2 to {MOST_QUESTIONS} questions for each group, not {questions_per_group}")
    surveys = {}
    for name, values in itertools.islice(itertools.chain(GROUPS.items(), _settlements()), count):
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]))
        chosen = sorted(rng.permutation(len(items))[:questions_per_group].tolist())
        surveys[GroupName(name)] = tuple(_answer(items[index], np.array(values), rng) for index in chosen)
    return surveys


def with_counts(question: Question, respondents: int) -> CountedQuestion:
    """Returns a question with whole counts that sum to `respondents`, each less than 1 from its share of them."""
    exact = [share * respondents for share in question.shares]
    counts = [math.floor(number) for number in exact]
    by_rest = sorted(range(len(exact)), key=lambda option: counts[option] - exact[option])
    for option in by_rest[: respondents - sum(counts)]:
        counts[option] += 1
    shares = tuple(count / respondents for count in counts)
    numbers = tuple(float(count) for count in counts)
    return CountedQuestion(
        question.text, question.options, shares, question.scale, counts=numbers, respondents=respondents
    )


def _settlements() -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yields invented groups without end: each group's name, and its position on each of the five values, shape (values,)."""
    for number in itertools.count(len(GROUPS) + 1):
        yield f"Settlement {number}", np.random.default_rng(number).uniform(-1, 1, len(VALUES))


def _items() -> list[_Item]:
    """Returns all questions of the survey: first the questions about a statement, then the questions about a first concern.

    Every statement is put into every frame. A frame is the wording of a question with a gap for a statement, and the question's
    options.
    """
    items = []
    for (frame, options, off_scale), (statement, loadings) in itertools.product(FRAMES, STATEMENTS):
        items.append(_Item(frame.format(s=statement), options, np.array(loadings), off_scale))
    for who, start in itertools.product(DECIDERS, range(0, len(CHOICES), 2)):
        listed = [CHOICES[(start + step) % len(CHOICES)] for step in range(4)]
        by_option = np.array([loading for _, loading in listed])
        items.append(_Item(CHOICE_FRAME.format(who=who), tuple(text for text, _ in listed), by_option, off_scale=False))
    return items


def _answer(item: _Item, values: NDArray[np.float64], rng: np.random.Generator) -> Question:
    """Returns the item's question with a group's answers: one share (a number from 0 to 1) for each option.

    values: the group's position on each of the five values, shape (values,). rng: random numbers for the shift of the answers.
    """
    if item.is_choice:
        appeal = item.loadings @ values + rng.normal(0, 3 * DISTURBANCE, len(item.options))
        shares = np.exp(1.4 * appeal)
        return Question(item.text, item.options, _normalized(shares))
    steps = len(item.options) - item.off_scale
    leaning = float(item.loadings @ values)  # about -1.5 .. 1.5
    middle = 1 / (1 + math.exp(-2.2 * leaning)) + rng.normal(0, DISTURBANCE)
    positions = np.linspace(0, 1, steps)
    shares = np.exp(-((positions - middle) ** 2) / (2 * SPREAD**2))
    scale: Sequence[float | None] = [float(step) for step in range(steps)]
    if item.off_scale:
        unsure = DONT_KNOW * (1 + rng.uniform(-0.5, 0.5))
        shares = np.append(shares / shares.sum() * (1 - unsure), unsure)
        scale = [*scale, None]
    return Question(item.text, item.options, _normalized(shares), tuple(scale))


def _normalized(shares: NDArray[np.float64]) -> tuple[float, ...]:
    """Returns the shares scaled to the sum 1. shares: one share for each option, shape (options,)."""
    exact = shares / shares.sum()
    return tuple(float(share) for share in exact)
