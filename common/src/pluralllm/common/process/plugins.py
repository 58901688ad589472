"""Finds and loads the parts that other packages add to PluralLLM by entry points: importers, aggregators and embedders.

A package declares each part as an entry point of a group; the entry point's value is a function. Nothing is imported before it
is used. An importer is named on a command line. An aggregator or an embedder is named by a run spec, with its package and the
exact version; words/plugins.py says why.
"""

import errno
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from inspect import signature
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from pluralllm.common.errors.plugins import PluginBroken, PluginMissing
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.words.plugins import Plugin, normalized

IMPORTERS = "pluralllm.importers"
# Errors of the machine, not of a package: memory, open files or room lack for a while, or the disk has failed.
LACKS = frozenset(
    {
        *(errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT),
        *(errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV),
    }
)
_loaded_versions: dict[str, str] = {}  # by distribution, normalized: the version that this process has imported


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
    try:
        package = distribution(plugin.distribution)
    except PackageNotFoundError:
        raise missing(kind, plugin, "this package is not installed") from None
    if package.version != plugin.version:
        raise missing(kind, plugin, f"version {package.version} is installed")
    of_kind = [point for point in package.entry_points if point.group == kind.group]
    points = [point for point in of_kind if point.name == plugin.name]
    if len(points) != 1:
        names = ", ".join(sorted(point.name for point in of_kind)) or "none"
        raise missing(kind, plugin, f"this package declares these in the group {kind.group}: {names}")
    return package, points[0]


def check_allowed(plugin: Plugin | None, allowed: Sequence[str], setting: str) -> None:
    """Checks that the person at this machine allows the package of an embedder that a file from elsewhere names.

    allowed: packages, as `Plugin.is_among` reads them. setting: the argument or option that allows one, for the error.
    Raises InvalidArgument otherwise. None, which is no plug-in, is allowed.
    """
    if plugin is not None and not plugin.is_among(allowed):
        problem = (
            f"must name {plugin.requirement}, whose code would run here with your rights to make the vectors;"
            f" if you trust it, set it to {plugin.requirement}"
        )
        raise InvalidArgument(field=setting, problem=problem)


def make_plugin(kind: PluginKind, plugin: Plugin, *arguments: object) -> Any:
    """Returns what the function of a plug-in makes of its options, which are keyword arguments with texts as values.

    arguments: what such a function gets before the options.
    Raises PluginMissing as `find_plugin`, or if this process has loaded another version of the package; PluginBroken if the
    function cannot be imported, has other options, or fails; MemoryError and OSError as `blamed`.
    """
    package, point = find_plugin(kind, plugin)
    # Python keeps a module that it has imported, whatever is installed in its place afterwards. A failed import may keep parts.
    loaded = _loaded_versions.setdefault(normalized(package.name), plugin.version)
    if loaded != plugin.version:
        raise missing(kind, plugin, f"version {loaded} is loaded in this process; restart it")
    with blamed(kind, plugin):
        function: Callable[..., Any] = point.load()
        takes_options = _takes(function, *arguments, **plugin.options)
    if not takes_options:
        names = ", ".join(sorted(plugin.options)) or "none"
        raise broken(kind, plugin, f"its function does not take exactly these options: {names}")
    with blamed(kind, plugin):
        return function(*arguments, **plugin.options)


def _takes(function: Callable[..., Any], *arguments: object, **options: object) -> bool:
    """Returns whether a function can be called with these arguments. True if Python does not know, as for some in C."""
    try:
        signature(function).bind(*arguments, **options)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


@contextmanager
def blamed(kind: PluginKind, plugin: Plugin) -> Iterator[None]:
    """Turns every error of a plug-in's own code into PluginBroken, which names the package.

    The error's words may quote what the plug-in works on, updates or private texts, or what its import reads, such as an address
    with a password. So only its kind and place are named; the error itself is the cause.
    A lack of memory, files or disk may end, so MemoryError and such an OSError pass. An error that Python does not count as an
    Exception is turned, too: it would end the process, and extensions in Rust raise one when they panic. Only the person at the
    keyboard may end it; Python interrupts the main thread for that.
    """
    try:
        yield
    except BaseException as error:
        if _is_lack(error) or (isinstance(error, KeyboardInterrupt) and current_thread() is main_thread()):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__} in line {frame.lineno} of {Path(frame.filename).name}"
        raise broken(kind, plugin, problem) from error


def _is_lack(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in LACKS)


def missing(kind: PluginKind, plugin: Plugin, problem: str) -> PluginMissing:
    return PluginMissing(kind.noun, plugin.name, plugin.distribution, plugin.version, problem, kind.place)


def broken(kind: PluginKind, plugin: Plugin, problem: str) -> PluginBroken:
    return PluginBroken(kind.noun, plugin.name, plugin.distribution, plugin.version, problem)
