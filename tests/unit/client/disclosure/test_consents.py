"""A consent is bound to one run spec and to the fields that the partner was shown; it is there after a restart."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support.process_harness import process_spec

from pluralllm.client.disclosure.consents import Consents
from pluralllm.client.disclosure.differences import Difference
from pluralllm.common.errors.tree import ConsentNeeded, InvalidConfig
from pluralllm.common.words.ids import RunId

RUN, OTHER = RunId("r"), RunId("other")
SPEC = process_spec()
STEPS = Difference("training.local_steps", "1", "6", "allowed_presets: default", "danger")
SHARE = Difference("evaluation.holdout_share", "0.3", "0.1", "the file's share", "danger")


def refused(consents: Consents, run: RunId = RUN, differences: Any = (STEPS,), **changes: Any) -> str:
    """Returns the text of the refusal; fails if the run is not refused."""
    with pytest.raises(ConsentNeeded) as error:
        consents.demand(run, process_spec(**changes), differences)
    return str(error.value)


def give(folder: Path, run: RunId = RUN) -> None:
    """Consents as the command does, which is another process."""
    command = Consents(folder)
    question = command.question(run)
    assert question is not None
    command.give(question)


def test_a_run_without_differences_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    Consents(tmp_path).demand(RUN, SPEC, ())
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_names_the_key_the_value_what_is_allowed_and_the_command(tmp_path: Path) -> None:
    text = refused(Consents(tmp_path))
    assert "training.local_steps is 1, allowed is 6 (allowed_presets: default)" in text
    assert text.endswith("pluralllm-client consent r.")


def test_the_question_is_stored_with_the_spec_for_a_command_without_a_connection(tmp_path: Path) -> None:
    refused(Consents(tmp_path), title="a title")
    question = Consents(tmp_path).question(RUN)
    assert question is not None
    assert (question.run, question.title, question.differences) == (RUN, "a title", (STEPS,))
    stored = json.loads((tmp_path / "disclosure" / "asked" / "r.json").read_bytes())
    assert stored["spec"]["training"]["local_steps"] == SPEC.training.local_steps


def test_after_the_consent_the_run_is_allowed_also_after_a_restart(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    give(tmp_path)
    consents.demand(RUN, SPEC, (STEPS,))
    Consents(tmp_path).demand(RUN, SPEC, (STEPS,))


def test_a_consent_counts_for_every_run_with_this_spec_and_for_no_other_spec(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    give(tmp_path)
    consents.demand(OTHER, SPEC, (STEPS,))
    refused(consents, RUN, seed=12)


def test_a_consent_covers_only_what_the_partner_was_shown(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    give(tmp_path)
    assert "holdout_share" in refused(consents, differences=(STEPS, SHARE))
    give(tmp_path)
    consents.demand(RUN, SPEC, (STEPS, SHARE))
    consents.demand(RUN, SPEC, (SHARE,))


def test_a_consent_to_rewards_counts_for_the_named_run_only(tmp_path: Path) -> None:
    consents, rewards = Consents(tmp_path), Difference("rewards", "asked for", "no rewards", "allow_rewards", "shows")
    refused(consents, differences=(rewards,))
    give(tmp_path)
    consents.demand(RUN, SPEC, (rewards,))
    refused(consents, OTHER, differences=(rewards,))
    give(tmp_path, OTHER)
    consents.demand(OTHER, SPEC, (rewards,))


def test_a_second_consent_keeps_what_the_first_one_covered(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    for difference in (STEPS, SHARE):
        refused(consents, differences=(difference,))
        give(tmp_path)
    consents.demand(RUN, SPEC, (STEPS, SHARE))


def test_the_daemon_learns_once_which_refused_runs_have_the_consent_now(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    refused(consents, OTHER, seed=12)
    assert consents.newly_covered() == ()
    give(tmp_path)
    assert consents.newly_covered() == (RUN,)
    assert consents.newly_covered() == ()


@pytest.mark.parametrize("run", [RUN, OTHER])
def test_a_consent_can_be_withdrawn_by_the_name_of_any_run_that_asked_with_this_spec(
    tmp_path: Path, run: RunId
) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    refused(consents, OTHER)
    refused(consents, RunId("third"), seed=12)
    give(tmp_path)
    give(tmp_path, RunId("third"))
    assert Consents(tmp_path).withdraw(run) == 1
    refused(consents)
    consents.demand(RunId("third"), process_spec(seed=12), (STEPS,))
    assert Consents(tmp_path).withdraw(run) == 0


def test_a_damaged_file_of_consents_allows_nothing_and_is_not_overwritten(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    give(tmp_path)
    (tmp_path / "disclosure" / "consents.json").write_text("{")
    refused(consents)
    with pytest.raises(InvalidConfig, match=r"consents\.json"):
        give(tmp_path)


def test_a_damaged_question_is_no_question(tmp_path: Path) -> None:
    refused(Consents(tmp_path))
    (tmp_path / "disclosure" / "asked" / "r.json").write_text('{"spec": 1}')
    assert Consents(tmp_path).question(RUN) is None
    assert Consents(tmp_path).questions() == ()


@pytest.mark.parametrize("run", ["../identity/membership", "/etc/passwd", "", "R"])
def test_the_name_of_a_run_never_leads_out_of_the_folder(tmp_path: Path, run: str) -> None:
    refused(Consents(tmp_path), RunId(run))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert Consents(tmp_path).question(RunId(run)) is None


def test_a_coordinator_that_asks_about_very_many_runs_cannot_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pluralllm.client.disclosure.consents.MAX_ASKED", 3)
    consents = Consents(tmp_path)
    for number in range(5):
        refused(consents, RunId(f"r{number}"))
    assert len(consents.questions()) == 3
    assert consents.question(RunId("r4")) is not None
    assert consents.question(RunId("r0")) is None


def test_the_same_question_is_written_and_logged_once_and_comes_back_if_it_was_displaced(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    path = tmp_path / "disclosure" / "asked" / "r.json"
    with capture_logs() as lines:
        refused(consents)
        path.write_text("the first one")
        refused(consents)
        assert path.read_text() == "the first one"
        path.unlink()
        refused(consents)
        assert path.exists()
        assert [line["event"] for line in lines] == ["consent.needed"]
        refused(consents, differences=(SHARE,))
        assert len(lines) == 2
    assert str(tmp_path) in lines[0]["command"]


def test_the_question_about_a_run_that_has_ended_or_needs_no_consent_any_more_is_removed(tmp_path: Path) -> None:
    consents = Consents(tmp_path)
    refused(consents)
    consents.forget(RUN)
    assert consents.questions() == ()
    refused(consents)
    assert len(consents.questions()) == 1
    consents.demand(RUN, SPEC, ())
    assert consents.questions() == ()
    consents.forget(RunId("../../etc/passwd"))
