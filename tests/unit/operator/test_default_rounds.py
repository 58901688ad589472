"""The rounds of a run that `pluralllm run create` makes: private from four clients on. What the file says is never changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.installed_package import VECTORS, Site, plugin
from typer.testing import CliRunner, Result

from pluralllm.cli import __main__ as command_line
from pluralllm.cli import run_commands
from pluralllm.cli.new_spec import new_spec
from pluralllm.common.errors.plugins import PluginBroken
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec
from pluralllm.common.words.plugins import Plugin
from pluralllm.common.words.private_rounds import MAX_WEIGHT
from pluralllm.common.words.run_state import READS_SINGLE, READS_SUMS
from pluralllm.common.words.spec import RunSpec, merge, parse_spec, spec_from_values, spec_values
from pluralllm.operator.default_rounds import NewRun, with_default_rounds

FILE = "run.toml"
EMBEDDING = {"embedding": {"model": "m", "dimension": 768}}
FIVE: dict[str, Any] = {**EMBEDDING, "groups": {"train": ["a", "b", "c", "d", "e"]}}


def made(values: dict[str, Any], *, plain: bool = False) -> NewRun:
    return with_default_rounds(values, FILE, plain=plain)


def added_by(note: str) -> dict[str, Any]:
    """Returns the lines that the command prints, as values of a spec file."""
    return spec_values("\n".join(line for line in note.splitlines() if line.startswith("  ")), "note")


def test_five_named_groups_have_private_rounds_of_five_and_a_quorum_of_four() -> None:
    new = made(FIVE)
    assert new.spec.private_rounds is not None
    assert (new.spec.round.min_clients, new.spec.round.target_clients) == (4, 5)
    assert (new.spec.private_rounds.colluders, new.spec.private_rounds.clip_norm) == (1, 16.0)
    assert new.spec.aggregation.max_examples == 1024
    assert new.note.startswith(f"private rounds: {READS_SUMS}. Partners first pin each other's keys: ")
    assert "run.toml has no table [private_rounds], and 5 clients train in a round" in new.note


@pytest.mark.parametrize(
    "values",
    [
        FIVE,
        {**FIVE, "preset": "fourier", "round": {"deadline_s": 7}},
        {**FIVE, "round": {"min_clients": 4, "target_clients": 4}, "private_rounds": {"colluders": 1}},
        {**EMBEDDING, "round": {"target_clients": 20}},
    ],
)
def test_with_the_printed_lines_the_file_has_the_spec_of_the_run(values: dict[str, Any]) -> None:
    new = made(values)
    assert spec_from_values(merge(values, added_by(new.note)), FILE).sha256() == new.spec.sha256()


def test_what_the_file_says_is_never_changed() -> None:
    stated = {"min_clients": 5, "target_clients": 5, "deadline_s": 7.0}
    new = made({**FIVE, "round": stated, "aggregation": {"max_examples": 77, "optimizer": "fedadam"}})
    assert new.spec.private_rounds is not None
    assert new.spec.round.model_dump(include=set(stated)) == stated
    assert (new.spec.aggregation.max_examples, new.spec.aggregation.optimizer) == (77, "fedadam")
    assert added_by(new.note) == {"private_rounds": {"colluders": 1}}
    table = {"colluders": 2, "clip_norm": 0.5}
    own = made({**FIVE, "round": {"min_clients": 4, "target_clients": 5}, "private_rounds": table})
    assert own.spec == spec_from_values(
        {**FIVE, "round": {"min_clients": 4, "target_clients": 5}, "private_rounds": table}, FILE
    )
    assert added_by(own.note) == {}


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"round": {"min_clients": 3}}, "round.min_clients to 4"),
        ({"aggregation": {"max_examples": MAX_WEIGHT + 1}}, "aggregation.max_examples to at most 16384"),
    ],
)
def test_a_key_that_keeps_rounds_from_being_private_is_refused_with_both_ways_out(
    changes: dict[str, Any], fix: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        made({**FIVE, **changes})
    assert fix in str(refused.value)
    assert f"or leave the rounds plain: --plain-rounds ({READS_SINGLE})" in str(refused.value)
    assert made({**FIVE, **changes}, plain=True).spec == spec_from_values({**FIVE, **changes}, FILE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"updates": {"encoding": "int8"}},
            "updates.encoding = fp32, because the scales of other encodings do not add",
        ),
        ({"aggregation": {"rule": "median"}}, "aggregation.rule median looks at single updates"),
        ({"round": {"min_clients": 70, "target_clients": 130}, "groups": {}}, "round.target_clients to at most 128"),
    ],
)
def test_settings_that_have_no_private_form_leave_the_rounds_plain_with_the_reason(
    changes: dict[str, Any], reason: str
) -> None:
    new = made({**FIVE, **changes})
    assert new.spec == spec_from_values({**FIVE, **changes}, FILE)
    assert new.note.startswith(f"plain rounds: {READS_SINGLE} (")
    assert reason in new.note
    assert new.note.endswith(
        'Only partners whose policy.toml says rounds = "allowed" in [private_rounds] train in them'
    )
    assert "\n" not in new.note


@pytest.mark.parametrize("clients", [2, 3])
def test_two_or_three_clients_have_plain_rounds_and_the_line_says_what_their_policies_need(clients: int) -> None:
    values = {**FIVE, "round": {"min_clients": 2, "target_clients": clients}}
    new = made(values)
    assert new.spec == spec_from_values(values, FILE)
    assert new.note == (
        f"plain rounds: {READS_SINGLE} ({clients} clients train in a round). A partner that demands private rounds consents "
        "first: pluralllm-client consent RUN"
    )


def test_plain_rounds_are_asked_for_and_contradict_the_table() -> None:
    new = made(FIVE, plain=True)
    assert new.spec == spec_from_values(FIVE, FILE)
    assert f"plain rounds: {READS_SINGLE} (--plain-rounds)." in new.note
    with pytest.raises(InvalidArgument, match=r"--plain-rounds: contradicts the table \[private_rounds\] of run.toml"):
        made({**FIVE, "private_rounds": {}, "round": {"min_clients": 4, "target_clients": 5}}, plain=True)


def test_a_run_that_asks_for_rewards_has_no_updates_and_so_no_word_about_them() -> None:
    rewards = {"source": "runs/first/models/7", "model_digest": "a1" * 32, "aggregation": {"rule": "mean"}}
    values = {**EMBEDDING, "round": {"target_clients": 9}, "rewards": rewards}
    assert made(values) == NewRun(spec_from_values(values, FILE), "")


class FakeRemote:
    """A coordinator that keeps the specs of created runs."""

    def __init__(self) -> None:
        self.specs: list[RunSpec] = []

    def create_run(self, run: str, spec_json: bytes) -> dict[str, Any]:
        self.specs.append(parse_spec(spec_json, run))
        return {"name": run, "evaluations": [], "previous_evaluations": []}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> FakeRemote:
    fake = FakeRemote()
    monkeypatch.setattr(run_commands, "remote", lambda _: fake)
    return fake


def create(*words: str) -> Result:
    result = CliRunner().invoke(command_line.app, ["run", "create", "r", *words, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["name"] == "r"
    return result


def test_the_command_makes_the_run_and_its_line_is_no_part_of_the_json(there: FakeRemote, tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text(new_spec(clients=8, plain_rounds=True))
    first, second = create(str(file)), create(str(file), "--plain-rounds")
    assert f"note: private rounds: {READS_SUMS}" in first.stderr
    assert f"note: plain rounds: {READS_SINGLE}" in second.stderr
    assert [spec.private_rounds is None for spec in there.specs] == [False, True]


def test_without_a_file_the_run_has_the_new_spec(there: FakeRemote) -> None:
    assert "  colluders" not in create().stderr, "nothing is added to it"
    create("--plain-rounds")
    assert [spec.private_rounds is None for spec in there.specs] == [False, True]
    assert {spec.round.target_clients for spec in there.specs} == {5}


def test_a_new_spec_is_printed_with_the_table_and_without_it() -> None:
    printed = [
        CliRunner().invoke(command_line.app, ["spec", "new", *words]).stdout for words in ((), ("--plain-rounds",))
    ]
    assert [text.rstrip("\n") for text in printed] == [new_spec(), new_spec(plain_rounds=True)]
    assert ["[private_rounds]\n" in text for text in printed] == [True, False]


def test_the_probes_of_an_installed_embedder_are_made_when_the_run_is_created(
    there: FakeRemote, tmp_path: Path, site: Site
) -> None:
    (tmp_path / FILE).write_text(new_spec(width=32, embedder=Plugin.model_validate(plugin(VECTORS))))
    assert "the spec has no probe vectors" in create(str(tmp_path / FILE)).stderr
    site.install("town_hall_methods", version="1.1")
    create(str(tmp_path / FILE))
    site.uninstall()
    site.install("town_hall_methods")
    assert "probe" not in create(str(tmp_path / FILE)).stderr
    assert [len(spec.embedding.probes) for spec in there.specs] == [0, 0, 3]
    words = ["run", "create", "r", str(tmp_path / FILE), "--embedding-model-path", "model"]
    with pytest.raises(InvalidArgument, match="has no use: the run spec names an embedder of another package"):
        CliRunner().invoke(command_line.app, words, catch_exceptions=False)
    (tmp_path / FILE).write_text(new_spec(width=16, embedder=Plugin.model_validate(plugin(VECTORS))))
    with pytest.raises(PluginBroken):  # it makes vectors of another width
        CliRunner().invoke(command_line.app, words[:4], catch_exceptions=False)
