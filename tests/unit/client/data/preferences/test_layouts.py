"""Public data sets of preferences import from small files of their shape; each layout names its card.

Read: the card itself, or a copy of it; for summarize-from-feedback and UltraFeedback the README of the authors' repository
(openai/summarize-from-feedback, OpenBMB/UltraFeedback). Code: public programs that read the data set. helpsteer2-preference:
tianjianl/OpenRLHF, scripts/preprocess_helpsteer2_preferences.py. The card of UltraFeedback's files on the Hub was not at hand;
programs read an overall_score there that the README lacks, so both shapes are tried.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pluralllm.client.data.preferences.imports import Imported, Reading, read_preferences
from pluralllm.client.data.preferences.layouts import LAYOUTS, recognised
from pluralllm.client.data.preferences.mapped import columns_of
from pluralllm.client.data.preferences.scores import score_meaning
from pluralllm.client.data.private_data import read_group
from pluralllm.client.data_commands import app
from pluralllm.common.errors.tree import InvalidArgument, InvalidData

Rows = list[dict[str, Any]]
Expected = dict[str, dict[str, float]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def model(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"p": {"x": 1.0, "y": 0.0}}
TIE = {"p": {"x": 0.5, "y": 0.5}}
TALK = {"conversation_a": [user("p"), model("x")], "conversation_b": [user("p"), model("y")]}
RANKED = {"ranking_blocks": {"personal": [{"ranking": "A>B"}], "world": [{"ranking": "A=B"}]}, "assessor_id": "r1"}
ASSESSED = {
    "prompt": {"messages": [user("p")]},
    "responses": [
        {"response_index": "A", "messages": [model("x")]},
        {"response_index": "B", "messages": [model("y")]},
    ],
    "metadata": {"assessments": [RANKED]},
}
HISTORY = [user("p"), model("x") | {"score": 90}, model("y") | {"score": 10}, user("more"), model("z") | {"score": 5}]
SUBPOP = {"qkey": "Q1", "question": "p", "options": ["x", "y", "Refused"], "responses": [0.75, 0.25]}
ASPECTS = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
JUDGED = {"question_id": 81, "model_a": "m", "model_b": "n", "judge": "expert_1", "turn": 1}
WMT = {"lp": "en-de", "src": "p", "ref": "r", "annotators": 1, "domain": "news", "year": 2020}

# name: how its card is known, rows, expected shares
CASES: dict[str, tuple[str, Rows, Expected]] = {
    "hh-rlhf": (
        "read",
        [{"chosen": "\n\nHuman: p\n\nAssistant: x", "rejected": "\n\nHuman: p\n\nAssistant: y"}],
        PAIR,
    ),
    "summarize-from-feedback": (
        "read",
        [
            {
                "info": {"id": "t3_1", "post": "p", "title": "t", "subreddit": "legaladvice"},
                "summaries": [
                    {"text": " y", "policy": "sup4", "note": None},
                    {"text": " x", "policy": "ref", "note": "n"},
                ],
                "choice": 1,
                "worker": "w",
                "batch": "batch9",
                "split": "train",
                "extra": {"confidence": 8},
            }
        ],
        PAIR,
    ),
    "ultrafeedback": (
        "read",
        [
            {
                "source": "s",
                "instruction": "p",
                "completions": [{"response": "x", "overall_score": 9.0}, {"response": "y", "overall_score": 5.0}],
            }
        ],
        PAIR,
    ),
    "ultrafeedback-binarized": (
        "code",
        [
            {
                "prompt": "p",
                "chosen": [user("p"), model("x")],
                "rejected": [user("p"), model("y")],
                "score_chosen": 9.0,
                "score_rejected": 5.0,
            }
        ],
        PAIR,
    ),
    "helpsteer2": (
        "read",
        [
            {"prompt": "p", "response": "x", "helpfulness": 4, **ASPECTS},
            {"prompt": "p", "response": "y", "helpfulness": 1, **ASPECTS},
        ],
        PAIR,
    ),
    "helpsteer2-preference": (
        "code",
        [
            {
                "split": "train",
                "prompt": "p",
                "response_1": "y",
                "response_2": "x",
                "preference_strength": 2,
                "preference_statement": "s",
            }
        ],
        PAIR,
    ),
    "helpsteer3": (
        "code",
        [
            {
                "domain": "general",
                "language": "english",
                "context": [user("p")],
                "response1": "x",
                "response2": "y",
                "overall_preference": -2,
            }
        ],
        PAIR,
    ),
    "shp": (
        "read",
        [{"history": "p", "human_ref_A": "x", "human_ref_B": "y", "labels": 1, "score_A": 340, "score_B": 166}],
        PAIR,
    ),
    "arena": ("read", [TALK | {"winner": "model_a", "judge": "j1", "turn": 1, "language": "English"}], PAIR),
    "mt-bench": ("read", [TALK | JUDGED | {"winner": "tie (inconsistent)"}], TIE),
    "arena-55k": (
        "code",
        [
            {
                "prompt": '["p"]',
                "response_a": '["x"]',
                "response_b": '["y"]',
                "winner_model_a": 1,
                "winner_model_b": 0,
                "winner_tie": 0,
            }
        ],
        PAIR,
    ),
    "prism": ("read", [{"conversation_id": "c1", "user_id": "u1", "conversation_history": HISTORY}], PAIR),
    "community-alignment": (
        "code",
        [
            {
                "first_turn_prompt": "p",
                "first_turn_response_a": "x",
                "first_turn_response_b": "y",
                "first_turn_response_c": "",
                "first_turn_preferred_response": "response_a",
            }
        ],
        PAIR,
    ),
    "collective-alignment": ("code", [ASSESSED], PAIR),
    "collective-alignment-world": ("code", [ASSESSED], TIE),
    "best-of-n": ("own", [{"prompt": "p", "candidates": ["y", "x"], "best": 1}], PAIR),
    "rankings": ("own", [{"prompt": "p", "candidates": ["x", "y"], "ranks": [1, 2]}], PAIR),
    "subpop": (
        "code",
        [SUBPOP | {"attribute": "POLPARTY", "group": "Democrat", "ordinal": [1, 2], "refusal_rate": 0.01}],
        {"p": {"x": 0.75, "y": 0.25}},
    ),
    "wmt-da": ("read", [WMT | {"mt": "x", "score": 1.0, "raw": 90}, WMT | {"mt": "y", "score": -0.5, "raw": 40}], PAIR),
    "wmt-mqm": (
        "read",
        [WMT | {"mt": "x", "score": 0.1, "system": "s1"}, WMT | {"mt": "y", "score": 25.0, "system": "s2"}],
        PAIR,
    ),
    "nectar": (
        "code",
        [
            {
                "prompt": "\n\nHuman: p\n\nAssistant: ",
                "answers": [{"answer": "x", "model": "m", "rank": 1.0}, {"answer": "y", "model": "n", "rank": 2.0}],
                "num_responses": 2,
            }
        ],
        PAIR,
    ),
    "pku-saferlhf": (
        "code",
        [{"prompt": "p", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 1}],
        PAIR,
    ),
    "pku-saferlhf-safer": (
        "code",
        [{"prompt": "p", "response_0": "y", "response_1": "x", "better_response_id": 0, "safer_response_id": 1}],
        PAIR,
    ),
    "webgpt": (
        "read",
        [
            {
                "question": {"full_text": "p", "dataset": "eli5", "id": "1"},
                "answer_0": "y",
                "answer_1": "x",
                "score_0": -0.5,
                "score_1": 0.5,
            }
        ],
        PAIR,
    ),
    "stack-exchange": (
        "read",
        [{"qid": 1, "question": "p", "answers": [{"text": "x", "pm_score": 4}, {"text": "y", "pm_score": 1}]}],
        PAIR,
    ),
    "preference-collection": (
        "code",
        [{"orig_instruction": "p", "orig_response_A": "y", "orig_response_B": "x", "orig_preference": "B"}],
        PAIR,
    ),
}
OF_SCORES = {"ultrafeedback", "helpsteer2", "prism", "wmt-da", "wmt-mqm", "stack-exchange"}
BEST = score_meaning("best-of")


def written(folder: Path, rows: Rows) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shares(imported: Imported) -> Expected:
    return {one.text: dict(zip(one.options, one.shares, strict=True)) for one in imported.questions}


def reading(name: str, **more: Any) -> Reading:
    lower = name == "wmt-mqm"
    meaning = score_meaning("best-of", lower_is_better=lower) if name in OF_SCORES else None
    return Reading(layout=name, scores=meaning, is_direction_said=lower, **more)


def test_every_layout_has_a_case_and_a_card() -> None:
    assert CASES.keys() == LAYOUTS.keys()
    assert len(LAYOUTS) >= 20
    public = [layout.card for name, layout in LAYOUTS.items() if CASES[name][0] != "own"]
    assert all(card.count("/") == 1 for card in public), public


@pytest.mark.parametrize("name", CASES)
def test_a_public_layout_is_imported(tmp_path: Path, name: str) -> None:
    _, rows, expected = CASES[name]
    assert shares(read_preferences(written(tmp_path, rows), reading(name))) == expected


@pytest.mark.parametrize("name", CASES)
def test_a_row_without_its_columns_is_a_problem_with_its_line(tmp_path: Path, name: str) -> None:
    rows = [*CASES[name][1], {"other": 1}]
    with pytest.raises(InvalidData, match=f"line {len(rows)}: no "):
        read_preferences(written(tmp_path, rows), reading(name))


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("best-of", "rankings"))])
def test_a_file_of_a_public_layout_is_told_which_it_may_be(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, CASES[name][1])
    assert recognised(CASES[name][1][0])
    with pytest.raises(InvalidData, match=f"this looks like .*--layout {name}"):
        read_preferences(path, Reading())


def test_an_unknown_layout_lists_all(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"did you mean hh-rlhf.*stack-exchange"):
        read_preferences(written(tmp_path, []), Reading(layout="hh-rlfh"))


@pytest.mark.parametrize("name", sorted(OF_SCORES))
def test_scores_without_a_meaning_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--scores softmax, .*--lower-is-better"):
        read_preferences(written(tmp_path, CASES[name][1]), Reading(layout=name, is_direction_said=name == "wmt-mqm"))


def test_scores_of_our_own_layout_need_a_meaning_too(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "p", "candidates": ["x", "y"], "scores": [25, 0.1]}])
    with pytest.raises(InvalidArgument, match="scores are no shares of votes"):
        read_preferences(path, Reading())
    penalties = Reading(scores=score_meaning("best-of", lower_is_better=True))
    assert shares(read_preferences(path, penalties)) == {"p": {"x": 0.0, "y": 1.0}}


def test_the_direction_of_mqm_scores_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="--lower-is-better or --higher-is-better"):
        read_preferences(written(tmp_path, CASES["wmt-mqm"][1]), Reading(layout="wmt-mqm", scores=BEST))


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [("softmax", 0.8807970779778824), ("softmax:2", 0.7310585786300049), ("best-of", 1.0), ("win-rate", 1.0)],
)
def test_the_meanings_of_scores(meaning: str, expected: float) -> None:
    better, worse = score_meaning(meaning).shares([3, 1])
    assert better == pytest.approx(expected)
    assert better + worse == pytest.approx(1)
    assert score_meaning(meaning, lower_is_better=True).shares([1, 3])[0] == pytest.approx(expected)


def test_equal_scores_are_a_tie_in_every_meaning() -> None:
    for meaning in ("softmax", "best-of", "win-rate"):
        assert score_meaning(meaning).shares([2, 2]) == (0.5, 0.5)
    assert score_meaning("win-rate").shares([3, 2, 1]) == pytest.approx((2 / 3, 1 / 3, 0))


@pytest.mark.parametrize("text", ["softmax:0", "softmax:", "softmax:inf", "best-of:1", "shares", ""])
def test_a_meaning_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--scores"):
        score_meaning(text)


def test_a_tie_is_half_a_vote_for_each_and_gives_no_counts(tmp_path: Path) -> None:
    rows = [TALK | {"winner": winner, "judge": "j", "turn": 1} for winner in ("model_a", "tie (bothbad)")]
    (tied,) = read_preferences(written(tmp_path, rows), reading("arena")).questions
    assert dict(zip(tied.options, tied.shares, strict=True)) == {"x": 0.75, "y": 0.25}
    assert tied.counts == ()
    (whole,) = read_preferences(written(tmp_path, rows[:1]), reading("arena")).questions
    assert sum(whole.counts) == whole.respondents == 1


def test_raters_are_grouped_by_a_column(tmp_path: Path) -> None:
    rows = [TALK | {"winner": f"model_{w}", "judge": j, "turn": 1} for w, j in (("a", "j1"), ("b", "j2"), ("b", "j2"))]
    path = written(tmp_path, rows)
    own = read_preferences(path, reading("arena", group="j2", group_column="judge"))
    assert shares(own) == {"p": {"x": 0.0, "y": 1.0}}
    with pytest.raises(InvalidData, match="no group 'j3'; there is: j1, j2"):
        read_preferences(path, reading("arena", group="j3", group_column="judge"))
    by_assessor = reading("collective-alignment", group="r1", group_column="assessor_id")
    assert shares(read_preferences(written(tmp_path, [ASSESSED]), by_assessor)) == PAIR


def test_bad_rows_are_left_out_up_to_a_limit_and_counted(tmp_path: Path) -> None:
    good = CASES["shp"][1][0]
    rows = [good, good | {"labels": 7}, good, good | {"human_ref_B": ""}]
    path = written(tmp_path, rows)
    with pytest.raises(InvalidData, match=r"(?s)line 2: labels 7 names none.*50 % of 4 rows.*--skip-bad PERCENT"):
        read_preferences(path, reading("shp"))
    with pytest.raises(InvalidData, match="more than --skip-bad 49"):
        read_preferences(path, reading("shp", most_bad=49))
    imported = read_preferences(path, reading("shp", most_bad=50))
    assert imported.questions[0].respondents == 2
    assert [note.split(":")[0] for note in imported.notes()] == [
        "1 of 4 rows left out (line 2)",
        "1 of 4 rows left out (line 4)",
    ]


def test_a_single_scored_candidate_is_compared_with_nothing_and_told(tmp_path: Path) -> None:
    rows = [*CASES["helpsteer2"][1], {"prompt": "q", "response": "x", "helpfulness": 4}]
    imported = read_preferences(written(tmp_path, rows), reading("helpsteer2"))
    assert shares(imported) == PAIR
    assert imported.notes() == ["1 prompts have a single scored candidate and were left out"]


def test_scores_of_one_candidate_by_several_raters_are_averaged(tmp_path: Path) -> None:
    rated = [("x", 4), ("x", 0), ("y", 3)]
    rows = [{"prompt": "p", "response": text, "helpfulness": score} for text, score in rated]
    assert shares(read_preferences(written(tmp_path, rows), reading("helpsteer2"))) == {"p": {"x": 0.0, "y": 1.0}}


def test_translations_into_two_languages_are_not_compared(tmp_path: Path) -> None:
    first, second = CASES["wmt-da"][1]
    imported = read_preferences(written(tmp_path, [first, second | {"lp": "en-fr"}]), reading("wmt-da"))
    assert (imported.questions, imported.alone) == ((), 2)


@pytest.mark.parametrize("rating", [{"Rating": "2"}, {"Rating": "2", "Type": ["1"]}])
def test_completions_without_an_overall_score_have_the_mean_of_their_ratings(tmp_path: Path, rating: Any) -> None:
    better = {"honesty": {"Rating": "5"}, "helpfulness": rating, "truthfulness": {"Rating": "N/A"}}
    completions = [
        {"response": "y", "annotations": {"honesty": {"Rating": "3"}}},
        {"response": "x", "annotations": better},
    ]
    rows = [{"source": "s", "instruction": "p", "models": [], "completions": completions}]
    assert shares(read_preferences(written(tmp_path, rows), reading("ultrafeedback"))) == PAIR
    rows[0]["completions"] = [{"response": "x", "annotations": {}}]
    with pytest.raises(InvalidData, match="line 1: no overall_score, and no annotations with a Rating"):
        read_preferences(written(tmp_path, rows), reading("ultrafeedback"))


def test_a_vote_on_a_turn_is_about_the_messages_up_to_it(tmp_path: Path) -> None:
    talks = {name: [user("p"), model(first), user("q"), model("z")] for name, first in (("a", "x"), ("b", "y"))}
    row = {"conversation_a": talks["a"], "conversation_b": talks["b"], **JUDGED, "winner": "model_a"}
    assert shares(read_preferences(written(tmp_path, [row]), reading("mt-bench"))) == PAIR
    both = read_preferences(written(tmp_path, [row | {"turn": 2}]), reading("mt-bench"))
    assert shares(both) == {"p": {"x\nq\nz": 1.0, "y\nq\nz": 0.0}}
    for turn in (0, 1.5):
        with pytest.raises(InvalidData, match=f"line 1: turn {turn}; the first turn is 1"):
            read_preferences(written(tmp_path, [row | {"turn": turn}]), reading("mt-bench"))


def test_equal_scores_of_a_chosen_pair_and_two_bad_answers_are_ties(tmp_path: Path) -> None:
    equal = CASES["ultrafeedback-binarized"][1][0] | {"score_rejected": 9.0}
    assert shares(read_preferences(written(tmp_path, [equal]), reading("ultrafeedback-binarized"))) == TIE
    bad = CASES["arena"][1][0] | {"winner": "both_bad"}
    assert shares(read_preferences(written(tmp_path, [bad]), reading("arena"))) == TIE


@pytest.mark.parametrize(
    ("name", "odd", "problem"),
    [
        ("wmt-da", {"score": "inf"}, "score 'inf' is not a finite number"),
        ("subpop", {"responses": [-0.1, 1.1]}, "shares .* give numbers of 0 or more"),
        ("subpop", {"responses": [0, 0]}, "shares .* not all 0"),
        ("webgpt", {"score_0": "much"}, "score_0 'much' is not a number"),
        ("arena", {"winner": "model_c"}, "winner 'model_c'"),
    ],
)
def test_numbers_that_are_none_are_problems(tmp_path: Path, name: str, odd: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidData, match=f"line 1: {problem}"):
        read_preferences(written(tmp_path, [CASES[name][1][0] | odd]), reading(name))


def test_columns_of_ones_own_are_named(tmp_path: Path) -> None:
    pair = [{"ask": {"text": "p"}, "good": "x", "bad": "y", "who": "a"}]
    named = Reading(columns=columns_of("prompt=ask.text, chosen=good, rejected=bad, group=who"), group="a")
    assert shares(read_preferences(written(tmp_path, pair), named)) == PAIR
    battle = [{"ask": "p", "a1": "x", "a2": "y", "won": "a1"}, {"ask": "p", "a1": "x", "a2": "y", "won": "Tie"}]
    by_winner = Reading(columns=columns_of("prompt=ask,candidates=a1+a2,winner=won"))
    assert shares(read_preferences(written(tmp_path, battle), by_winner)) == {"p": {"x": 0.75, "y": 0.25}}
    with pytest.raises(InvalidData, match="winner 'a3'; expected a1, a2 or tie"):
        read_preferences(written(tmp_path, [battle[0] | {"won": "a3"}]), by_winner)


@pytest.mark.parametrize(
    "text", ["prompt=a", "prompt=a,chosen=b", "ask=a", "prompt", "prompt=a,prompt=b", "chosen=a,rejected=b"]
)
def test_a_map_that_names_too_little_or_twice_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--map"):
        columns_of(text)


def test_transcripts_share_their_first_turns_as_the_prompt(tmp_path: Path) -> None:
    start = "\n\nHuman: p\n\nAssistant: hm\n\nHuman: q\n\nAssistant: "
    imported = read_preferences(
        written(tmp_path, [{"chosen": start + "x", "rejected": start + "y"}]), reading("hh-rlhf")
    )
    assert shares(imported) == {"p\nhm\nq": {"x": 1.0, "y": 0.0}}


def test_the_command_has_an_option_for_each_meaning(tmp_path: Path) -> None:
    def typed(name: str, *words: str, code: int = 0) -> str:
        path = written(tmp_path, CASES[name][1])
        done = CliRunner().invoke(app, ["import", "preferences", str(path), "--out", str(tmp_path / "g.jsonl"), *words])
        assert done.exit_code == code, done.output
        return done.output or str(done.exception)

    assert "1 questions" in typed("wmt-mqm", "--layout", "wmt-mqm", "--scores", "softmax:5", "--lower-is-better")
    (one,) = read_group(tmp_path / "g.jsonl")
    assert one.shares[one.options.index("x")] == pytest.approx(0.9931, abs=1e-4)
    asked = "prompt=history,candidates=human_ref_A+human_ref_B,scores=score_A"
    assert "give --layout or --map" in typed("shp", "--layout", "shp", "--map", asked, code=1)
    assert "--group NAME" in typed("arena", "--layout", "arena", "--group-column", "judge", code=1)
    assert "belongs to scores" in typed("shp", "--layout", "shp", "--lower-is-better", code=1)
    told = typed("arena", "--layout", "arena", "--group", "j1", "--group-column", "judge", "--skip-bad", "5")
    assert "pluralllm spec new --preset default" in told


def test_the_encoding_and_the_delimiter_of_a_file_may_be_said(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_bytes("prompt^chosen^rejected\np^ł^y\n".encode("cp1250"))
    said = Reading(encoding="cp1250", delimiter="^")
    assert shares(read_preferences(tmp_path / "v.csv", said)) == {"p": {"ł": 1.0, "y": 0.0}}
    words = ["import", "preferences", str(tmp_path / "v.csv"), "--out", str(tmp_path / "g.jsonl")]
    done = CliRunner().invoke(app, [*words, "--encoding", "cp1250", "--delimiter", "^"])
    assert done.exit_code == 0, done.output
    assert set(read_group(tmp_path / "g.jsonl")[0].options) == {"ł", "y"}


def test_the_page_on_rewards_lists_all_layouts() -> None:
    page = (Path(__file__).parents[5] / "docs" / "rewards.md").read_text()
    assert [name for name in LAYOUTS if f"`{name}`" not in page] == []
