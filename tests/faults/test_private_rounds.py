"""Private rounds of real processes: a coordinator and four daemons with their workers, one of which is killed."""

from pathlib import Path

import pytest
from drill.trial import ALL
from support.process_harness import Federation, federation, free_port, process_spec, tiny_embedding_model, until

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.words.private_rounds import PrivateRounds
from pluralllm.common.words.spec import Groups
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


@pytest.mark.skipif(not ALL, reason="tests/private/test_daemons.py shows it with daemons of one process; make faults")
def test_a_daemon_that_is_killed_in_a_private_round_goes_on_and_its_update_is_in_the_sum(tmp_path: Path) -> None:
    with federation(tmp_path / "run", tiny_embedding_model(tmp_path / "model"), free_port()) as running:
        remote = running.start_coordinator()
        for name, questions in GROUPS.items():
            running.start_client(name, questions, policy=POLICY)
        remote.create_run("r", SPEC.canonical_json())
        remote.start_run("r")
        until(lambda: has_dealt(running, "ben", ROUNDS), "ben deals in the last round", running)
        running.clients["ben"].kill()
        running.clients["ben"].start()
        until(lambda: phase(remote) == "ended", "the run ends", running, 120)
        run = remote.get_run("r")
        assert (run["outcome"], run["version"]) == ("completed", ROUNDS), run["outcome_reason"]
        remote.close()
        running.coordinator.stop()
        verified = running.verify()
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert f"{ROUNDS * len(GROUPS)} receipts; {ROUNDS} aggregates repeated bit for bit" in verified.stdout


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
    with federation(tmp_path / "run", tiny_embedding_model(tmp_path / "model"), free_port()) as running:
        remote = running.start_coordinator()
        for name, questions in GROUPS.items():
            running.start_client(name, questions, policy=POLICY)
        running.start_client("eve", GROUPS["ann"], policy=POLICY)
        remote.create_run("r", CLOSING.canonical_json())
        remote.start_run("r")
        until(lambda: has_dealt(running, "dan", 2), "dan deals in the closing round", running)
        running.clients["dan"].kill()
        running.clients["dan"].start()
        until(lambda: phase(remote) == "ended", "the run ends", running, 120)
        run = remote.get_run("r")
        assert (run["outcome"], run["version"], run["outcome_reason"]) == ("completed", 2, "1 rounds done")
        scored = run["scored_sum"]
        assert (scored["round"], scored["base_version"], scored["scored"], scored["updates"]) == (2, 1, 5, 5)
        remote.close()
        running.coordinator.stop()
        verified = running.verify()
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "9 receipts; 2 aggregates repeated bit for bit" in verified.stdout
