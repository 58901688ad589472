"""Finds and loads the parts that other packages add to PluralLLM by entry points: importers, aggregators and embedders.

A package declares each part as an entry point of a group; the entry point's value is a function. Nothing is imported before it
is used. An importer is named on a command line. An aggregator or an embedder is named by a run spec, with its package and the
exact version; words/plugins.py says why.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any

from pluralllm.common.errors.plugins import PluginBroken, PluginMissing
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.plugins import Plugin

IMPORTERS = "pluralllm.importers"


@dataclass(frozen=True, slots=True)
class PluginKind:
    """A kind of part that a run spec can name."""

    noun: str  # in errors
    group: str  # of entry points
    place: str  # the machines that need the package


AGGREGATORS = PluginKind(
    "aggregator", "pluralllm.aggregators", "the coordinator's machine, and on each other one that averages updates"
)
EMBEDDERS = PluginKind("embedder", "pluralllm.embedders", "each machine that embeds texts for this run")


def package_of(point: EntryPoint) -> str:
    """Returns the name of the package that declares an entry point."""
    return point.value if point.dist is None else point.dist.name


def one_named(name: str, group: str, declared: Sequence[EntryPoint] | None = None) -> EntryPoint:
    """Returns the entry point with this name. declared: all of the group; None looks them up.

    Raises InvalidArgument if no installed package declares it, or if more than one does.
    """
    points = list(entry_points(group=group) if declared is None else declared)
    named = [point for point in points if point.name == name]
    if not named:
        known = ", ".join(sorted({point.name for point in points})) or "none"
        raise InvalidArgument(field="name", problem=f"is {name!r}, and no installed package has it; there are: {known}")
    if len(named) > 1:
        raise InvalidArgument(field="name", problem=f"is {name!r}, and more than one package has it; uninstall one")
    return named[0]


def installed_plugin(kind: PluginKind, name: str) -> Plugin:
    """Returns a plug-in that is installed here as a run spec names it. Raises InvalidArgument as `one_named`."""
    point = one_named(name, kind.group)
    if point.dist is None:
        raise InvalidArgument(field="name", problem=f"is {name!r}, which belongs to no installed package")
    return Plugin(name=name, distribution=point.dist.name, version=point.dist.version)


def installed_version(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def find_plugin(kind: PluginKind, plugin: Plugin) -> tuple[Distribution, EntryPoint]:
    """Returns the installed package of a plug-in, and its entry point. Nothing is imported.

    Raises PluginMissing if the package is not installed in the version that the run spec names, or does not declare the plug-in.
    """
    version = installed_version(plugin.distribution)
    if version != plugin.version:
        is_there = "this package is not installed" if version is None else f"version {version} is installed"
        raise missing(kind, plugin, is_there)
    package = distribution(plugin.distribution)
    of_kind = [point for point in package.entry_points if point.group == kind.group]
    points = [point for point in of_kind if point.name == plugin.name]
    if len(points) != 1:
        names = ", ".join(sorted(point.name for point in of_kind)) or "none"
        raise missing(kind, plugin, f"this package declares these in the group {kind.group}: {names}")
    return package, points[0]


def make_plugin(kind: PluginKind, plugin: Plugin, *arguments: object) -> Any:
    """Returns what the function of a plug-in makes of its options, which are keyword arguments with texts as values.

    arguments: what such a function gets before the options.
    Raises PluginMissing as `find_plugin`; PluginBroken if the function cannot be imported, or fails.
    """
    _, point = find_plugin(kind, plugin)
    try:
        function: Callable[..., Any] = point.load()
        return function(*arguments, **plugin.options)
    except (Exception, SystemExit) as error:
        # It has seen nothing but the options, so its words tell nothing else.
        raise broken(kind, plugin, f"{type(error).__name__}: {error}") from error


@contextmanager
def blamed(kind: PluginKind, plugin: Plugin) -> Iterator[None]:
    """Turns every error of a plug-in's own code into PluginBroken, which names the package.

    The error's words may quote what the plug-in works on, updates or private texts. So only its kind and place are named.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__} in line {frame.lineno} of {Path(frame.filename).name}"
        raise broken(kind, plugin, problem) from error


def missing(kind: PluginKind, plugin: Plugin, problem: str) -> PluginMissing:
    return PluginMissing(kind.noun, plugin.name, plugin.distribution, plugin.version, problem, kind.place)


def broken(kind: PluginKind, plugin: Plugin, problem: str) -> PluginBroken:
    return PluginBroken(kind.noun, plugin.name, plugin.distribution, plugin.version, problem)
