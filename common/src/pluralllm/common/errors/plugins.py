"""The errors of plug-ins: parts of other packages that a run spec names. tree.py draws the whole tree.

`- Refused
   |- PluginMissing  the package of a plug-in is not installed here, or in another version than the run spec names
   `- PluginBroken   a plug-in cannot be loaded, fails, or returns something that cannot be used
"""

from dataclasses import dataclass

from pluralllm.common.errors.root import Refused


@dataclass(eq=False)
class PluginMissing(Refused):
    kind: str  # aggregator or embedder
    plugin: str  # its name in the run spec
    distribution: str
    version: str
    problem: str
    place: str  # the machines that need it
    why = "The run spec names the {kind} {plugin} of {distribution} {version}: {problem}."
    fix = "Install it on {place}: pip install '{distribution}=={version}'."


@dataclass(eq=False)
class PluginBroken(Refused):
    kind: str
    plugin: str
    distribution: str
    version: str
    problem: str
    why = "The {kind} {plugin} of {distribution} {version} cannot be used: {problem}."
    fix = "The fault is in {distribution}, or in the options that the run spec gives it: ask its author."
