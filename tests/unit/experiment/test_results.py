"""Complete results are read; incomplete ones are refused with the file, the line and the remedy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_results import SMALL, TEST, TRAIN, VALIDATION, write_results

from pluralllm.common.errors.tree import InvalidResults
from pluralllm.experiment.results import question_number, read_results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"), SMALL, seeds=(0,), draws=2, questions=60)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "results"))


def change_header(path: Path, **changes: object) -> None:
    header, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps({**json.loads(header), **changes}) + "\n" + rest)


def test_results_are_read_as_columns(whole: Path) -> None:
    results = read_results(whole)
    assert [result.method for result in results] == sorted(made.name for made in SMALL)
    default = next(result for result in results if result.method == "FedAvg default")
    assert len(default.points) == 13
    assert {d.group for d in default.distributions} == set(TEST[:2])
    scores = default.scores[0]
    assert len(scores.question) == len(scores.kind) == len(scores.distance) == len(scores.error) > 0
    assert set(scores.draw.tolist()) == {0, 1}
    assert default.gains[0].gain == pytest.approx(0.023)
    assert {one.group for one in default.gains} == {*TRAIN, *VALIDATION, *TEST}
    uniform = next(result for result in results if result.method == "uniform")
    assert (uniform.points, uniform.gains) == ((), ())
    assert np.isnan(uniform.scores[0].log_std).all()


def test_a_question_has_one_number_wherever_it_is_read() -> None:
    assert question_number("a") == question_number("a") != question_number("b")


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no such folder"), ("", "experiment run")])
def test_a_folder_without_results_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InvalidResults, match=words):
        read_results(tmp_path / name)


@pytest.mark.parametrize("key", ["experiment_sha256", "data_sha256"])
def test_two_experiments_in_one_folder_are_refused(folder: Path, key: str) -> None:
    change_header(folder / "uniform.seed0.jsonl", **{key: "f" * 64})
    with pytest.raises(InvalidResults, match=r"uniform.seed0.jsonl and .* of different .*ffffffff.*folder of its own"):
        read_results(folder)


def test_one_seed_twice_is_refused(folder: Path) -> None:
    shutil.copy(folder / "uniform.seed0.jsonl", folder / "uniform-again.jsonl")
    with pytest.raises(InvalidResults, match="both hold uniform with seed 0"):
        read_results(folder)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (
            lambda text: text[: len(text) // 2],
            r"line \d+: not whole JSON; delete the file and run the experiment again",
        ),
        (lambda text: "", "no header"),
        (lambda text: text.split("\n")[0] + "\n", "ends before the final scores"),
        (lambda text: text.replace('"distance"', '"x"').replace('"draws"', '"drawn"'), "line 2: 'draws' is missing"),
        (lambda text: '{"kind": "header"}\n', "line 1: the header lacks method, seed"),
        (lambda text: "[1]\n", "line 1"),
        (
            lambda text: (
                text.split("\n")[0] + '\n{"kind":"final","group":"g","part":"test","context":1,"draws":[[[1]]]}'
            ),
            "5 columns",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(folder: Path, keep: "object", words: str) -> None:
    path = folder / "uniform.seed0.jsonl"
    path.write_text(keep(path.read_text()))  # type: ignore[operator]
    with pytest.raises(InvalidResults, match=words) as refused:
        read_results(folder)
    assert "uniform.seed0.jsonl" in str(refused.value)


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "uniform.seed0.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidResults):
        read_results(folder)


def test_kinds_of_record_that_are_not_known_are_passed_over(folder: Path) -> None:
    path = folder / "uniform.seed0.jsonl"
    path.write_text(path.read_text() + '{"kind": "of later versions"}\n')
    assert len(read_results(folder)) == len(SMALL)
