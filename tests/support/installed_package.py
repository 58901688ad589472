"""Installs an example package of tests/support for a test: its modules, and the metadata that pip would write."""

import importlib
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pluralllm.common.process import plugins

SUPPORT = Path(__file__).parent
PAGE = SUPPORT.parents[1] / "docs" / "extending.md"
METHODS, RULE, VECTORS = "town-hall-methods", "clamped-mean", "letter-counts"
NAMES = {plugins.AGGREGATORS: RULE, plugins.EMBEDDERS: VECTORS}
RUN_OF_VECTORS = f"""
[embedding]
dimension = 64

[embedding.plugin]
name = "{VECTORS}"
distribution = "{METHODS}"
version = "1.0"
"""


def plugin(name: str, version: str = "1.0", **options: str) -> dict[str, Any]:
    """Returns the table of a run spec that names a part of the example package of methods."""
    return {"name": name, "distribution": METHODS, "version": version, "options": options}


def of_page(name: str) -> dict[str, Any]:
    """Returns a table as docs/extending.md shows it: of the example package's pyproject.toml, or of a run spec that names it."""
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [table] = [values[name] for values in map(tomllib.loads, blocks) if METHODS in str(values) and name in values]
    return dict(table)


def write_metadata(folder: Path, name: str, version: str, entry_points: Mapping[str, Mapping[str, str]]) -> Path:
    """Writes what pip writes about a package whose modules lie in this folder. Returns the folder of the metadata."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "RECORD").write_text("".join(f"{path.name},,\n" for path in sorted(folder.glob("*.py"))))
    groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in one.items()) for group, one in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    importlib.invalidate_caches()
    return metadata


class Site:
    """A folder of installed packages, on the path of this process and of those that it starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))

    def install(self, example: str, version: str | None = None) -> None:
        """Installs a package of this folder's examples. version: another one than its pyproject.toml states."""
        package = SUPPORT / example
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        for module in package.glob("*.py"):
            shutil.copy(module, self.folder)
        write_metadata(self.folder, project["name"], version or project["version"], project["entry-points"])

    def install_module(self, kind: plugins.PluginKind, text: str) -> None:
        """Installs the package of methods with another module, whose function `make` takes the place of the example's.

        kind: of what it makes. text: the module's.
        """
        (self.folder / "made.py").write_text(text)
        write_metadata(self.folder, METHODS, "1.0", {kind.group: {NAMES[kind]: "made:make"}})

    def uninstall(self) -> None:
        """Removes everything that is installed here."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.forget()

    def forget(self) -> None:
        """Removes the modules of this folder from the process, as a new process has none of them."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(self.folder)):
                del sys.modules[name]
        plugins._loaded_versions.clear()
        importlib.invalidate_caches()
