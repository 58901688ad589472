"""The demo: its lines for the reader, and its processes, which start, are watched and end."""

import importlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import demo_processes
import pytest
from rich.console import Console

from pluralllm.client.data.sample_survey import sample_groups, with_counts
from pluralllm.client.disclosure.policy import load_policy
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.process.configuration import load_config
from pluralllm.common.words.ids import GroupName
from pluralllm.common.words.spec import spec_from_toml

RUN = {"version": 3, "received_bytes": 1, "sent_bytes": 1}
DEMO: Any = importlib.import_module("demo")  # without its types, as its functions get doubles here


def score(group: str, version: int, value: float | None, role: str = "train") -> dict[str, Any]:
    reason = "too_few_questions" if value is None else "unspecified"
    facts = {"group": group, "version": version, "alignment_score": value, "role": role, "not_reported": reason}
    gain = None if value is None else 0.0125
    return {**facts, "questions": 0 if value is None else 40, "context_gain": gain}


def ended_process(folder: Path, written: str) -> demo_processes.Child:
    """Returns a process of the demo that has ended with an error. written: its log."""
    (folder / "log").write_text(written)
    return demo_processes.Child(cast("Any", SimpleNamespace(poll=lambda: 1, returncode=1)), folder / "log")


def test_a_process_of_the_demo_keeps_the_lines_of_grpc_that_the_demo_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    with demo_processes.Children() as children:
        children.start(["sh", "-c", 'echo "[$GRPC_VERBOSITY]"'], tmp_path / "log").popen.wait(10)
    assert (tmp_path / "log").read_text() == "[]\n"


def printed(*evaluations: dict[str, Any]) -> str:
    out = io.StringIO()
    DEMO.summary(list(evaluations), RUN, Path("folder"), Console(file=out, width=200))
    return out.getvalue()


def test_a_group_that_keeps_its_score_is_in_the_table_with_the_reason_and_in_no_mean() -> None:
    kept = [score("Foundry", version, None) for version in (0, 3)]
    text = printed(
        *kept,
        score("Northmark", 0, 0.6),
        score("Northmark", 3, 0.7),
        score("Z", 0, 0.5, "held_out"),
        score("Z", 3, 0.6, "held_out"),
    )
    line = next(line for line in text.splitlines() if line.strip().startswith("Foundry"))
    assert "not reported: too few questions" in line
    assert "all groups: mean 0.6500 over 2 of 3 groups" in text
    assert "held out: mean 0.6000 over 1 group, context gain +0.0125" in text


def test_without_a_group_that_reports_both_scores_the_demo_has_failed() -> None:
    with pytest.raises(demo_processes.DemoFailed, match="no group reported"):
        printed(score("Foundry", 0, None), score("Foundry", 3, 0.9))


def test_a_mean_that_does_not_rise_is_a_failure() -> None:
    with pytest.raises(demo_processes.DemoFailed, match="did not rise"):
        printed(score("Northmark", 0, 0.7), score("Northmark", 3, 0.6))


def test_the_demo_runs_private_rounds_and_its_partners_demand_them(tmp_path: Path) -> None:
    groups = dict.fromkeys(("Foundry", "Goldcrest", "Greenhill", "Harbourland"), ())
    spec = spec_from_toml(DEMO._spec(DEMO.Federation(groups, {}, 12, 1.0, "")), "run.toml")
    assert spec.private_rounds is not None
    assert spec.private_rounds.clip_norm == spec.aggregation.max_delta_norm
    assert (spec.round.min_clients, spec.round.target_clients) == (4, 4)
    questions = tuple(with_counts(question, 1000) for question in sample_groups(2, 5, seed=0)[GroupName("Harbourland")])
    demo_processes._write_private_file(tmp_path, questions)
    policy = load_policy(tmp_path / "state" / "policy.toml")
    assert (policy.private_rounds.rounds, policy.private_rounds.trust) == ("required", "pinned")
    assert policy.privacy is not None


def test_each_partner_pins_all_by_the_digest_that_one_reads_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed: list[str] = []

    def run(_module: str, *arguments: str) -> str:
        *words, config = arguments
        typed.append(" ".join((Path(config).parent.name, *words[:-1])))
        return "1234\n"

    monkeypatch.setattr(demo_processes, "run_command", run)
    partners = [demo_processes.Partner(name, (), "train") for name in ("Northmark", "Old Valley")]
    assert demo_processes.pin(partners, tmp_path) == "1234"
    pinned = "peers pin --roster 1234 --names northmark,old-valley"
    assert typed[0] == "northmark peers --digest"
    assert sorted(typed[1:]) == [f"northmark {pinned}", f"old-valley {pinned}"]


def test_the_secrets_of_the_round_are_looked_at_while_the_run_is_watched() -> None:
    looks: list[str] = []
    run = {"round": 1, "rounds": 1, "phase": "ended", "outcome": "completed", "evaluations": []}
    remote = SimpleNamespace(get_run=lambda _: run)
    DEMO.watch(remote, [], 1.0, Console(file=io.StringIO()), lambda: looks.append("look"))
    assert looks == ["look"]


def test_a_process_that_ends_before_the_run_does_is_a_failure(tmp_path: Path) -> None:
    run = {"round": 1, "rounds": 2, "phase": "collecting", "evaluations": []}
    ended = ended_process(tmp_path, "no room")
    with pytest.raises(demo_processes.DemoFailed, match=r"exit code 1\)\nno room"):
        DEMO.watch(SimpleNamespace(get_run=lambda _: run), [ended], 1.0, Console(file=io.StringIO()), lambda: None)


def test_the_roster_is_complete_when_every_client_has_seen_its_own_key_there(tmp_path: Path) -> None:
    partners = [demo_processes.Partner(name, (), "train") for name in ("Northmark", "Foundry")]
    ended = ended_process(tmp_path, "no certificate")
    for partner in partners:
        with pytest.raises(demo_processes.DemoFailed, match="a client has not connected\nno certificate"):
            demo_processes.wait_for_peer_keys(partners, [ended, ended], tmp_path)
        (tmp_path / partner.name / "state").mkdir(parents=True)
        (tmp_path / partner.name / "state" / "roster.json").touch()
    demo_processes.wait_for_peer_keys(partners, [ended, ended], tmp_path)


@pytest.mark.parametrize("number", demo_processes.STOP_SIGNALS)
def test_a_signal_while_a_process_starts_leaves_no_process(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worst moment for a signal: the process runs, and the demo has not noted it yet."""
    started: list[subprocess.Popen[bytes]] = []

    class Signalled(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            started.append(self)
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    def play(_federation: object, folder: Path, _console: object, *, keep: bool) -> None:
        assert not keep
        with demo_processes.Children() as children:
            children.start([sys.executable, "-c", "import time; time.sleep(60)"], folder / "log")
            demo_processes.pause(60.0)

    before = {each_signal: signal.getsignal(each_signal) for each_signal in demo_processes.STOP_SIGNALS}
    monkeypatch.setattr(DEMO, "play", play)
    monkeypatch.setattr(DEMO, "_federation", lambda *_: None)
    monkeypatch.setattr(demo_processes, "_has_signal", threading.Event())
    monkeypatch.setattr(subprocess, "Popen", Signalled)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path)])
    try:
        assert DEMO.main() == 130
    finally:
        for each_signal, handler in before.items():
            signal.signal(each_signal, handler)
    assert "every process of the demo has been stopped" in capsys.readouterr().out
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_a_command_of_the_demo_that_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_signal = threading.Event()
    has_signal.set()
    monkeypatch.setattr(demo_processes, "_has_signal", has_signal)
    with pytest.raises(demo_processes.Interrupted):
        demo_processes.run_command("http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path))


def test_a_demo_that_is_kept_up_says_how_to_look_at_it_until_a_signal_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has_signal = threading.Event()
    has_signal.set()
    monkeypatch.setattr(demo_processes, "_has_signal", has_signal)
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / "page-address").write_text("127.0.0.1:7")
    out = io.StringIO()
    DEMO.keep_up([], tmp_path, "127.0.0.1:5", Console(file=out, width=60))
    text = out.getvalue()
    assert "In a browser: http://127.0.0.1:7/" in text
    assert f"export PLURALLLM_IDENTITY={tmp_path / 'admin'} PLURALLLM_COORDINATOR=127.0.0.1:5" in text
    assert "pluralllm status demo; " in text
    assert "pluralllm rounds demo; " in text
    ended = ended_process(tmp_path, "no room")
    with pytest.raises(demo_processes.DemoFailed, match="no room"):
        DEMO.keep_up([ended], tmp_path, "127.0.0.1:5", Console(file=out))


@pytest.mark.parametrize("stays", [True, False])
def test_a_daemon_ends_with_the_run_unless_the_demo_is_kept_up(stays: bool, tmp_path: Path) -> None:
    partner = demo_processes.Partner("Northmark", (), "train")
    (tmp_path / "northmark").mkdir()
    children = cast("Any", SimpleNamespace(start=lambda command, log: (command, log)))
    partner.start(children, tmp_path, tmp_path, stays=stays)
    config = load_config(ClientConfig, tmp_path / "northmark" / "client.toml", {})
    assert config.exit_when_run_over is not stays
    assert config.threads == 1


def test_a_demo_that_has_ended_says_how_to_start_its_coordinator_again(tmp_path: Path) -> None:
    out = io.StringIO()
    DEMO.how_to_look_further(tmp_path, Console(file=out, width=60))
    text = out.getvalue()
    assert f"pluralllm-server serve --state-dir {tmp_path / 'coordinator'} --listen 127.0.0.1:7443 &\n" in text
    assert f"export PLURALLLM_IDENTITY={tmp_path / 'admin'} PLURALLLM_COORDINATOR=127.0.0.1:7443\n" in text
    assert "pluralllm status; " in text


def test_the_result_ends_with_what_the_coordinator_could_see_of_the_newest_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(DEMO, "show_sight", lambda kept, *facts: shown.extend((kept.files(), *facts)))
    secrets = SimpleNamespace(newest=lambda: (3, {"northmark": b"rk"}))
    partners = [demo_processes.Partner("Northmark", (), "train")]
    out = io.StringIO()
    console = Console(file=out, width=200)
    DEMO.conclude(
        [score("Northmark", 0, 0.6), score("Northmark", 3, 0.7)], RUN, "verified", secrets, partners, tmp_path, console
    )
    assert out.getvalue().endswith("\n\nverified\n\n")
    assert "all groups: mean 0.7000" in out.getvalue()
    log = tmp_path / "coordinator.log"
    assert shown == [[log], 3, {"northmark": b"rk"}, [tmp_path / "northmark"], console]
