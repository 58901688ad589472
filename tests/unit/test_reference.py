"""The generated pages of docs/reference, and other texts about metrics, agree with the code."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = ("metrics.md", "events.md", "run-spec.md", "errors.md", "json.md", "protocol.md")
SUFFIXES = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), str(folder)], check=True, timeout=100)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_the_code_says_today(made: Path, page: str) -> None:
    assert (REFERENCE / page).read_text() == (made / page).read_text(), "run `make docs`"


def test_every_code_that_the_documentation_names_exists() -> None:
    all_codes = set(re.findall(r"^\| `([A-Z_]+)`", (REFERENCE / "errors.md").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"^\| ([A-Z]+(?:_[A-Z]+)*) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    )
    assert len(named) >= 6
    assert named <= all_codes


def documented() -> set[str]:
    return set(re.findall(r"^\| `(pluralllm_\w+)`", (REFERENCE / "metrics.md").read_text(), re.MULTILINE))


def test_every_key_of_the_run_spec_and_every_instrument_has_a_line() -> None:
    assert {"pluralllm_rounds_total", "pluralllm_client_retries_total", "pluralllm_alignment_score"} <= documented()
    assert "`share_scale`" in (REFERENCE / "run-spec.md").read_text()


def test_the_dashboard_asks_for_metrics_that_exist_only() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "pluralllm.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 10
    asked = {name for query in queries for name in re.findall(r"pluralllm_\w+", query)}
    assert {re.sub(f"({'|'.join(SUFFIXES)})$", "", name) for name in asked} - documented() == set()
