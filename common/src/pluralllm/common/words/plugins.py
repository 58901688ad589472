"""The plug-ins that a run spec may name: parts of other packages, which every machine that uses them has installed.

A run spec comes from another machine. So a plug-in is named by an installed package, never by a module or a path, and the spec
states the exact version: all parties of a run must compute the same numbers. process/plugins.py loads plug-ins.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field

from pluralllm.common.words.spec_part import NoNul, SpecPart

MAX_OPTIONS = 32

NAME, VERSION = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"
PACKAGE = re.compile(f"{NAME}(=={VERSION})?")

PluginName = Annotated[str, Field(max_length=100, pattern=f"^{NAME}$")]
Version = Annotated[str, Field(max_length=64, pattern=f"^{VERSION}$")]
OptionKey = Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
OptionText = Annotated[str, Field(max_length=1000), NoNul]


class Plugin(SpecPart):
    """A part of another package. Whoever uses it must have installed this version of the package; another one is refused."""

    name: PluginName  # as the package declares it
    distribution: PluginName  # the package's name, as pip installs it
    version: Version  # the one version that everybody uses
    # For the plug-in, as texts; its package says which there are.
    options: Annotated[Mapping[OptionKey, OptionText], Field(max_length=MAX_OPTIONS)] = {}

    def __hash__(self) -> int:
        """Hashes the facts; a mapping of options has no hash of its own."""
        return hash((self.name, self.distribution, self.version, *sorted(self.options.items())))

    @property
    def requirement(self) -> str:
        """The text after `pip install` that installs the package in this version."""
        return f"{self.distribution}=={self.version}"

    def is_among(self, packages: Iterable[str]) -> bool:
        """Returns whether its package is among these, which are written NAME (for every version) or NAME==VERSION."""
        name = normalized(self.distribution)
        allowed = {(normalized(package), version) for package, _, version in (one.partition("==") for one in packages)}
        return (name, "") in allowed or (name, self.version) in allowed


def check_package(text: str) -> str:
    """Returns a text of the form NAME or NAME==VERSION unchanged. Raises ValueError for another one."""
    if PACKAGE.fullmatch(text) is None:
        raise ValueError("write NAME or NAME==VERSION, as pip does; a pattern is not possible")
    return text


def normalized(distribution: str) -> str:
    """Returns a package's name in the one form of all its spellings: lower case, with "-" between its words."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
