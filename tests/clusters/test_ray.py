"""Experiments on a real Ray of this machine: the same files as without it, whatever happens to its workers.

Ray is an extra that `make test` does not install. Run these tests with `make ray`.
"""

import hashlib
import importlib
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

# Before the imports below, which take a second: where Ray is not installed, nothing of this module is run.
ray = pytest.importorskip("ray", reason="Ray is not installed; make ray runs these tests")
psutil = pytest.importorskip("psutil")

import torch
from support.cached_vectors import rows
from support.process_harness import WIDTH, tiny_embedding_model
from support.small_experiment import GROUPS, files_of, small_plan
from support.small_survey import small_group

from pluralllm.client.work.embedding_pool import cut, fill
from pluralllm.common.errors.tree import EmbeddingMismatch, InvalidArgument, NotFinite
from pluralllm.common.predictor import encoder
from pluralllm.common.predictor.embedding import Embedder, make_probes
from pluralllm.common.words.embedding import Embedding
from pluralllm.experiment.engines import ray_cluster
from pluralllm.experiment.engines.ray_embedding import EmbedOrder, embed_piece, fill_on_ray, model_files, terms_of
from pluralllm.experiment.engines.ray_passes import RayPasses
from pluralllm.experiment.engines.ray_workers import EMBEDDING_PACKAGES, Terms, gpu_here, in_order, versions_here
from pluralllm.experiment.engines.units import RayOptions
from pluralllm.experiment.federated import federate
from pluralllm.experiment.play import Player
from pluralllm.experiment.runner import Plan, run_experiment
from pluralllm.experiment.spec import Virtual
from pluralllm.experiment.virtual import groups_of_clients

T = TypeVar("T")
TRAIN_PASS = "pluralllm.experiment.engines.ray_passes.train_pass"
EMBED_PIECE = "pluralllm.experiment.engines.ray_embedding.embed_piece"
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
            with suppress(ProcessLookupError):  # then the next report kills one
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(workers[0].pid)

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


LIMIT_S = 120.0  # for a task to begin, and for its killer to come


@contextmanager
def killed_in(
    task: str, folder: Path, is_meant: Callable[[Any], bool] = lambda _order: True
) -> Iterator["Future[int]"]:
    """Kills the worker of the first task that begins, once, in the middle of that task. Yields the killed process id to come.

    The task waits until it is killed. task: module and name of its function. is_meant: whether a task's order is such a one.
    """
    module, _, name = task.rpartition(".")
    flag = folder / "waits"

    def held_task(order: Any, *others: Any) -> Any:
        if is_meant(order):
            with suppress(FileExistsError), flag.open("x") as file:
                file.write(f"{os.getpid()}\n")
                file.flush()
                time.sleep(LIMIT_S)
                raise TimeoutError("nobody has killed this task")
        return getattr(importlib.import_module(module), name)(order, *others)

    def kill() -> int:
        until_s = time.monotonic() + LIMIT_S
        while time.monotonic() < until_s:
            if flag.exists() and (text := flag.read_text()).endswith("\n"):
                with suppress(ProcessLookupError):
                    os.kill(int(text), signal.SIGKILL)
                return int(text)
            time.sleep(0.02)
        raise TimeoutError(f"no {task} has begun")

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as killer:
        patch.setattr(task, held_task)
        yield killer.submit(kill)


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
    for workers in (1, 2):
        with ray_cluster.connected(RayOptions(), workers):
            passes = RayPasses(spec, Terms(versions_here()))
            assert digests(passes) == expected
            assert passes.elsewhere_s > 0
            assert most_begun(20) == 2 * workers
    with (
        ray_cluster.connected(RayOptions(), 2),
        killed_in(TRAIN_PASS, tmp_path, lambda order: order.number == 2) as pid,
    ):
        assert digests(RayPasses(spec, Terms(versions_here()))) == expected
        assert pid.result()


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


def test_a_cluster_embeds_the_same_vectors_also_after_a_killed_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "TEXTS_AT_ONCE", 10)
    tiny = tiny_embedding_model(tmp_path / "model")
    contract = Embedding(model="tiny", templates=("{question}", "{option}"), dimension=2 * WIDTH)
    probes = make_probes(contract, tiny, tmp_path / "probes", CPU)
    contract = contract.model_copy(update={"probes": probes})
    pieces = cut([f"{'Agree ' * (number % 7)}Tea {number}?" for number in range(300)])
    reports: list[tuple[int, int]] = []

    def embedder(folder: str) -> Embedder:
        return Embedder(contract, tiny, tmp_path / folder, CPU)

    fill(embedder("here"), pieces, None, quiet)
    with killed_in(EMBED_PIECE, tmp_path, lambda order: order.texts == pieces[2].texts) as pid:
        fill_on_ray(embedder("two workers"), pieces, RayOptions(), 2, lambda *facts: reports.append(facts))
        assert pid.result()
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


def order_of(folder: Path | None, **changes: Any) -> EmbedOrder:
    """Returns an order for two texts. folder: of the model. changes: of the contract."""
    facts = {"model": "tiny", "templates": ("{question}", "{option}"), "dimension": 2 * WIDTH} | changes
    texts, terms = ("Tea?", "Coffee?"), Terms(versions_here(EMBEDDING_PACKAGES))
    contract = Embedding.model_validate(facts).model_dump_json()
    return EmbedOrder(contract, folder, model_files(folder), "cpu", texts, frozenset(texts), terms)


def test_a_machine_with_another_model_in_its_folder_embeds_nothing(tmp_path: Path) -> None:
    model = shutil.copytree(tiny_embedding_model(tmp_path / "model"), tmp_path / "copy")
    order = order_of(model)
    batches = embed_piece(order).answer
    assert batches is not None
    assert sorted(text for batch, _, _ in batches for text in batch) == sorted(order.texts)

    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # another checkpoint with files of the same sizes
    other = order_of(model)
    assert [name for name, _ in other.files] == [name for name, _ in order.files]
    assert embed_piece(other).answer, "a worker loads the model of each driver anew"
    for folder, files in (
        (model, order.files),
        (tmp_path / "not there", order.files),
        (model, (*other.files, ("b", ""))),
    ):
        outcome = embed_piece(replace(order, model_path=folder, files=files))
        assert outcome.error is not None
        assert outcome.error[0] == "MODEL_UNAVAILABLE"
        assert f"{folder} on " in outcome.error[1]["problem"]


def test_a_machine_that_loads_another_model_by_its_id_embeds_nothing(tmp_path: Path) -> None:
    model = tiny_embedding_model(tmp_path / "model")
    by_id = Embedding(model=str(model), templates=("{question}", "{option}"), dimension=2 * WIDTH)
    probes = make_probes(by_id, None, tmp_path / "probes", CPU)
    assert embed_piece(order_of(None, model=str(model), probes=probes)).answer
    swapped = (probes[0].model_copy(update={"vector": probes[1].vector}),)
    outcome = embed_piece(order_of(None, model=str(model), probes=swapped))
    assert outcome.error is not None
    assert outcome.error[0] == "EMBEDDING_MISMATCH"


def test_workers_of_other_versions_or_gpus_embed_nothing_unless_they_may_be_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_embedding_model(tmp_path / "model")
    order = order_of(model)
    here, gpu = dict(order.terms.versions), gpu_here()
    for terms, difference in (
        (Terms(here | {"tokenizers": "0.1"}), f"tokenizers {here['tokenizers']}, here 0.1"),
        (Terms(here | {"transformers": "1.0"}), f"transformers {here['transformers']}, here 1.0"),
        (Terms(here, gpu="a GPU"), f"GPU {gpu}, another worker a GPU"),
    ):
        outcome = embed_piece(replace(order, terms=terms))
        assert outcome.error is not None
        assert outcome.error[0] == "INVALID_ARGUMENT"
        assert f"a worker that has {difference}." in outcome.error[1]["problem"]
        outcome = embed_piece(replace(order, terms=replace(terms, is_mixed=True)))
        assert outcome.answer
        assert outcome.differences == (difference,)
    assert embed_piece(replace(order, terms=Terms(here, gpu=gpu))).answer

    def of_driver(packages: tuple[str, ...]) -> dict[str, str]:
        return {name: "0.1" if name == "tokenizers" else facts for name, facts in versions_here(packages).items()}

    monkeypatch.setattr("pluralllm.experiment.engines.ray_embedding.versions_here", of_driver)
    contract = Embedding.model_validate_json(order.contract_json)
    with pytest.raises(InvalidArgument, match=r"a worker that has tokenizers [\d.]+, here 0\.1"):
        fill_on_ray(Embedder(contract, model, tmp_path / "cache", CPU), cut(order.texts), RayOptions(), 1, quiet)


def test_the_first_worker_says_which_kind_of_gpu_all_workers_must_have() -> None:
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert terms_of(RayOptions(gpus_per_unit=0.5)).gpu == gpu_here()
        assert terms_of(RayOptions(is_mixed=True)) == Terms(versions_here(EMBEDDING_PACKAGES), is_mixed=True)
    finally:
        ray.shutdown()


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
