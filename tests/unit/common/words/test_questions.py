"""The position of an option among the options of its question, and the name of a question in all groups."""

import unicodedata
from dataclasses import replace

import pytest

from pluralllm.common.rewards.rollout_batch import Candidates
from pluralllm.common.words.questions import HoldOut, Question, spelled_alike


@pytest.mark.parametrize(
    ("options", "is_ordered", "positions"),
    [
        (("a",), True, (0.0,)),
        (("a", "b"), True, (0.0, 1.0)),
        (("a", "b", "c", "d", "e"), True, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (("a", "b", "c"), False, (0.0, 0.0, 0.0)),
    ],
)
def test_positions_go_from_0_to_1_and_options_without_an_order_have_equal_ones(
    options: tuple[str, ...], is_ordered: bool, positions: tuple[float, ...]
) -> None:
    question = Question("q", options, (1 / len(options),) * len(options), is_ordered=is_ordered)
    assert question.positions == positions


def test_candidates_of_a_reward_run_have_no_order() -> None:
    assert Candidates("prompt", ("one", "two")).to_question().positions == (0.0, 0.0)


TEA = Question("Is tea “good” - for José’s café?", ("Yes", "No", "I don’t know"), (0.5, 0.3, 0.2))


@pytest.mark.parametrize(
    "other",
    [
        replace(TEA, options=("No", "I don’t know", "Yes")),
        replace(TEA, text=unicodedata.normalize("NFD", TEA.text)),
        replace(TEA, text=TEA.text.upper()),
        replace(TEA, text=" Is tea\u00a0 “good”\n- for José’s café? "),
        replace(TEA, text='Is tea "good" – for José\'s\u200b café?'),
        replace(TEA, options=("yes", "NO ", "I don't know")),
        replace(TEA, text="ＩＳ tea “good” - for José’s café?"),  # fullwidth letters
        replace(TEA, shares=(0.1, 0.1, 0.8), weight=3.0, is_ordered=False, scale=(1.0, 2.0, None)),
    ],
)
def test_a_question_has_one_key_in_any_order_and_spelling(other: Question) -> None:
    assert other.key == TEA.key
    assert all(HoldOut(share).includes(other) == HoldOut(share).includes(TEA) for share in (0.01, 0.3, 0.6, 0.99))


@pytest.mark.parametrize(
    "other",
    [
        replace(TEA, text="Is coffee “good” - for José’s café?"),
        replace(TEA, text="Is tea “good” for José’s café?"),
        replace(TEA, text="Is tea “good” - for Jose’s café?"),
        replace(TEA, options=("Yes", "No")),
        replace(TEA, options=("Yes", "No", "I don’t know", "Maybe")),
        replace(TEA, text=f"{TEA.text} Yes", options=TEA.options[1:]),
        replace(TEA, stated_key="tea"),
    ],
)
def test_other_words_make_another_key(other: Question) -> None:
    assert other.key != TEA.key


def test_a_stated_key_joins_languages() -> None:
    german = Question("Ist Tee gut?", ("Ja", "Nein"), (0.5, 0.5), stated_key=" Tea\u00a01")
    assert german.key == replace(TEA, stated_key="tea 1").key != replace(TEA, stated_key="tea 2").key


def test_earlier_formats_withhold_by_the_exact_words() -> None:
    """The share of questions that one file withholds and the other trains on, if only the order of options differs."""
    questions = [Question(f"Question {number}?", ("yes", "no"), (0.5, 0.5)) for number in range(400)]
    turned = [replace(question, options=("no", "yes")) for question in questions]
    for by_key, least, most in ((True, 0, 0), (False, 90, 200)):
        rule = HoldOut(0.25, by_key=by_key)
        apart = sum(rule.includes(one) != rule.includes(other) for one, other in zip(questions, turned, strict=True))
        assert least <= apart <= most
        assert 70 <= sum(map(rule.includes, questions)) <= 130


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A\u00adB", "ab"),
        ("’‘´`", "'" * 4),
        ("«a»", '"a"'),
        ("x—y−z", "x-y-z"),
        ("Straße", "strasse"),
        ("a\x1fb", "a b"),
    ],
)
def test_marks_that_readers_do_not_tell_apart_are_one(text: str, expected: str) -> None:
    assert spelled_alike(text) == expected


def test_a_text_of_ascii_is_spelled_as_it_is_within_any_other_text() -> None:
    for code in range(128):
        text = f"A {chr(code)}  b{chr(code)}C"
        assert spelled_alike(f"{text}é") == f"{spelled_alike(text)}é"


def test_the_id_of_a_question_is_the_hash_that_caches_and_tables_of_scores_have() -> None:
    question = Question("Te\u0301?", ("Yes", "No"), (0.5, 0.5))
    assert question.id == "def1fe8e8b08b87414ee7017701ffa4247cae6632222c90fa049342abed7b55d"
