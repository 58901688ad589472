"""The table of public layouts of preferences: each is a small function from a row to its ballots.

The names of the columns are those of the data set's card, or of programs that read the data set where the card was not at hand;
the tests say which. A choice of two candidates is a vote, a tie half a vote for each.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pluralllm.client.data.preferences.ballots import (
    Ballot,
    at,
    before_last,
    index,
    listed,
    needed,
    number,
    one_vote,
    text_of,
    top_of,
)

Row = Mapping[str, Any]
Read = Callable[[Row], Iterable[Ballot]]
TURN = re.compile(r"\n\n(?=(?:Human|Assistant):)")
SPEAKER = re.compile(r"^\s*(?:Human|Assistant):\s*")
END_OF_TEXT = "<|end_of_text|>"


@dataclass(frozen=True, slots=True)
class Layout:
    """A public layout."""

    card: str  # owner/name of a data set of this layout
    columns: frozenset[str]  # a file with these columns has this layout
    read: Read
    asks_direction: bool = False  # whether releases of the data set differ in whether a lower score is better


def _transcripts(row: Row) -> Iterable[Ballot]:
    """Reads two transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ..."). The turns that both begin with are the prompt."""
    chosen, rejected = (TURN.split(str(needed(row, name)).strip()) for name in ("chosen", "rejected"))
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    prompt = "\n".join(SPEAKER.sub("", turn).strip() for turn in chosen[:same])
    answers = tuple("\n".join(SPEAKER.sub("", turn).strip() for turn in turns[same:]) for turns in (chosen, rejected))
    yield Ballot(prompt, answers, (1.0, 0.0))


def _summaries(row: Row) -> Iterable[Ballot]:
    texts = tuple(text_of(summary) for summary in listed(row, "summaries"))
    prompt = text_of(at(row, "info.post") or at(row, "info.article"))
    yield Ballot(prompt, texts, one_vote(index(row, "choice", len(texts)), len(texts)))


def _ultrafeedback(row: Row) -> Iterable[Ballot]:
    """Reads each completion's overall score, or the mean of the ratings of its aspects in files that have no overall score."""
    completions = listed(row, "completions")
    is_overall = any("overall_score" in one for one in completions)
    scores = tuple(number(one, "overall_score") if is_overall else _mean_rating(one) for one in completions)
    yield Ballot(
        text_of(row.get("instruction")), tuple(text_of(one["response"]) for one in completions), scores, "scores"
    )


def _mean_rating(completion: Row) -> float:
    """Returns the mean of the ratings of a completion. Raises ValueError if no aspect has a rating."""
    aspects = [aspect for aspect in (at(completion, "annotations") or {}).values() if isinstance(aspect, Mapping)]
    ratings = [number(aspect, "Rating") for aspect in aspects if aspect.get("Rating") not in (None, "", "N/A")]
    if not ratings:
        raise ValueError("no overall_score, and no annotations with a Rating")
    return math.fsum(ratings) / len(ratings)


def _binarized(row: Row) -> Iterable[Ballot]:
    """Reads a pair of which the better score was chosen; equal scores are a tie, because the choice was arbitrary."""
    chosen, rejected = needed(row, "chosen"), needed(row, "rejected")
    tie = number(row, "score_chosen") == number(row, "score_rejected")
    prompt = text_of(row.get("prompt")) or before_last(chosen)
    yield Ballot(prompt, (text_of(chosen), text_of(rejected)), one_vote(None if tie else 0, 2))


def _strength(row: Row, prompt: str, first: str, second: str, strength: str) -> Iterable[Ballot]:
    """Reads a pair with a strength: below 0 the first answer is better, above 0 the second; 0 is a tie."""
    value, messages = number(row, strength), needed(row, prompt)
    asked = "\n".join(map(text_of, messages)) if isinstance(messages, list | tuple) else text_of(messages)
    vote = one_vote(None if value == 0 else int(value > 0), 2)
    yield Ballot(asked, (text_of(row.get(first)), text_of(row.get(second))), vote)


def _one_score(row: Row, prompt: str, candidate: str, score: str) -> Iterable[Ballot]:
    """Reads the score of one candidate; the rows of a prompt belong together."""
    answer, pair = text_of(needed(row, candidate)), {"lp": text_of(row.get("lp"))}  # languages of a translation
    yield Ballot(text_of(needed(row, prompt)), (answer,), (number(row, score),), "scores", facts=pair)


def _two_scores(row: Row, prompt: str, candidates: tuple[str, str], scores: tuple[str, str]) -> Iterable[Ballot]:
    """Reads a pair whose preference is written as two numbers, of which the larger one wins; equal numbers are a tie."""
    first, second = (number(row, score) for score in scores)
    answers = tuple(text_of(row.get(candidate)) for candidate in candidates)
    yield Ballot(text_of(needed(row, prompt)), answers, one_vote(None if first == second else int(first < second), 2))


def _chosen_index(
    row: Row, prompt: str, candidates: tuple[str, ...], chosen: str, first_if: int = 0
) -> Iterable[Ballot]:
    """Reads candidates in columns of their own, and the number of the chosen one; the first one has the number `first_if`."""
    place = index(row, chosen, len(candidates))
    vote = one_vote(place if first_if == 0 else 1 - place, len(candidates))
    yield Ballot(text_of(needed(row, prompt)), tuple(text_of(row.get(name)) for name in candidates), vote)


def _lettered(row: Row, prompt: str, stem: str, letters: str, chosen: str) -> Iterable[Ballot]:
    """Reads candidates in columns that end in a letter, and the letter of the chosen one; empty candidates are left out."""
    shown = {letter: text_of(row.get(stem + letter)).replace(END_OF_TEXT, "").strip() for letter in letters}
    shown = {letter: text for letter, text in shown.items() if text}
    answer = text_of(needed(row, chosen))
    if answer[-1:] not in shown:
        raise ValueError(f"{chosen} {answer!r} names none of the candidates {', '.join(shown)}")
    vote = one_vote(list(shown).index(answer[-1:]), len(shown))
    yield Ballot(text_of(needed(row, prompt)), tuple(shown.values()), vote)


def _arena(row: Row) -> Iterable[Ballot]:
    """Reads two conversations and the winner: model_a, model_b, or a text that begins with tie (also that both are bad)."""
    first, second, winner = listed(row, "conversation_a"), listed(row, "conversation_b"), text_of(row.get("winner"))
    if winner not in {"model_a", "model_b"} and not winner.startswith("tie") and winner != "both_bad":
        raise ValueError(f"winner {winner!r}; expected model_a, model_b, tie or tie (bothbad)")
    vote = one_vote({"model_a": 0, "model_b": 1}.get(winner), 2)
    if row.get("turn") is not None:  # the turns after it were not judged
        turn = number(row, "turn")
        if turn < 1 or turn != int(turn):
            raise ValueError(f"turn {turn:g}; the first turn is 1")
        first, second = first[: 2 * int(turn)], second[: 2 * int(turn)]
    prompt = before_last(first[:2])  # later turns answer different texts
    if len(first) == len(second) == 2:
        yield Ballot(prompt, (text_of(first), text_of(second)), vote)
        return
    yield Ballot(prompt, tuple("\n".join(map(text_of, talk[1:])) for talk in (first, second)), vote)


def _arena_columns(row: Row) -> Iterable[Ballot]:
    """Reads a battle whose prompt and responses are JSON lists of turns, and whose winner is one of three columns."""
    won = [number(row, name) for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    if sorted(won) != [0, 0, 1]:
        raise ValueError(f"winner_model_a, winner_model_b and winner_tie are {won}; one must be 1, the others 0")
    turns = ["\n".join(map(text_of, listed(row, name))) for name in ("prompt", "response_a", "response_b")]
    yield Ballot(turns[0], (turns[1], turns[2]), one_vote({0: 0, 1: 1}.get(won.index(1)), 2))


def _prism(row: Row) -> Iterable[Ballot]:
    """Reads the turns of a conversation: each message of the user, and the model's answers to it with the user's scores."""
    prompt, answers = "", dict[str, float]()
    for message in [*listed(row, "conversation_history"), {"role": "user", "content": ""}]:
        if message.get("role") == "user":
            if prompt and len(answers) > 1:
                yield Ballot(prompt, tuple(answers), tuple(answers.values()), "scores")
            prompt, answers = text_of(message), {}
        elif text_of(message) and message.get("score") is not None:
            answers[text_of(message)] = number(message, "score")


def _collective(row: Row, block: str) -> Iterable[Ballot]:
    """Reads the ranking of each assessor ("A>B=C"): the first place has the vote; the assessor's facts go with it."""
    prompt = "\n".join(map(text_of, listed(row, "prompt.messages")))
    texts = {str(one["response_index"]): text_of(one.get("messages")) for one in listed(row, "responses")}
    for assessment in listed(row, "metadata.assessments"):
        for ranked in (at(assessment, f"ranking_blocks.{block}") or [])[:1]:
            first = re.sub(r"\s", "", text_of(ranked["ranking"])).split(">")[0].split("=")
            if unknown := sorted(set(first) - set(texts)):
                raise ValueError(f"ranking names {', '.join(unknown)}, which is none of {', '.join(texts)}")
            vote = tuple((name in first) / len(first) for name in texts)
            yield Ballot(prompt, tuple(texts.values()), vote, facts=assessment)


def _best_of_n(row: Row) -> Iterable[Ballot]:
    name = next((name for name in ("candidates", "completions", "responses") if row.get(name)), "candidates")
    texts = tuple(text_of(one) for one in listed(row, name))
    yield Ballot(text_of(needed(row, "prompt")), texts, one_vote(index(row, "best", len(texts)), len(texts)))


def _rankings(row: Row) -> Iterable[Ballot]:
    """Reads the rank of each candidate (1 is the best; equal ranks share), one ranking for each row."""
    texts, ranks = tuple(text_of(one) for one in listed(row, "candidates")), listed(row, "ranks")
    if len(ranks) != len(texts) or not all(isinstance(rank, int | float) for rank in ranks):
        raise ValueError(f"ranks {ranks} for {len(texts)} candidates; give the rank of each, 1 for the best")
    yield Ballot(text_of(needed(row, "prompt")), texts, top_of(ranks))


def _subpop(row: Row) -> Iterable[Ballot]:
    """Reads the answers of a subpopulation to a survey question, as shares; options beyond the shares are refusals."""
    options, shares = listed(row, "options"), listed(row, "responses")
    texts = tuple(text_of(option) for option in options[: len(shares)])
    group = f"{text_of(row.get('attribute'))}={text_of(row.get('group'))}"
    numbers = tuple(map(float, shares))
    yield Ballot(text_of(needed(row, "question")), texts, numbers, "shares", facts={"group": group})


def _nectar(row: Row) -> Iterable[Ballot]:
    answers = listed(row, "answers")
    ranks = [number(answer, "rank") for answer in answers]
    prompt = SPEAKER.sub("", text_of(needed(row, "prompt"))).removesuffix("Assistant:").strip()
    yield Ballot(prompt, tuple(text_of(answer["answer"]) for answer in answers), top_of(ranks))


def _stack_exchange(row: Row) -> Iterable[Ballot]:
    answers = listed(row, "answers")
    scores = tuple(number(answer, "pm_score") for answer in answers)
    yield Ballot(text_of(needed(row, "question")), tuple(map(text_of, answers)), scores, "scores")


def _of(card: str, columns: str, read: Read, *, asks_direction: bool = False) -> Layout:
    return Layout(card, frozenset(columns.split()), read, asks_direction)


_pku = partial(_chosen_index, prompt="prompt", candidates=("response_0", "response_1"))
_mt = partial(_one_score, prompt="src", candidate="mt", score="score")
# A layout with more columns stands before one with fewer: the first that fits names the file.
LAYOUTS: dict[str, Layout] = {
    "hh-rlhf": _of("Anthropic/hh-rlhf", "chosen rejected", _transcripts),
    "summarize-from-feedback": _of("openai/summarize_from_feedback", "info summaries choice", _summaries),
    "ultrafeedback": _of("openbmb/UltraFeedback", "instruction completions", _ultrafeedback),
    "ultrafeedback-binarized": _of(
        "HuggingFaceH4/ultrafeedback_binarized", "chosen rejected score_chosen score_rejected", _binarized
    ),
    "helpsteer2": _of(
        "nvidia/HelpSteer2",
        "prompt response helpfulness",
        partial(_one_score, prompt="prompt", candidate="response", score="helpfulness"),
    ),
    "helpsteer2-preference": _of(
        "nvidia/HelpSteer2",
        "prompt response_1 response_2 preference_strength",
        partial(_strength, prompt="prompt", first="response_1", second="response_2", strength="preference_strength"),
    ),
    "helpsteer3": _of(
        "nvidia/HelpSteer3",
        "context response1 response2 overall_preference",
        partial(_strength, prompt="context", first="response1", second="response2", strength="overall_preference"),
    ),
    "shp": _of(
        "stanfordnlp/SHP",
        "history human_ref_A human_ref_B labels",
        partial(
            _chosen_index, prompt="history", candidates=("human_ref_A", "human_ref_B"), chosen="labels", first_if=1
        ),
    ),
    "arena": _of("lmsys/chatbot_arena_conversations", "conversation_a conversation_b winner judge turn", _arena),
    "mt-bench": _of("lmsys/mt_bench_human_judgments", "conversation_a conversation_b winner judge turn", _arena),
    "arena-55k": _of(
        "lmsys/lmsys-arena-human-preference-55k",
        "prompt response_a response_b winner_model_a winner_model_b winner_tie",
        _arena_columns,
    ),
    "prism": _of("HannahRoseKirk/prism-alignment", "conversation_id user_id conversation_history", _prism),
    "community-alignment": _of(
        "facebook/community-alignment-dataset",
        "first_turn_prompt first_turn_response_a first_turn_preferred_response",
        partial(
            _lettered,
            prompt="first_turn_prompt",
            stem="first_turn_response_",
            letters="abcd",
            chosen="first_turn_preferred_response",
        ),
    ),
    "collective-alignment": _of(
        "openai/collective-alignment-1", "prompt responses metadata", partial(_collective, block="personal")
    ),
    "collective-alignment-world": _of(
        "openai/collective-alignment-1", "prompt responses metadata", partial(_collective, block="world")
    ),
    "best-of-n": _of("a candidate list with the number of the best", "prompt best", _best_of_n),
    "rankings": _of("a candidate list with the rank of each", "prompt candidates ranks", _rankings),
    "subpop": _of("jjssuh/subpop", "question options responses attribute group", _subpop),
    "wmt-da": _of("RicardoRei/wmt-da-human-evaluation", "lp src mt ref score raw", _mt),
    "wmt-mqm": _of("RicardoRei/wmt-mqm-human-evaluation", "lp src mt ref score system", _mt, asks_direction=True),
    "nectar": _of("berkeley-nest/Nectar", "prompt answers num_responses", _nectar),
    "pku-saferlhf": _of(
        "PKU-Alignment/PKU-SafeRLHF",
        "prompt response_0 response_1 better_response_id",
        partial(_pku, chosen="better_response_id"),
    ),
    "pku-saferlhf-safer": _of(
        "PKU-Alignment/PKU-SafeRLHF",
        "prompt response_0 response_1 safer_response_id",
        partial(_pku, chosen="safer_response_id"),
    ),
    "webgpt": _of(
        "openai/webgpt_comparisons",
        "question answer_0 answer_1 score_0 score_1",
        partial(
            _two_scores,
            prompt="question.full_text",
            candidates=("answer_0", "answer_1"),
            scores=("score_0", "score_1"),
        ),
    ),
    "stack-exchange": _of("HuggingFaceH4/stack-exchange-preferences", "qid question answers", _stack_exchange),
    "preference-collection": _of(
        "prometheus-eval/Preference-Collection",
        "orig_instruction orig_response_A orig_response_B orig_preference",
        partial(_lettered, prompt="orig_instruction", stem="orig_response_", letters="AB", chosen="orig_preference"),
    ),
}


def recognised(row: Row) -> tuple[str, ...]:
    """Returns the names of the layouts whose columns a row has: those that ask for the most columns.

    A row of chosen and rejected is HH-RLHF only if both are transcripts; otherwise it may be of our own layout.
    """
    fitting = [name for name, layout in LAYOUTS.items() if layout.columns <= row.keys() and _may_be(name, row)]
    most = max((len(LAYOUTS[name].columns) for name in fitting), default=0)
    return tuple(name for name in fitting if len(LAYOUTS[name].columns) == most)


def _may_be(name: str, row: Row) -> bool:
    if name != "hh-rlhf":
        return True
    return all(
        isinstance(row[key], str) and "Human:" in row[key] and "Assistant:" in row[key]
        for key in ("chosen", "rejected")
    )
