"""Experiments on a real Ray of this machine: the same files as without it, whatever happens to its workers.

Ray is an extra that `make test` does not install. Run these tests with `make ray`.
"""

import hashlib
import itertools
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from support.process_harness import WIDTH, tiny_embedding_model
from support.small_experiment import GROUPS, files_of, small_plan
from support.small_survey import small_group

from pluralllm.client.work.embedding_pool import cut, fill
from pluralllm.common.errors.tree import EmbeddingMismatch, InvalidArgument, NotFinite
from pluralllm.common.predictor import encoder
from pluralllm.common.predictor.embedding import Embedder, make_probes
from pluralllm.common.words.embedding import Embedding
from pluralllm.experiment.engines.units import RayOptions
from pluralllm.experiment.federated import federate
from pluralllm.experiment.play import Player
from pluralllm.experiment.runner import Plan, run_experiment
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.virtual import groups_of_clients

ray = pytest.importorskip("ray", reason="Ray is not installed; make ray runs these tests")

psutil = pytest.importorskip("psutil")

from pluralllm.experiment.engines import ray_cluster  # noqa: E402 - it imports Ray
from pluralllm.experiment.engines.ray_embedding import EmbedOrder, embed_piece, fill_on_ray, model_files  # noqa: E402
from pluralllm.experiment.engines.ray_passes import RayPasses  # noqa: E402
from pluralllm.experiment.engines.ray_workers import Terms, in_order, versions_here  # noqa: E402

T = TypeVar("T")
CPU = torch.device("cpu")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def quiet(*_: object) -> None:
    pass


def with_one_thread(work: Callable[[], T]) -> T:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def inline(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Returns the files of the same experiment, played unit by unit in this process with one thread."""
    engine = OneByOne()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pluralllm.experiment.runner._engine", lambda _plan, _origin, player: engine.with_player(player))
        with_one_thread(lambda: run_experiment(replace(plan, out=plan.out.with_name("inline")), quiet))
    return files_of(plan.out.with_name("inline"))


class OneByOne:
    def with_player(self, player: Player) -> "OneByOne":
        self._player = player
        return self

    async def map(self, units: Any, _tell: Any) -> Any:
        for unit in units:
            yield unit, self._player.play(unit.method, unit.seed, quiet, quiet)


def without_machine(files: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The baselines' headers name the driver's number of threads."""
    for records in files.values():
        records[0].pop("machine")
    return files


def test_one_worker_two_workers_and_no_ray_give_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch)
    expected = without_machine(inline(plan))
    assert len(expected) == 3 + 2 + 4
    reports: list[tuple[str, int, int]] = []
    for jobs in (1, 2):
        on_ray = replace(plan, out=plan.out.with_name(f"ray-{jobs}"), jobs=jobs, ray=RayOptions())
        run_experiment(on_ray, lambda *facts: reports.append(facts))
        assert without_machine(files_of(on_ray.out)) == expected
        assert reports[-1][1:] == (4000, 4000)


def test_a_killed_worker_changes_nothing_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, monkeypatch, {"rounds": 150, "seeds": [0], "scoring": {"every": 50}})
    killed: list[int] = []

    def kill_once(what: str, *_: object) -> None:
        workers = [child for child in psutil.Process().children(recursive=True) if "ray::play_unit" in _title(child)]
        if "training" in what and workers and not killed:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    run_experiment(replace(plan, jobs=2, ray=RayOptions()), kill_once)
    assert killed
    assert "unit.retried" in capsys.readouterr().out
    assert without_machine(files_of(plan.out)) == without_machine(inline(plan))


def _title(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# With 16 episodes in a step, two clients are one pass.
VIRTUAL = {"batch_episodes": 16, "keep_optimizer_state": False, "local_steps": 20}


def virtual_plan(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> Plan:
    """Returns an experiment of 40 virtual clients, of which nine are in a round, so in five passes."""
    plan = small_plan(folder, monkeypatch, {"data": {"virtual": {"clients": 40}}} | changes)
    training = {"training": plan.experiment.methods[0].spec["training"] | VIRTUAL}
    methods = tuple(
        method.model_copy(update={"cohort": 9, "adapt_steps": None, "spec": method.spec | training})
        for method in plan.experiment.methods
    )
    return replace(plan, experiment=plan.experiment.model_copy(update={"methods": methods}))


def most_begun(items: int) -> int:
    """Returns how many tasks `in_order` holds at most that are begun and not yet yielded."""
    begun: list[int] = []
    most = 0

    def begin(item: int) -> Any:
        begun.append(item)
        return ray.put(item)

    for place, (item, reference) in enumerate(in_order(range(items), begin)):
        assert item == ray.get(reference) == place
        most = max(most, len(begun) - place)
    return most


class Killing(RayPasses):
    """Kills a worker that trains a pass, after the first pass of the first round."""

    killed = 0

    def train(self, passes: Any, base: Any, number: Any) -> Any:
        assert [len(clients) for clients in passes] == [2, 2, 2, 2, 1]
        for trained in super().train(passes, base, number):
            if not self.killed:
                self.killed = kill_one("ray::train_pass")
            yield trained


def kill_one(title: str) -> int:
    """Kills a worker while it does the task of this title. Waits until there is one."""
    while True:
        for child in psutil.Process().children(recursive=True):
            if title in _title(child):
                os.kill(child.pid, signal.SIGSTOP)  # it cannot end the task before the blow
                is_at_it = title in _title(child)
                os.kill(child.pid, signal.SIGKILL)
                if is_at_it:
                    return int(child.pid)


def test_the_passes_of_a_round_have_the_bits_of_one_process_for_any_number_of_workers_also_after_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = virtual_plan(tmp_path, monkeypatch, {"rounds": 3})
    spec = plan.experiment.run_spec(plan.experiment.methods[0], 0)
    groups = {name: small_group(name, questions=30, seed=seed) for seed, name in enumerate(GROUPS)}
    clients = groups_of_clients(Virtual(clients=40), GROUPS[:2], 0)

    def digests(passes: RayPasses | None) -> list[str]:
        played = federate(spec, groups, CPU, clients, passes)
        return [hashlib.sha256(point.values.tobytes()).hexdigest() for point in played]

    expected = with_one_thread(lambda: digests(None))
    assert len(set(expected)) == 4
    for workers, kind in ((1, RayPasses), (2, RayPasses), (2, Killing)):
        with ray_cluster.connected(RayOptions(), workers):
            passes = kind(spec, Terms(versions_here()))
            assert digests(passes) == expected
            assert passes.elsewhere_s > 0
            assert most_begun(20) == 2 * workers
            assert isinstance(passes, Killing) == bool(getattr(passes, "killed", 0))


def test_an_experiment_with_virtual_clients_has_the_same_figures_on_ray_one_unit_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = virtual_plan(tmp_path, monkeypatch, {"rounds": 4, "scoring": {"every": 2}})
    training: list[str] = []
    on_ray = replace(plan, out=plan.out.with_name("on-ray"), jobs=2, ray=RayOptions())
    run_experiment(on_ray, lambda what, *_: training.append(what))
    assert without_machine(files_of(on_ray.out)) == without_machine(inline(plan))
    units = [unit for unit, _ in itertools.groupby(what for what in training if what.endswith(": training"))]
    assert len(units) == 4, "each unit has the cluster for itself"
    seconds = [
        json.loads(line)["seconds"]
        for path in on_ray.out.glob("one.seed*.jsonl")
        for line in path.read_text().splitlines()
        if json.loads(line)["kind"] == "point" and json.loads(line)["rounds"]
    ]
    assert min(seconds) > 0.05, "the seconds of the workers count"


def rows(folder: Path) -> list[tuple[bytes, bytes]]:
    with sqlite3.connect(folder / "embeddings.sqlite3") as file:
        return sorted(file.execute("SELECT key, vector FROM vectors"))


def test_a_cluster_embeds_the_same_vectors_also_after_a_killed_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "TEXTS_AT_ONCE", 10)
    tiny = tiny_embedding_model(tmp_path / "model")
    contract = Embedding(model="tiny", templates=("{question}", "{option}"), dimension=2 * WIDTH)
    probes = make_probes(contract, tiny, tmp_path / "probes", CPU)
    contract = contract.model_copy(update={"probes": probes})
    pieces = cut([f"{'Agree ' * (number % 7)}Tea {number}?" for number in range(300)])
    killed: list[int] = []
    reports: list[tuple[int, int]] = []

    def kill_once(done: int, total: int) -> None:
        reports.append((done, total))
        if done and not killed:
            killed.append(kill_one("ray::embed_piece"))

    def embedder(folder: str) -> Embedder:
        return Embedder(contract, tiny, tmp_path / folder, CPU)

    fill(embedder("here"), pieces, None, quiet)
    fill_on_ray(embedder("two workers"), pieces, RayOptions(), 2, kill_once)
    assert killed
    assert (reports[0], reports[-1]) == ((0, 300), (300, 300)), "the probes are no texts of the groups"
    assert rows(tmp_path / "two workers") == rows(tmp_path / "here")

    embedder("interrupted").fill_cache((*pieces[3].texts[:4], *pieces[7].texts), quiet)
    fill_on_ray(embedder("interrupted"), pieces, RayOptions(), 1, quiet)
    assert rows(tmp_path / "interrupted") == rows(tmp_path / "here")

    wrong = contract.model_copy(update={"probes": (probes[0].model_copy(update={"vector": probes[1].vector}),)})
    monkeypatch.setattr(
        "pluralllm.experiment.engines.ray_embedding.connected", lambda *_: pytest.fail("none is lacking")
    )
    with pytest.raises(EmbeddingMismatch):
        fill_on_ray(Embedder(wrong, tiny, tmp_path / "here", CPU), pieces, RayOptions(), 1, quiet)


def test_a_machine_with_another_model_in_its_folder_embeds_nothing(tmp_path: Path) -> None:
    tiny = tiny_embedding_model(tmp_path / "model")
    contract = Embedding(model="tiny", templates=("{question}", "{option}"), dimension=2 * WIDTH)
    files = model_files(tiny)
    assert ("config.json", (tiny / "config.json").stat().st_size) in files
    texts = ("Tea?", "Coffee?")
    order = EmbedOrder(contract.model_dump_json(), tiny, files, "cpu", texts, frozenset(texts), Terms(versions_here()))
    batches = embed_piece(order).answer
    assert batches is not None
    assert sorted(text for batch, _, _ in batches for text in batch) == sorted(texts)
    for folder in (tiny, tmp_path / "not there"):
        outcome = embed_piece(
            replace(
                order, model_path=folder, files=(*files, ("more", 1)), contract_json=contract.model_dump_json(indent=1)
            )
        )
        assert outcome.error is not None
        assert outcome.error[0] == "MODEL_UNAVAILABLE"
        assert f"{folder} on " in outcome.error[1]["problem"]


def test_workers_of_other_versions_are_refused_or_named_in_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(small_plan(tmp_path, monkeypatch), only=("one",))
    here = versions_here() | {"numpy": "1.0"}
    monkeypatch.setattr(ray_cluster, "versions_here", lambda: here)  # of the driver
    with pytest.raises(InvalidArgument, match=r"a worker that has numpy [\d.]+, here 1\.0.*--mixed"):
        run_experiment(replace(plan, ray=RayOptions()), quiet)
    run_experiment(replace(plan, ray=RayOptions(is_mixed=True)), quiet)
    (difference,) = files_of(plan.out)["one.seed0.jsonl"][0]["mixed"]
    assert difference.startswith("numpy ")


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "ray://host:port"):
        with (
            pytest.raises(InvalidArgument, match=f"is '{address}', where no Ray answers"),
            ray_cluster.connected(RayOptions(address), 1),
        ):
            pass


def test_a_gpu_that_is_not_there_and_an_error_of_a_unit_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, monkeypatch, {"rounds": 5, "seeds": [0]})
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgument, match="this machine has 0 GPUs"):
            run_experiment(replace(plan, ray=RayOptions(gpus_per_unit=0.5)), quiet)
    first, _ = plan.experiment.methods
    diverging = first.spec | {"training": first.spec["training"] | {"optimizer": "sgd", "learning_rate": 1e30}}
    diverges = plan.experiment.model_copy(update={"methods": (first.model_copy(update={"spec": diverging}),)})
    with pytest.raises(NotFinite):
        run_experiment(replace(plan, experiment=diverges, out=plan.out.with_name("diverges"), ray=RayOptions()), quiet)
