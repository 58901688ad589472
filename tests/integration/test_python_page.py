"""The code of docs/python.md is executed: with a tiny model, an invented survey and a real coordinator in this process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.coordinator_harness import Served, pass_first_evaluation, serving, until_phase
from support.process_harness import tiny_embedding_model
from support.python_blocks import REWARD, SIMULATION, blocks_of, executed
from support.synthetic_results import SMALL, write_results

from pluralllm.api import Federation
from pluralllm.experiment import runner
from pluralllm.v1 import operations_pb2, resources_pb2

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
CHANGES = {
    **SIMULATION,
    **REWARD,
    "every=10)": 'every=2, embedding_model_path="tiny", device="cpu")',
    "start=True)": "start=True, plain_rounds=True)",  # the clients that the test plays have no peer keys
    '"paper.toml"': f'"{ROOT / "benchmarks" / "experiments" / "paper.toml"}"',
}


def invite(served: Served, file: Path) -> None:
    """Writes an administrator's invite."""
    with Federation.connect(served.identities / "admin", coordinator=served.address) as federation:
        invitation = federation.invite("me", "admin", ttl_s=600)
    places = {"coordinator": served.address, "enrolment": served.enrolment_address}
    file.write_text(invitation.model_copy(update=places).to_json())


async def play(served: Served) -> None:
    """Plays the clients of the page's run: each reports a score, and the run is then cancelled."""
    while not await created(served):
        await served.parts.run_bell.wait(served.parts.run_bell.rings, 0.05)
    clients = [await served.client(name) for name in ("ann", "bob", "cyd", "dan", "eli")]
    await pass_first_evaluation(*clients)
    await until_phase(served, "first", resources_pb2.RUN_PHASE_COLLECTING)
    await served.operations.CancelRun(operations_pb2.CancelRunRequest(name="runs/first"), timeout=10)


async def created(served: Served) -> bool:
    """Returns whether the code of the page has created its run."""
    answer = await served.operations.ListRuns(operations_pb2.ListRunsRequest(page_size=1, summary=True), timeout=10)
    return bool(answer.runs)


@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::pluralllm.align.context_check.ContextGainWarning")
async def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    # Real experiments are played by test_experiment.py; here their results are invented.
    monkeypatch.setattr(runner, "run_experiment", lambda plan, _tell: write_results(plan.out, SMALL[:2], questions=20))
    tiny_embedding_model(tmp_path / "tiny")
    async with serving(tmp_path / "state") as served:
        await asyncio.to_thread(invite, served, tmp_path / "me.invite")
        code, _ = await asyncio.gather(asyncio.to_thread(executed, PAGE, CHANGES), play(served))
    names: dict[str, Any] = code
    assert 0 < names["simulation"].alignment["Greenhill"] < 1
    assert set(names["gains"]) == {"Greenhill", "Goldcrest"}
    assert sum(names["answer"].shares.values()) == pytest.approx(1.0, abs=1e-5)
    assert 0 < names["rewards"][0] < 1
    assert len(names["table"]) == 5
    assert sorted(path.name for path in (tmp_path / "weights").glob("*.json")) == ["provenance.json", "run_spec.json"]
    assert len(names["results"].frame()) == 2
    assert "group of ann 0 0.7" in capsys.readouterr().out


def test_every_section_of_the_page_has_code() -> None:
    sections = PAGE.read_text().split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections if "```python" not in section] == []
    assert len(blocks_of(PAGE)) == len(sections)
