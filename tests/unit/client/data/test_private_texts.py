"""Private texts are recognised in other texts by their letters and digits alone, however a text is written and cut."""

import json

import pytest

from pluralllm.client.data.private_texts import BEGINNING, LEAST, PrivateTexts
from pluralllm.common.process.foreign_output import FOREIGN_EVENTS
from pluralllm.common.process.support_bundle import REMOVED
from pluralllm.common.words.questions import Question

LONG = "abcdefghijklmnopqrstuvwxyz0123456789"  # of which the first BEGINNING letters count
SHARES = (0.5, 0.5)


def texts(*options: str, question: str = "?") -> PrivateTexts:
    """Returns the texts of a private file with one question, which has these options."""
    return PrivateTexts([Question(question, options, SHARES)])


@pytest.mark.parametrize("before", ["", "9", "999"])
@pytest.mark.parametrize("after", ["", "9", "999"])
def test_a_long_text_is_recognised_by_its_beginning_wherever_it_stands(before: str, after: str) -> None:
    private, beginning = texts(LONG), LONG[:BEGINNING]
    assert private.are_in(before + beginning + after)
    assert not private.are_in(before + beginning[:-1] + after)
    assert not private.are_in(before + beginning[1:] + after)


def test_a_text_as_long_as_a_beginning_is_recognised_only_whole() -> None:
    private = texts(LONG[:BEGINNING])
    assert BEGINNING == 24
    assert private.are_in(f"({LONG[:BEGINNING]})")
    assert not private.are_in(LONG[: BEGINNING - 1])


def test_texts_of_ten_letters_are_searched_for_and_shorter_ones_are_words_of_any_log() -> None:
    assert LEAST == 10
    assert texts(LONG[:10]).are_in(f"it said {LONG[:10]}.")
    assert not texts(LONG[:9]).are_in(LONG)
    assert texts(LONG[: BEGINNING - 1]).are_in(LONG)


def test_each_of_several_texts_is_searched_for() -> None:
    private = texts(
        LONG, LONG[::-1], "strongly agree", "never, never", question="How happy are you with your life today?"
    )
    for text in (LONG, LONG[::-1], "strongly agree", "never, never", "how happy are you with your life"):
        assert private.are_in(f"before {text} after")
    assert not private.are_in("agree, never ever")


@pytest.mark.parametrize(
    "written",
    [
        "Sehr  GLÜCKLICH, ja!",
        "sehr\\nglücklich\\tja",
        "sehr\\\\nglücklich ja",
        "sehr gl\\u00fccklich ja",
        "sehr gl\\xfccklich ja",
        "sehr gl\\\\u00FCcklich\\r ja",
        "\"sehr\" -- 'glücklich' (ja)",
    ],
)
def test_case_spaces_marks_and_escapes_do_not_matter(written: str) -> None:
    assert texts("sehr glücklich, ja").are_in(written)
    assert not texts("sehr glücklich, ne").are_in(written)


def test_a_line_is_replaced_whole_and_its_neighbours_stay() -> None:
    text = f"one\nsays {LONG} here\nthree"
    assert texts(LONG).redacted(text) == f"one\n{REMOVED}: a private text\nthree"
    assert texts(LONG).redacted("one\ntwo\n") == "one\ntwo\n"


@pytest.mark.parametrize(
    "facts",
    [
        {"event": "e", "problem": LONG},
        {"event": "e", LONG: 1},
        {"event": "e", "a": {LONG: {}}},
        {"event": "e", "a": ["x", ["y", {"b": LONG}]]},
        {"event": "e", "message": json.dumps({"inner": {LONG: "x"}})},
        {"event": "e", "message": json.dumps({"inner": json.dumps({"deep": LONG})})},
    ],
)
def test_keys_and_values_of_json_are_searched_at_every_depth(facts: dict[str, object]) -> None:
    spread = {"\\u006a": "j", "\\u006b": "k"}
    line = json.dumps(facts)
    for escaped, letter in spread.items():  # JSON may write any letter as an escape
        line = line.replace(letter, escaped) if letter in LONG else line
    redacted = texts(LONG).redacted_log(f'{{"event": "first"}}\n{line}\n')
    assert redacted == f'{{"event": "first"}}\n{REMOVED}: a private text\n'


@pytest.mark.parametrize(
    "text", ["Zu 100 % \U0001d4ae\U0001d4ca\U0001d4c7\U0001d4cb\U0001d4ce gl\f\b\u00fccklich", "in C:\\new\\temp kept"]
)
def test_letters_that_json_writes_in_other_ways_are_read(text: str) -> None:
    for line in (json.dumps({"e": text}), json.dumps({"m": json.dumps({"e": text})})):
        assert REMOVED in texts(text).redacted_log(line)


def test_texts_in_two_strings_of_a_json_line_are_not_read_as_one() -> None:
    half = len("sehr gl")
    line = json.dumps({"a": "sehr glücklich, ja"[:half], "zz": "sehr glücklich, ja"[half:]})
    assert texts("sehr glücklich, ja").redacted(line) == line


def test_lines_that_are_no_json_objects_are_left_out_of_a_log_and_counted() -> None:
    lines = ['{"event": "first"}', "Traceback", "[1, 2]", '{"event": ', f"  {json.dumps({'event': 'last'})}", ""]
    lines += [json.dumps({"event": event, "line": "grpc said so"}) for event in FOREIGN_EVENTS]
    redacted = texts(LONG).redacted_log("\n".join(lines))
    count = 4 + len(FOREIGN_EVENTS)  # the empty line counts as well
    assert redacted.splitlines() == [f"{REMOVED}: {count} lines of libraries, or that are no JSON", lines[0], lines[4]]
    assert texts(LONG).redacted_log('{"event": "only"}\n') == '{"event": "only"}\n'
