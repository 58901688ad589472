"""The commands `pluralllm experiment table`, `pluralllm experiment report` and `pluralllm report`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.coordinator_harness import serving, small_spec, write_delta
from support.synthetic_results import SMALL, write_results

from pluralllm.common.words.roles import MemberRole
from pluralllm.common.words.spec import GroupRole

LIMIT_S = 90
WITHOUT = """
import importlib.util, runpy, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == MISSING else real(name, *rest)
sys.argv = ["pluralllm", *sys.argv[1:]]
try:
    runpy.run_module("pluralllm.cli", run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""


def pluralllm(*arguments: str, missing: str = "torch", **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command as on a machine without a package, by default torch; none of these commands needs torch."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.replace("MISSING", repr(missing)), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"), SMALL, seeds=(0,), draws=1, questions=60)


def test_a_report_is_a_page_and_its_figures(results: Path, tmp_path: Path) -> None:
    done = pluralllm("experiment", "report", str(results), "--out", str(tmp_path / "out"), "--threshold", "0.7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "out" / "report.html")
    assert done.stderr == ""
    assert "Until mean alignment of 0.7<" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "convergence.png").exists()


def test_the_table_is_for_people_and_for_programs(results: Path) -> None:
    shown = pluralllm("experiment", "table", str(results), "--costs", COLUMNS="200")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[2].split("  ")[0].strip() == "FedAvg default"
    assert shown.stdout.splitlines()[2].split()[-3:-1] == ["60", "2,688,000,000"]  # rounds and bytes moved
    lines = json.loads(pluralllm("experiment", "table", str(results), "--json", "--part", "validation").stdout)[
        "methods"
    ]
    assert lines[0]["method"] == "FedAvg default"
    assert lines[0]["cost"]["gradient_steps"] == 360
    assert lines[0]["mean"]["low"] < lines[0]["mean"]["value"] < lines[0]["mean"]["high"]
    one = json.loads(pluralllm("experiment", "table", str(results), "--json", "--kind", "withheld").stdout)["methods"]
    assert one[0]["questions"] == 8  # every eighth of 60 questions, see synthetic_results


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nowhere"], "no such folder"),
        (["table", "nowhere"], "no such folder"),
        (["table", "RESULTS", "--context", "7"], "sizes 1, 5, 10, 20, 40"),
        (["table", "RESULTS", "--part", "exam"], "allowed: test, validation, train"),
        (["table", "RESULTS", "--kind", "hard"], "allowed: answered, unanswered, withheld"),
        (["table", "RESULTS", "--part", "train", "--kind", "answered"], "no such questions of training groups"),
        (["report", "RESULTS", "--main", "FedAvg papers"], "there are: "),
    ],
)
def test_bad_input_is_one_clear_error(results: Path, arguments: list[str], words: str) -> None:
    done = pluralllm("experiment", *(str(results) if word == "RESULTS" else word for word in arguments))
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["experiment", "report", "x"], ["report", "-"]])
def test_a_light_install_is_told_what_to_install(command: list[str]) -> None:
    done = pluralllm(*command, missing="matplotlib")
    assert done.returncode == 3
    install = "pip install 'pluralllm-research[experiment]'"
    assert done.stderr == f"error: This needs matplotlib, which is not installed. {install} [EXTRA_MISSING]\n"


async def test_a_live_run_has_a_report(tmp_path: Path) -> None:
    """The run has had one round of two clients and has an unseen group; an administrator and an observer ask for the report."""
    import asyncio  # noqa: PLC0415

    spec = small_spec(round={"evaluate_every": 1})
    async with serving(tmp_path / "state") as served:
        clients = [
            await served.client("ann"),
            await served.client("ben"),
            await served.client("zoe", GroupRole.HELD_OUT),
        ]
        await served.member("eve", MemberRole.OBSERVER)
        await served.create("r", spec)
        for client in clients:
            await client.evaluate(await client.task(), 0.6)
        for number, client in enumerate(clients[:2]):
            await client.push(
                await client.task(), tmp_path / f"{number}", write_delta(tmp_path / f"{number}", spec, number)
            )
        for client in clients:
            await client.evaluate(await client.task(), 0.7)
        for who, shown_text in (("admin", "members"), ("eve", "told to administrators and clients only")):
            done = await asyncio.to_thread(
                pluralllm,
                "report",
                "--out",
                str(tmp_path / who),
                PLURALLLM_IDENTITY=str(served.identities / who),
                PLURALLLM_COORDINATOR=served.address,
            )
            assert done.returncode == 0, done.stderr
            html = (tmp_path / who / "report.html").read_text()
            assert "Run r" in html
            assert "group of zoe" in html
            assert shown_text in html.lower()
            assert (tmp_path / who / "live-groups.png").exists()
