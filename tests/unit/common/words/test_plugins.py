"""A run spec names a plug-in by an installed package and its version, and a spec without one is what it was."""

import tomllib
from typing import Any

import pytest
from pydantic import ValidationError
from support.installed_package import METHODS, PAGE, RULE, SUPPORT, VECTORS, plugin

from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.plugins import Plugin, check_package
from pluralllm.common.words.spec import RunSpec, spec_from_values
from pluralllm.common.words.usual_embedding import with_usual_embedding

OF_RULE: dict[str, Any] = {"rule": "plugin", "plugin": plugin(RULE, clamped="2")}
OF_VECTORS: dict[str, Any] = {"plugin": plugin(VECTORS), "dimension": 64}


def spec(**values: Any) -> RunSpec:
    usual = {"format": "pluralllm.run/3", "embedding": {"model": "m", "dimension": 8}}
    return RunSpec.model_validate({**usual, **values})


def test_a_spec_without_plug_ins_has_the_hash_of_a_release_without_them() -> None:
    assert spec().sha256() == "3c6f23bca7dbba80c2a6fce1418dba4ef2f6853c165092fb5f0e3a03b3970293"
    assert b"plugin" not in spec().canonical_json()
    assert "plugin" not in spec().model_dump()["embedding"], "an older release reads an exported model's contract"


def test_each_fact_of_a_plug_in_is_in_the_hash_and_the_spec_is_read_again() -> None:
    tables: list[dict[str, Any]] = [{"aggregation": OF_RULE}, {"embedding": OF_VECTORS}]
    for table in tables:
        ((name, values),) = table.items()
        hashes = {spec(**table).sha256()}
        for other in ({"version": "1.1"}, {"distribution": "other"}, {"options": {"clamped": "3"}}):
            hashes.add(spec(**{name: {**values, "plugin": {**values["plugin"], **other}}}).sha256())
        assert len(hashes) == 4
        assert RunSpec.model_validate_json(spec(**table).canonical_json()) == spec(**table)
    assert len({spec(embedding=OF_VECTORS).embedding, spec(embedding=OF_VECTORS).embedding}) == 1


def test_an_embedder_is_the_model_by_its_own_name() -> None:
    assert spec(embedding=OF_VECTORS).embedding.model == VECTORS
    values = with_usual_embedding({"embedding": OF_VECTORS})
    assert spec_from_values(values, "").embedding.model == VECTORS
    with pytest.raises(InvalidSpec, match=r"embedding\.dimension: Field required"):  # no usual one: the package decides
        spec_from_values(with_usual_embedding({"embedding": {"plugin": plugin(VECTORS)}}), "")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"aggregation": {"rule": "plugin"}}, "belong together"),
        ({"aggregation": {"plugin": plugin(RULE)}}, "belong together"),
        ({"aggregation": OF_RULE, "format": "pluralllm.run/1"}, r"format = pluralllm\.run/3"),
        (
            {
                "aggregation": {**OF_RULE, "max_examples": 100},
                "private_rounds": {},
                "round": {"min_clients": 4, "target_clients": 5},
            },
            "plugin looks at single updates; private rounds hide them",
        ),
        (
            {"aggregation": OF_RULE, "rewards": {"source": "runs/s/models/0", "model_digest": "0" * 64}},
            "rewards are not deltas",
        ),
        ({"embedding": {**OF_VECTORS, "model": "other"}}, "is not the plug-in's name"),
        ({"embedding": {**OF_VECTORS, "revision": "v2"}}, "revision says nothing to a plug-in"),
        ({"embedding": {**OF_VECTORS, "max_tokens": 512}}, "max_tokens says nothing to a plug-in"),
        ({"embedding": {**OF_VECTORS, "pooling": "cls"}}, "pooling says nothing to a plug-in"),
    ],
)
def test_a_spec_in_which_a_plug_in_does_not_fit_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        spec(**values)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../rule"},
        {"distribution": "/opt/package"},
        {"distribution": "package @ file:///opt"},
        {"distribution": "git+https"},
        {"version": ">=1"},
        {"version": ""},
        {"options": {"a-b": "1"}},
        {"options": {"a": 1}},
        {"options": {"a": "\0"}},
        {"options": {f"a{number}": "" for number in range(33)}},
    ],
)
def test_a_plug_in_is_no_path_no_module_and_no_range_of_versions(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Plugin.model_validate({**plugin(RULE), **changes})


def test_a_package_is_allowed_in_every_version_or_in_one() -> None:
    rule = Plugin.model_validate(plugin(RULE))
    assert rule.is_among(["other", METHODS])
    assert rule.is_among(["Town_Hall.Methods==1.0"])
    assert not rule.is_among([])
    assert not rule.is_among(["town-hall", f"{METHODS}==1.1"])


@pytest.mark.parametrize("text", ["*", "a*", "a==", "a>=1", "", "a ==1"])
def test_a_list_of_packages_has_no_patterns(text: str) -> None:
    assert check_package("a==1.0") == "a==1.0"
    with pytest.raises(ValueError, match="NAME==VERSION"):
        check_package(text)


def test_the_page_shows_the_entry_points_of_the_example() -> None:
    """Other tests run its tables of a run spec: in the service, in verify, in experiments, by the daemon and by `score`."""
    project = (SUPPORT / "town_hall_methods" / "pyproject.toml").read_text()
    for group, points in tomllib.loads(project)["project"]["entry-points"].items():
        lines = "".join(f'{name} = "{value}"\n' for name, value in points.items())
        assert f'[project.entry-points."{group}"]\n{lines}' in PAGE.read_text()
