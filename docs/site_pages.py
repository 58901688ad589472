"""Adds to the site what the pages of docs/ lack: a hook of MkDocs (mkdocs.yml), which `make site` runs.

The pages are written for the repository, where a link may lead to any file. The hook makes pages of some files outside docs/,
adds an API page for each public Python package, and writes the links anew. The module imports MkDocs when it is called by it.
"""

import ast
import functools
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Files outside docs/ that are pages of the site, and the names of these pages.
FROM_OUTSIDE = {
    "README.md": "first-steps.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "SECURITY.md": "report-a-weakness.md",
    "benchmarks/RESULTS.md": "results.md",
}


@dataclass(frozen=True, slots=True)
class Package:
    """A public package: where it is, which page explains it, and where its public names come from."""

    source: str
    guide: str
    listed_in: str = ""  # its __init__.py lists public names in _MODULES; these modules are in this package
    modules: tuple[str, ...] = ()  # otherwise: the modules that a program uses


PACKAGES = {
    "pluralllm.api": Package("research/src", "[From Python](../python.md)", listed_in="pluralllm"),
    "pluralllm.align": Package("research/src", "[Rewards](../rewards.md)", listed_in="pluralllm.align"),
    "pluralllm.experiment": Package(
        "research/src", "[Experiments](../experiments.md)", modules=("spec", "runner", "results", "summary")
    ),
    "pluralllm.operator": Package(
        "client/src", "[Operate a federation](../operate.md)", modules=("opening", "remote", "watching", "saved_model")
    ),
}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
CODE = re.compile(r"`[^`]+`")
ITEM = re.compile(r"(?:[-*]|\d+\.) ")


def place_of(file: str) -> str | None:
    """Returns the site's path of a file of the repository, or None if the file is not in the site."""
    if file in FROM_OUTSIDE:
        return FROM_OUTSIDE[file]
    is_there = file.startswith("docs/") and not file.endswith(".py") and (ROOT / file).is_file()
    return file.removeprefix("docs/") if is_there else None


def link_in_site(link: re.Match[str], home: str) -> str:
    """Returns a link of the file `home` as the site has it; where it leads out of the site, its text and the file's name.

    A picture out of the site stays as it is: the site cannot show it, and the build says so.
    """
    mark, text, target = link.groups()
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    path, _, anchor = target.partition("#")
    file = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
    place, here = place_of(file), FROM_OUTSIDE.get(home, home.removeprefix("docs/"))
    if place is None and mark:
        return link[0]
    if place is None:
        return f"`{file}`" if text.strip("`") in {file, path} else f"{text} (`{file}`)"
    shown = posixpath.relpath(place, posixpath.dirname(here) or ".")
    return f"{mark}[{text}]({shown}{'#' + anchor if anchor else ''})"


def line_in_site(line: str, home: str) -> str:
    """Returns a line of text of the file `home` with the site's links. Here a stroke in a table's code needs no backslash."""
    if line.startswith("|"):
        line = CODE.sub(lambda code: code[0].replace("\\|", "|"), line)
    return LINK.sub(functools.partial(link_in_site, home=home), line)


def page_in_site(text: str, home: str) -> str:
    """Returns the text of the file `home` as the site has it: links are the site's, and lists begin after an empty line.

    Elsewhere a list may follow a sentence directly; here it would be part of the sentence. Blocks of code stay as they are.
    """
    lines, is_fenced = list[str](), False
    for line in text.splitlines():
        is_fenced ^= line.startswith("```")
        is_code = is_fenced or line.startswith(("```", "    "))
        if not is_code and ITEM.match(line) and lines and re.match(r"[^\s|]", lines[-1]) and not ITEM.match(lines[-1]):
            lines.append("")
        lines.append(line if is_code else line_in_site(line, home))
    return "\n".join(lines) + "\n"


def init_of(package: str) -> ast.Module:
    """Returns the syntax tree of a package's __init__.py."""
    path = ROOT / PACKAGES[package].source / Path(*package.split(".")) / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def public_names(package: str) -> dict[str, str]:
    """Returns the public names of a package and the full name of what each stands for, in the package's order."""
    for statement in init_of(package).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_MODULES":
            modules: dict[str, str] = ast.literal_eval(statement.value)
            return {name: f"{PACKAGES[package].listed_in}.{module}.{name}" for name, module in modules.items()}
    raise ValueError(
        f"{package} lists no public names: give its __init__.py the table _MODULES, or name its modules in PACKAGES"
    )


def api_page(package: str) -> str:
    """Returns the page of a package: its docstring, and for each public name the place where its docstring goes."""
    about = ast.get_docstring(init_of(package)) or ""
    if PACKAGES[package].listed_in:
        shown = [
            f"::: {full}\n    options: {{heading: {name}, toc_label: {name}}}\n"
            for name, full in public_names(package).items()
        ]
    else:
        shown = [f"::: {package}.{module}\n" for module in PACKAGES[package].modules]
    return f"# {package}\n\n{about}\n\nExamples: {PACKAGES[package].guide}.\n\n" + "\n".join(shown)


def made_pages() -> dict[str, Callable[[], str]]:
    """Returns the pages that docs/ does not have: the site's path, and what makes the text."""
    outside = {place: (ROOT / file).read_text for file, place in FROM_OUTSIDE.items()}
    apis = {f"reference/{name.rpartition('.')[2]}.md": functools.partial(api_page, name) for name in PACKAGES}
    return {**outside, **apis}


def on_config(config: Any) -> None:
    """Gives titles the anchors that the repository's own pages use: small letters, and a hyphen for each space."""
    from pymdownx.slugs import slugify  # noqa: PLC0415 - installed for the site only

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")


def on_files(files: Any, config: Any) -> None:
    """Adds the pages that docs/ does not have."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - installed for the site only

    for place, text in made_pages().items():
        files.append(File.generated(config, place, content=text()))


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Returns a page's text as the site has it."""
    place = page.file.src_uri
    home = next((file for file, outside in FROM_OUTSIDE.items() if outside == place), f"docs/{place}")
    return page_in_site(markdown, home)
