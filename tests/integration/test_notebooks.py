"""The notebooks of docs/notebooks are executed, with a tiny model."""

import ast
import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_harness import HandClient, pass_first_evaluation
from support.process_harness import free_port, tiny_embedding_model
from support.python_blocks import REWARD, SENTENCES, SIMULATION, TINY, blocks_of, executed
from support.session_folder import embeddings
from support.synthetic_results import SMALL, write_results

from pluralllm.api import Federation
from pluralllm.client.joining.joining import join
from pluralllm.common.trust.identity import Identity
from pluralllm.common.wire.channels import secure_channel
from pluralllm.common.words.roles import GroupRole, MemberRole

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
SURVEY_TO_PREDICTOR = SIMULATION | {"every=10)": 'every=1, embedding_model_path="tiny", device="cpu", progress=False)'}
SIGHT = {
    SENTENCES: TINY + '}, "predictor": {"features": 1024',
    '"Greenhill", spec)': '"Greenhill", spec, embedding_model_path="tiny", cache=cache)',
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Executes the notebook from a survey to a predictor; returns its folder, with the model, and its names."""
    folder = tmp_path_factory.mktemp("survey")
    tiny_embedding_model(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        return folder, executed(NOTEBOOKS / "survey-to-predictor.ipynb", SURVEY_TO_PREDICTOR)


def test_a_survey_becomes_a_predictor(survey: tuple[Path, dict[str, Any]]) -> None:
    _, names = survey
    assert names["same"].shares == pytest.approx(names["answer"].shares, abs=1e-5)
    assert len(names["frame"]) == 3 * 6


@pytest.mark.filterwarnings("ignore::pluralllm.align.context_check.ContextGainWarning")
def test_a_reward_reads_completions_and_fits_into_the_trainer(
    survey: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = survey
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    names: dict[str, Any] = executed(NOTEBOOKS / "reward-for-trl.ipynb", REWARD)
    *read, refused = names["rewards"]
    assert all(0 < value < 1 for value in read)
    assert refused is None
    assert dict(names["reward"].unscored) == {"names no option": 2}  # by the call, and by score
    assert len(names["values"]) == 4
    assert all(0 < value < 1 for value in names["values"])
    (call,) = [block for block in blocks_of(NOTEBOOKS / "reward-for-trl.ipynb") if "GRPOTrainer" in block]
    for made in ("GRPOTrainer", "GRPOConfig"):
        assert keywords(call, made) <= parameters(made), made


def keywords(code: str, name: str) -> set[str | None]:
    """Returns the names of the arguments with which some code calls a class."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (call,) = [one for one in calls if isinstance(one.func, ast.Name) and one.func.id == name]
    assert call.keywords
    return {one.arg for one in call.keywords}


def parameters(name: str) -> set[str]:
    """Returns the arguments of a class of TRL, read from its source, because an import of TRL takes seconds."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "trainer"
    nodes = [
        node
        for file in ("grpo_trainer.py", "grpo_config.py", "base_config.py")
        if (folder / file).exists()
        for node in ast.walk(ast.parse((folder / file).read_text(encoding="utf-8")))
    ]
    accepted = {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.ClassDef) and node.name == name:
            made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
            accepted |= {argument.arg for one in made for argument in one.args.args}
    return accepted | {"output_dir"}  # of transformers' TrainingArguments


def test_a_coordinator_reads_every_answer_from_a_plain_update_and_none_from_a_masked_one(
    survey: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(survey[0])
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = executed(NOTEBOOKS / "what-the-coordinator-sees.ipynb", SIGHT, cache=embeddings())
    sight, alone, questions = names["sight"], names["alone"], len(names["sight"].distances["plain update"])
    assert sight.sum_is_exact
    assert sight.recovered["plain update"] == questions > 50
    assert sight.recovered["masked update"] == 0
    far = sight.mean_distances
    assert far["plain update"] < 0.001 < far["sum of all updates"] < far["equal shares"] < far["masked update"]
    assert sight.recovered["sum of all updates"] < questions / 2 < alone.recovered["sum of all updates"] + 10
    assert alone.recovered["masked update"] == 0


SAMPLE = 'subprocess.run(["pluralllm-client", "data", "sample", "--out", "survey", "--groups", "5"], check=True)'


@pytest.mark.timeout(100)
async def test_a_federation_is_joined_and_its_run_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The coordinator is a real process. The test plays the partners, whose daemons would take half a minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    addresses = [f'"--listen", "127.0.0.1:{free_port()}"', f'"--enrolment-listen", "127.0.0.1:{free_port()}"']
    changes = {
        '"coordinator"]': f'"coordinator", {", ".join(addresses)}]',
        "[partner(name) for name in names]": "partners(federation, names)",
        SAMPLE: "",  # nobody reads the partners' files here
        '"first", spec)': '"first", spec, plain_rounds=True)',  # the clients that the test plays have no peer keys
        "\npin()\n": "\n",
    }
    loop, played = asyncio.get_running_loop(), []

    def partners(federation: Federation, names: list[str]) -> list[Any]:
        identities = []
        for name in names:
            invite = federation.invite(name, "client")
            identities.append(join(invite, tmp_path / name, "test", frozenset({MemberRole.CLIENT}))[0])
        played.append(asyncio.run_coroutine_threadsafe(play(federation, identities), loop))
        return []

    with ended_processes(monkeypatch):
        notebook = NOTEBOOKS / "joining-a-federation.ipynb"
        names: dict[str, Any] = await asyncio.to_thread(executed, notebook, changes, partners=partners)
        await asyncio.wrap_future(played[0])
    output = capsys.readouterr().out
    assert "plain rounds" in output
    assert "version 0, harbourland: 0.7" in output
    assert set(names["frame"].group) == set(names["names"])


async def play(federation: Federation, identities: list[Identity]) -> None:
    """Plays the partners: each reports a score, and the run is then cancelled."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for identity in identities:
            channel = await stack.enter_async_context(secure_channel(identity))
            name = identity.membership.name
            clients.append(HandClient(channel, name, GroupRole.TRAIN, name))
            await clients[-1].hello()
        await pass_first_evaluation(*clients)
        await asyncio.to_thread(lambda: federation.run("first").cancel())


@contextlib.contextmanager
def ended_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the processes that the block has started, if it fails before it ends them itself."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    try:
        yield
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait(10)


def test_the_results_of_an_experiment_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results", SMALL[:3], questions=20)
    names: dict[str, Any] = executed(NOTEBOOKS / "reading-results.ipynb", {})
    assert list(names["frame"].columns)[:2] == ["method", "seeds"]
    assert len(names["by_round"].groupby(level=0).last()) == 3


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_holds_code_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert blocks_of(notebook)
    assert [cell["source"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert [block for block in blocks_of(notebook) if "\n%" in f"\n{block}"] == []  # magic commands are no Python
