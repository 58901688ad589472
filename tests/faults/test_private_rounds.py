"""Private rounds of real processes: a coordinator and four daemons with their workers, one of which is killed."""

from pathlib import Path
from typing import Any

import pytest
from drill.trial import ALL
from support.process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import Groups, RunSpec
from pluralllm.operator.remote import Remote

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.usefixtures("forked_workers")]
ROUNDS = 2
GROUPS = dict(zip(("ann", "ben", "cat", "dan"), sample_groups(4, 60, 0).values(), strict=True))
SPEC = process_spec(
    rounds=ROUNDS,
    round={"min_clients": 3, "target_clients": 4, "evaluate_every": 9, "grace_after_quorum_s": 100.0},
    private_rounds={"colluders": 1, "clip_norm": 4.0, "step_s": 60.0, "closing_scores": False},
    aggregation={"max_examples": 100},
)
POLICY = {"private_rounds": {"rounds": "required", "hidden_among": 2, "trust": "first_use"}}


def phase(remote: Remote) -> str:
    try:
        return str(remote.get_run("r")["phase"])
    except PluralError:
        return ""


def has_dealt(running: Federation, name: str, number: int) -> bool:
    """Returns whether the notebook of a round has the line of the dealt shares."""
    notebook = running.folder / name / "state" / "private" / f"r.{number}" / "notebook"
    try:
        return '"step":"shares"' in notebook.read_text()
    except FileNotFoundError:
        return False


def run_with_a_kill(
    folder: Path, spec: RunSpec, groups: dict[str, tuple[Question, ...]], victim: str, number: int
) -> tuple[dict[str, Any], str]:
    """Plays a run, in whose round `number` a client is killed and started again after it has dealt its shares.

    Returns the run at its end, and what `pluralllm-server verify` prints about it.
    """
    with federation(folder / "run", tiny_embedding_model(folder / "model"), free_port()) as running:
        remote = running.start_coordinator()
        for name, questions in groups.items():
            running.start_client(name, questions, policy=POLICY)
        remote.create_run("r", spec.canonical_json())
        remote.start_run("r")
        until(lambda: has_dealt(running, victim, number), f"{victim} deals in round {number}", running)
        running.clients[victim].kill()
        running.clients[victim].start()
        until(lambda: phase(remote) == "ended", "the run ends", running, 120)
        run = remote.get_run("r")
        remote.close()
        running.coordinator.stop()
        verified = running.verify()
        assert verified.returncode == 0, f"{run['outcome_reason']}: {verified.stdout}{verified.stderr}"
        return run, verified.stdout


@pytest.mark.skipif(not ALL, reason="tests/private/test_daemons.py shows it with daemons of one process; make faults")
def test_a_daemon_that_is_killed_in_a_private_round_goes_on_and_its_update_is_in_the_sum(tmp_path: Path) -> None:
    run, verified = run_with_a_kill(tmp_path, SPEC, GROUPS, "ben", ROUNDS)
    assert (run["outcome"], run["version"]) == ("completed", ROUNDS), run["outcome_reason"]
    assert f"{ROUNDS * len(GROUPS)} receipts; {ROUNDS} aggregates repeated bit for bit" in verified


CLOSING = SPEC.model_copy(
    update={
        "rounds": 1,
        "format": "pluralllm.run/4",
        "private_rounds": PrivateRounds(step_s=60.0, clip_norm=4.0),
        "groups": Groups(
            train=tuple(f"group of {name}" for name in ("ann", "ben", "cat", "eve")), held_out=("group of dan",)
        ),
    }
)


@pytest.mark.skipif(
    not ALL, reason="tests/private/test_closing_round.py shows it with daemons of one process; make faults"
)
def test_a_daemon_that_is_killed_in_the_closing_round_goes_on_and_its_score_is_in_the_sum(tmp_path: Path) -> None:
    run, verified = run_with_a_kill(tmp_path, CLOSING, {**GROUPS, "eve": GROUPS["ann"]}, "dan", 2)
    assert (run["outcome"], run["version"], run["outcome_reason"]) == ("completed", 2, "1 rounds done")
    scored = run["scored_sum"]
    assert (scored["round"], scored["base_version"], scored["scored"], scored["updates"]) == (2, 1, 5, 5)
    assert "9 receipts; 2 aggregates repeated bit for bit" in verified
