"""Plug-ins are found by their package and exact version, and whatever goes wrong in them names the package."""

import sys

import pytest
from support.installed_package import METHODS, RULE, VECTORS, Site, plugin

from pluralllm.common.errors.tree import InvalidArgument, PluginBroken, PluginMissing
from pluralllm.common.process.plugins import (
    AGGREGATORS,
    EMBEDDERS,
    blamed,
    find_plugin,
    installed_plugin,
    installed_version,
    make_plugin,
)
from pluralllm.common.words.plugins import Plugin


def named(name: str = RULE, **changes: str) -> Plugin:
    return Plugin.model_validate({**plugin(name), **changes})


def test_the_part_that_a_spec_names_is_found_in_its_package_and_nothing_is_imported(site: Site) -> None:
    site.install("town_hall_methods")
    package, point = find_plugin(AGGREGATORS, named())
    assert (package.version, point.value) == ("1.0", "town_hall_rules:clamped_mean")
    assert installed_plugin(EMBEDDERS, VECTORS) == named(VECTORS)
    assert "town_hall_rules" not in sys.modules
    assert installed_version(METHODS) == "1.0"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": "1.1"}, r"version 1\.0 is installed\. .*pip install 'town-hall-methods==1\.1'"),
        ({"distribution": "nobodys"}, r"this package is not installed\. .*pip install 'nobodys==1\.0'"),
        ({"name": VECTORS}, "declares these in the group pluralllm.aggregators: clamped-mean"),
        ({"distribution": "numpy", "version": installed_version("numpy") or ""}, "aggregators: none"),
    ],
)
def test_what_is_not_installed_as_the_spec_says_is_refused_with_the_line_that_installs_it(
    site: Site, changes: dict[str, str], problem: str
) -> None:
    site.install("town_hall_methods")
    with pytest.raises(PluginMissing, match=problem):
        make_plugin(AGGREGATORS, named(**changes))


def test_a_plug_in_that_refuses_its_options_or_cannot_be_imported_is_named_with_its_words(site: Site) -> None:
    site.install("town_hall_methods")
    with pytest.raises(
        PluginBroken, match=r"aggregator clamped-mean of town-hall-methods 1\.0 .*clamped is 0, must be"
    ):
        make_plugin(AGGREGATORS, Plugin.model_validate(plugin(RULE, clamped="0")))
    with pytest.raises(PluginBroken, match="unexpected keyword argument 'trimmed'"):
        make_plugin(AGGREGATORS, Plugin.model_validate(plugin(RULE, trimmed="1")))
    site.uninstall()
    site.install_module("import nothing_of_this_name", {AGGREGATORS.group: {RULE: "made:make"}})
    with pytest.raises(PluginBroken, match="ModuleNotFoundError"):
        make_plugin(AGGREGATORS, named())


@pytest.mark.parametrize("error", [ValueError("Do you trust your neighbours?"), SystemExit("Do you trust them?")])
def test_an_error_in_the_work_names_its_place_and_no_words_which_may_be_private(error: BaseException) -> None:
    with pytest.raises(PluginBroken) as refused, blamed(EMBEDDERS, named(VECTORS)):
        raise error
    assert "trust" not in str(refused.value)
    assert f"{type(error).__name__} in line " in str(refused.value)
    assert "of test_plugins.py" in str(refused.value)
    assert refused.value.__cause__ is error


def test_an_interruption_of_the_work_is_no_fault_of_the_plug_in() -> None:
    with pytest.raises(KeyboardInterrupt), blamed(EMBEDDERS, named(VECTORS)):
        raise KeyboardInterrupt


def test_a_name_that_no_package_has_is_refused_with_those_that_there_are(site: Site) -> None:
    site.install("town_hall_methods")
    with pytest.raises(InvalidArgument, match="no installed package has it; there are: letter-counts"):
        installed_plugin(EMBEDDERS, "letters")
