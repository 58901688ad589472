"""The site of the documentation: its navigation, its links, its API pages and its check. `make site` builds it."""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import site_check
import site_pages
import yaml

ROOT = Path(__file__).parents[2]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
LISTED = sorted(name for name, package in site_pages.PACKAGES.items() if package.listed_in)
POLICY = re.search(r"<meta .*>", (ROOT / "docs" / "site_theme" / "main.html").read_text())


def pages_of(nav: Any) -> Iterator[str]:
    """Yields the pages of a navigation or of a part of it."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def test_the_navigation_lists_every_page_once() -> None:
    listed = list(pages_of(SITE["nav"]))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(written | site_pages.made_pages().keys()), "give the page a place in mkdocs.yml"


def test_the_navigation_is_by_reader_and_ends_with_the_reference() -> None:
    assert [next(iter(part)) for part in SITE["nav"]] == [
        "Start",
        "Partner",
        "Operator",
        "Researcher",
        "Contributor",
        "Reference",
    ]


def test_a_warning_is_an_error_and_nothing_is_loaded_from_elsewhere() -> None:
    assert SITE["strict"] is True
    assert SITE["theme"]["font"] is False
    assert {kind for links in SITE["validation"].values() for kind in links.values()} == {"warn"}
    assert "extra_javascript" not in SITE
    assert "extra_css" not in SITE
    assert "analytics" not in SITE.get("extra", {})
    assert (ROOT / SITE["theme"]["custom_dir"] / "main.html").is_file()


def test_the_build_is_followed_by_the_check_and_ci_does_both() -> None:
    target = (ROOT / "Makefile").read_text().partition("\nsite: ")[2].partition("\n\n")[0]
    assert target.index("mkdocs build") < target.index("docs/site_check.py site")
    assert "\nstage site make site\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("home", [*site_pages.FROM_OUTSIDE, "docs/index.md", "docs/tasks.md", "docs/architecture.md"])
def test_every_link_of_a_page_leads_to_a_file_of_the_site(home: str) -> None:
    here = Path(site_pages.place_of(home) or "")
    site_files = {
        *site_pages.made_pages(),
        *(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.*")),
    }
    text = site_pages.page_in_site((ROOT / home).read_text(), home)
    for _, _, target in site_pages.LINK.findall(text):
        if not re.match(r"[a-z]+:|#", target):
            assert str(here.parent / target.partition("#")[0]) in site_files, target


@pytest.mark.parametrize(
    ("home", "written", "shown"),
    [
        ("README.md", "[join](docs/joining.md#the-operator-again)", "[join](joining.md#the-operator-again)"),
        ("README.md", "![The page](docs/pictures/page.png)", "![The page](pictures/page.png)"),
        ("docs/tasks.md", "[by hand](../README.md#by-hand)", "[by hand](first-steps.md#by-hand)"),
        ("docs/reference/protocol.md", "[more](../protocol.md)", "[more](../protocol.md)"),
        ("docs/reference/json.md", "[first](../../README.md)", "[first](../first-steps.md)"),
        ("benchmarks/RESULTS.md", "[who](../docs/security.md)", "[who](security.md)"),
        ("docs/partner.md", "[sample](../deploy/examples/client.toml)", "sample (`deploy/examples/client.toml`)"),
        ("README.md", "[deploy/examples](deploy/examples)", "`deploy/examples`"),
        ("docs/tasks.md", "[`examples`](examples)", "`docs/examples`"),
        ("docs/tasks.md", "[how](generate.py)", "how (`docs/generate.py`)"),
        ("docs/tasks.md", "![a picture](../deploy/a.png)", "![a picture](../deploy/a.png)"),
        ("docs/tasks.md", "[a paper](https://arxiv.org/abs/2503.09925)", "[a paper](https://arxiv.org/abs/2503.09925)"),
        ("docs/tasks.md", "[below](#surveys)", "[below](#surveys)"),
    ],
)
def test_a_link_leads_to_the_page_of_its_file_or_becomes_the_files_name(home: str, written: str, shown: str) -> None:
    assert site_pages.page_in_site(f"See {written}.", home) == f"See {shown}.\n"


def test_a_list_after_a_sentence_gets_an_empty_line_and_code_stays_as_it_is() -> None:
    in_site = site_pages.page_in_site
    assert in_site("These:\n- one\n  more\n- two\n", "README.md") == "These:\n\n- one\n  more\n- two\n"
    assert in_site("These:\n1. one\n2. two\n", "README.md") == "These:\n\n1. one\n2. two\n"
    fenced = "```\nthese:\n- one\n[a](LICENSE)\n```\n"
    assert in_site(fenced, "README.md") == fenced
    assert in_site("    x\n    [a](LICENSE)\n", "README.md") == "    x\n    [a](LICENSE)\n"
    assert in_site(fenced + "[a](LICENSE)\n", "README.md") == fenced + "a (`LICENSE`)\n"


def test_a_stroke_in_the_code_of_a_table_is_shown_without_its_backslash() -> None:
    assert site_pages.page_in_site(r"| `a\|b` | c \| d |", "README.md") == "| `a|b` | c \\| d |\n"


@pytest.mark.parametrize("package", LISTED)
def test_an_api_page_has_every_public_name_of_its_package(package: str) -> None:
    source = site_pages.init_of(package)
    (public,) = [
        ast.literal_eval(line.value)
        for line in source.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__"
    ]
    assert sorted(site_pages.public_names(package)) == sorted(public)
    page = site_pages.api_page(package)
    assert page.startswith(f"# {package}\n\n{(ast.get_docstring(source) or '?').splitlines()[0]}\n")
    for name, full in site_pages.public_names(package).items():
        assert f"::: {full}\n    options: {{heading: {name}, toc_label: {name}}}\n" in page
        assert full.startswith("pluralllm.")
        assert full.endswith(f".{name}")


@pytest.mark.parametrize("package", site_pages.PACKAGES)
def test_an_api_page_leads_to_a_page_with_examples(package: str) -> None:
    ((mark, _, target),) = site_pages.LINK.findall(site_pages.PACKAGES[package].guide)
    assert mark == ""
    assert (ROOT / "docs" / "reference" / target).is_file()
    made = site_pages.page_in_site(site_pages.api_page(package), f"docs/reference/{package.rpartition('.')[2]}.md")
    assert f"Examples: {site_pages.PACKAGES[package].guide}." in made


@pytest.mark.parametrize("package", sorted(site_pages.PACKAGES.keys() - set(LISTED)))
def test_an_api_page_has_the_modules_that_a_program_uses(package: str) -> None:
    page = site_pages.api_page(package)
    folder = ROOT / site_pages.PACKAGES[package].source / Path(*package.split("."))
    assert site_pages.PACKAGES[package].modules
    for module in site_pages.PACKAGES[package].modules:
        assert f"::: {package}.{module}\n" in page
        assert (folder / f"{module}.py").is_file()


def test_a_package_without_a_list_of_public_names_is_told_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"pluralllm\.operator lists no public names: give its"):
        site_pages.public_names("pluralllm.operator")


@pytest.mark.parametrize(
    ("tag", "address"),
    [
        ('<script src="https://cdn.example/a.js"></script>', "https://cdn.example/a.js"),
        ('<script src="//cdn.example/a.js"></script>', "//cdn.example/a.js"),
        ('<img src="HTTP://cdn.example/a.png">', "HTTP://cdn.example/a.png"),
        ('<img srcset="a.png, https://cdn.example/a.png 2x">', "https://cdn.example/a.png 2x"),
        ('<link rel="stylesheet" href="https://cdn.example/a.css">', "https://cdn.example/a.css"),
        ('<link rel="preconnect" href="https://fonts.example">', "https://fonts.example"),
        ('<svg><use xlink:href="https://cdn.example/a.svg#x"/></svg>', "https://cdn.example/a.svg#x"),
        ('<svg><use href="https://cdn.example/a.svg#x"/></svg>', "https://cdn.example/a.svg#x"),
        ('<iframe src="https://cdn.example"></iframe>', "https://cdn.example"),
        ('<p style="background: url(https://cdn.example/a.png)">', "https://cdn.example/a.png"),
        ("<style>@import 'https://cdn.example/a.css';</style>", "https://cdn.example/a.css"),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(tag: str, address: str) -> None:
    assert POLICY is not None
    assert site_check.faults_of_page(POLICY[0] + tag) == [f"loads {address}"]


def test_a_link_to_click_and_what_is_of_the_site_are_no_faults() -> None:
    assert POLICY is not None
    tags = (
        '<a href="https://arxiv.org">paper</a><img src="pictures/page.png"><script src="../assets/a.js"></script>'
        '<link rel="canonical" href="https://docs.example"><link rel="stylesheet" href="a.css">'
        '<img src="data:image/png;base64,//8=">'
        "<style>p { color: red }</style>url(https://x.example)"
    )
    assert site_check.faults_of_page(POLICY[0] + tags) == []
    assert site_check.faults_of_style("p { background: url(data:image/svg+xml,%3Csvg) }") == []


def test_a_page_without_the_policy_and_a_style_sheet_with_a_font_from_elsewhere_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<p>bare</p>")
    (tmp_path / "assets" / "a.css").write_text("@font-face { src: url('https://fonts.example/a.woff') }")
    monkeypatch.setattr("sys.argv", ["site_check.py", str(tmp_path)])
    assert site_check.main() == 1
    printed = capsys.readouterr().out
    assert "error: index.html has no policy against other addresses" in printed
    assert "error: assets/a.css loads https://fonts.example/a.woff" in printed
    assert "1 pages, 2 faults" in printed
    shutil.rmtree(tmp_path / "assets")
    assert POLICY is not None
    (tmp_path / "index.html").write_text(POLICY[0])
    assert site_check.main() == 0


@pytest.mark.parametrize(
    "element",
    [
        '<image href="https://cdn.example/a"/>',
        '<use xlink:href="https://cdn.example/a"/>',
        '<path fill="url(https://cdn.example/a)"/>',
        '<path style="fill: url(https://cdn.example/a)"/>',
        "<style>@import 'https://cdn.example/a';</style>",
    ],
)
def test_what_a_picture_loads_from_elsewhere_is_found_once(element: str, tmp_path: Path) -> None:
    picture = f'<svg xmlns="http://www.w3.org/2000/svg">{element}<a href="https://arxiv.org"><path d="M0 0"/></a></svg>'
    (tmp_path / "a.svg").write_text(picture)
    assert list(site_check.faults_of_site(tmp_path)) == ["a.svg loads https://cdn.example/a"]


def test_a_folder_without_a_page_is_no_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["site_check.py", str(tmp_path)])
    assert site_check.main() == 1
    assert "build the site first: make site" in capsys.readouterr().out


def test_the_policy_of_the_pages_lets_the_browser_load_from_the_site_only() -> None:
    assert POLICY is not None
    content = re.search(r'content="([^"]*)"', POLICY[0])
    assert content is not None
    sources = {name: tuple(named) for name, *named in map(str.split, content[1].split(";"))}
    assert sources["default-src"] == ("'self'",)
    assert {source for named in sources.values() for source in named} <= {
        "'self'",
        "'none'",
        "'unsafe-inline'",
        "data:",
    }


def test_a_policy_with_another_source_is_no_policy() -> None:
    assert POLICY is not None
    wider = POLICY[0].replace("default-src 'self'", "default-src 'self' https:")
    assert site_check.faults_of_page(wider) == ["has no policy against other addresses (docs/site_theme/main.html)"]
