"""Plug-ins are found by their package and exact version, and whatever goes wrong in them names the package."""

import asyncio
import errno
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.installed_package import METHODS, RULE, VECTORS, Site, plugin

from pluralllm.common.errors.tree import InvalidArgument, PluginBroken, PluginMissing
from pluralllm.common.process.plugins import (
    AGGREGATORS,
    EMBEDDERS,
    LACKS,
    blamed,
    find_plugin,
    installed_plugin,
    installed_version,
    make_plugin,
)
from pluralllm.common.words.plugins import Plugin
from pluralllm.server.process.fail_stop import DISK_ERRORS


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


def test_a_plug_in_that_refuses_its_options_or_cannot_be_imported_is_named_without_its_words(site: Site) -> None:
    site.install("town_hall_methods")
    who = r"aggregator clamped-mean of town-hall-methods 1\.0 cannot be used"
    with pytest.raises(PluginBroken, match=rf"{who}: ValueError in line \d+ of town_hall_rules\.py\.") as refused:
        make_plugin(AGGREGATORS, Plugin.model_validate(plugin(RULE, clamped="0")))
    assert "must be at least" not in str(refused.value)
    with pytest.raises(PluginBroken, match="does not take exactly these options: more, trimmed"):
        make_plugin(AGGREGATORS, Plugin.model_validate(plugin(RULE, trimmed="1", more="1")))
    site.uninstall()
    site.install_module(AGGREGATORS, "raise OSError('postgres://user:secret@host')")
    with pytest.raises(PluginBroken, match=r"OSError in line 1 of made\.py") as refused:
        make_plugin(AGGREGATORS, named())
    assert "secret" not in str(refused.value)
    site.uninstall()
    site.install_module(AGGREGATORS, "make = dict")
    assert make_plugin(AGGREGATORS, named()) == {}, "Python does not know which options a function in C takes"


class PanicException(BaseException):
    """An error as extensions in Rust raise it: Python does not count it as an Exception."""


@pytest.mark.parametrize("kind", [ValueError, SystemExit, PanicException, asyncio.CancelledError, GeneratorExit])
def test_an_error_in_the_work_names_its_place_and_no_words_which_may_be_private(kind: type[BaseException]) -> None:
    error = kind("Do you trust your neighbours?")
    with pytest.raises(PluginBroken) as refused, blamed(EMBEDDERS, named(VECTORS)):
        raise error
    assert "trust" not in str(refused.value)
    assert f"{kind.__name__} in line " in str(refused.value)
    assert "of test_plugins.py" in str(refused.value)
    assert refused.value.__cause__ is error


@pytest.mark.parametrize("kind", ["BaseException", "KeyboardInterrupt", "SystemExit"])
def test_a_package_that_ends_programs_when_it_is_made_ends_none(site: Site, kind: str) -> None:
    site.install_module(AGGREGATORS, f"raise {kind}")
    with ThreadPoolExecutor(1) as pool, pytest.raises(PluginBroken, match=f"{kind} in line 1 of made.py"):
        pool.submit(make_plugin, AGGREGATORS, named()).result()


def interrupt() -> None:
    with blamed(EMBEDDERS, named(VECTORS)):
        raise KeyboardInterrupt


def test_an_interruption_by_the_person_is_no_fault_of_the_plug_in_but_one_in_a_thread_is() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    with ThreadPoolExecutor(1) as pool, pytest.raises(PluginBroken, match="KeyboardInterrupt"):
        pool.submit(interrupt).result()


@pytest.mark.parametrize("error", [MemoryError(), *(OSError(number, "lacks") for number in LACKS)])
def test_a_lack_that_may_end_is_no_fault_of_the_plug_in(error: Exception) -> None:
    with pytest.raises(type(error)) as passed, blamed(EMBEDDERS, named(VECTORS)):
        raise error
    assert passed.value is error


def test_every_failure_of_a_disk_that_ends_the_coordinator_passes_and_a_full_one_too() -> None:
    assert DISK_ERRORS | {errno.ENOSPC, errno.EMFILE} <= LACKS
    assert errno.ENOENT not in LACKS


def test_a_version_that_is_installed_under_a_process_with_another_one_needs_a_restart(site: Site) -> None:
    site.install("town_hall_methods")
    make_plugin(AGGREGATORS, named())
    [metadata] = site.folder.glob("*.dist-info")
    shutil.rmtree(metadata)
    site.install("town_hall_methods", version="2.0")
    for kind, name in ((AGGREGATORS, RULE), (EMBEDDERS, VECTORS)):
        with pytest.raises(PluginMissing, match=r"version 1\.0 is loaded in this process; restart it\."):
            make_plugin(
                kind, named(name, version="2.0", distribution="Town-Hall-Methods"), *["cpu"][: kind is EMBEDDERS]
            )
    site.forget()
    make_plugin(AGGREGATORS, named(version="2.0"))


def test_a_name_that_no_package_has_is_refused_with_those_that_there_are(site: Site) -> None:
    site.install("town_hall_methods")
    with pytest.raises(InvalidArgument, match="no installed package has it; there are: letter-counts"):
        installed_plugin(EMBEDDERS, "letters")
