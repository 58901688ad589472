"""The commands of the page of tasks are typed in order, on its files, with a tiny embedding model and short rounds."""

import contextlib
import io
import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.documented import PAGES, ROOT, blocks
from support.exported_model import export
from support.process_harness import WIDTH, tiny_embedding_model
from typer.main import get_command

from pluralllm.align import GroupReward
from pluralllm.cli.__main__ import command_line
from pluralllm.client.__main__ import app as client
from pluralllm.client.data.codebook import kept_codebook
from pluralllm.client.data.private_data import read_counted, read_group
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.spec import RunSpec, merge
from pluralllm.common.words.usual_embedding import load_spec
from pluralllm.experiment.federated import federate
from pluralllm.experiment.groups import embed_groups

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.usefixtures("forked_starts")]
PAGE = next(page for page in PAGES if page.name == "tasks.md")
MODELS = {
    "$MODEL": "tiny",
    "$MULTILINGUAL": "tiny",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": "tiny",
}


class Reader:
    """A reader who types the commands of the page in one folder, in the place of the rounds trains in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, dict[str, str]()
        shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
        tiny_embedding_model(folder / "tiny")

    def type(self, line: str) -> None:
        """Runs one command of the page, which must succeed."""
        words = [MODELS.get(word, word) for word in shlex.split(line)]
        target = words.pop(words.index(">") + 1) if ">" in words else ""
        name, *arguments = (word for word in words if word != ">")
        if arguments[:2] == ["spec", "new"]:
            arguments += ["--width", str(WIDTH), *([] if "--model" in arguments else ["--model", "tiny"])]
        if name == "pluralllm" and arguments[0] in {"score", "pairs"}:
            arguments += ["--cache", "cache", "--device", "cpu"]
            self.train(Path(arguments[arguments.index("--context") + 1]))
        if arguments[:2] == ["model", "export"]:
            return  # the rounds and their export: `train`
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            commands = get_command(client) if name == "pluralllm-client" else command_line()
            code = commands.main(arguments, prog_name=name, standalone_mode=False)
        assert not code, f"{line}\n{printed.getvalue()}"
        self.said[line] = printed.getvalue()
        if target:
            Path(target).write_text(printed.getvalue())

    def output_of(self, words: str) -> str:
        """Returns what the first command that has these words has printed."""
        return next(output for line, output in self.said.items() if words in line)

    def train(self, data: Path) -> None:
        """Trains two clients with a partner's file for one round of the page's spec, and writes the model folder."""
        spec = short(load_spec(Path("run.toml")))
        questions = dict.fromkeys(sorted(spec.groups.train), read_group(data))
        cpu = torch.device("cpu")
        groups = embed_groups(spec, questions, Path("tiny"), Path("cache"), cpu, lambda _done, _all: None)
        first, last = federate(spec, groups, cpu)
        assert (first.values != last.values).any()
        layout = layout_for(spec)
        ends = np.cumsum([math.prod(shape) for _, shape in layout.tensors])
        write_weights(Path("weights"), layout, np.split(last.values, ends[:-1]))
        export(Path("model"), spec, Path("weights"))


def short(spec: RunSpec) -> RunSpec:
    """Returns the page's spec with one plain round of two clients, two steps and a small predictor."""
    values = spec.model_dump(mode="json", exclude_none=True, exclude={"private_rounds"})
    changes = {
        "rounds": 1,
        "groups": {"train": ["a", "b"]},
        "round": {"min_clients": 2, "target_clients": 2},
        "predictor": {"features": 32, "group_rank": 4},
        "training": {"local_steps": 2},
    }
    return RunSpec.model_validate(merge(values, changes))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        typing = Reader(folder)
        for block in blocks(PAGE):
            for line in block.commands:
                typing.type(line)
        yield typing


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_survey_is_imported_with_its_weights_and_without_its_missing_codes(reader: Reader) -> None:
    questions = read_counted(Path("north.jsonl"))
    assert len(questions) == 40
    assert questions[0].options == ("A great deal", "Quite a lot", "Not very much", "Not at all")
    respondents = [question.respondents or 0 for question in questions]
    assert max(respondents) <= 50, "half of the respondents live in the north"
    assert 40 * 45 < sum(respondents) < 40 * 50, "answers of some are missing"
    assert sum(questions[0].counts) != respondents[0], "counts are weighted"
    assert len(kept_codebook(Path("north.jsonl")).asked or ()) == 40, "a release needs the list of what was asked"
    output = reader.output_of("survey.csv")
    assert "100 rows" in output
    assert "a release with epsilon 4 adds noise of 0.268" in output
    assert "(0.27 on a share)" in PAGE.read_text()
    assert "| 1,000, 300 | 0.079 | 0.041 | 0.022 |" in (ROOT / "docs" / "respondents.md").read_text()


def test_every_reward_of_the_page_is_written(reader: Reader) -> None:
    scored = rows("scored.jsonl")
    assert all(0 < row["reward"] < 1 for row in scored)
    for name, options in (("scored", 4), ("ranked", 2), ("translated", 2)):
        assert all(len(row["predicted_shares"]) == options for row in rows(f"{name}.jsonl"))
    assert {"prompt", "chosen", "rejected"} <= rows("pairs.jsonl")[0].keys()
    reward = GroupReward("model", {"north": "north.jsonl"}, embedding_model_path="tiny", cache="cache", device="cpu")
    asked = rows("docs/examples/asked-survey.jsonl")
    values = reward(
        [row["question"] for row in asked],
        [row["completion"] for row in asked],
        options=[row["options"] for row in asked],
    )
    assert all(value is not None for value in values)


def test_preferences_of_the_page_have_two_candidates_a_prompt_and_the_votes_of_their_group(reader: Reader) -> None:
    for file, prompts in (("german", 36), ("worker-a", 36), ("en-de", 36)):
        questions = read_group(Path(f"{file}.jsonl"))
        assert len(questions) == prompts
        assert {len(question.options) for question in questions} == {2}
    assert all(min(question.shares) == 0 for question in read_group(Path("worker-a.jsonl")))
    assert all(0 < min(question.shares) < 0.5 for question in read_group(Path("en-de.jsonl")))
    assert "Preset for a run on preferences: default" in reader.output_of("arena.jsonl")


def test_every_check_of_the_page_finds_enough_questions(reader: Reader) -> None:
    checks = [output for line, output in reader.said.items() if " check " in line]
    assert len(checks) == 4
    for output in checks:
        found = re.search(r"training questions +(\d+)", output)
        assert found is not None
        assert int(found[1]) >= 20


def test_figures_of_the_page_stand_in_the_results() -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for row in (
        "| **default, mean** | 30 | | **0.8314 / 0.8171** | **+0.0236** | |",
        "| 64 | 60 rounds of 12 steps | 0.8523 (0.846 to 0.858) | 0.8351 | 0.8251 | +0.0271 |",
        "| translations | daemons | 0 | 0.92 | 0.92 | 0.67 |",
        "| summaries | daemons | 0 | 0.93 | 0.93 | 0.70 |",
    ):
        assert row in results
    text = " ".join(PAGE.read_text().split())
    for figure in (
        "0.831 on unseen countries (worst 0.817), context gain +0.024; 64 countries: 0.852, +0.027",
        "0.93 on unseen groups, 0.70 with uniform",
        "0.92 on unseen groups, 0.67 with uniform",
    ):
        assert figure in text
