"""The files of a release: one version, license and description, and checks that find what is wrong."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import release
import yaml
from packaging.metadata import parse_email
from support.built_wheels import BEFORE_COMMIT, ROOT

from pluralllm.common import __version__

INFORMATION = f"pluralllm_client-{__version__}.dist-info/"
METADATA = f"""Metadata-Version: 2.4
Name: pluralllm-client
Version: {__version__}
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.11,<3.14
Classifier: Programming Language :: Python :: 3.11
Description-Content-Type: text/markdown

{(ROOT / "client" / "README.md").read_text()}"""
ENTRY_POINTS = """[console_scripts]
pluralllm = pluralllm.cli.__main__:main
pluralllm-client = pluralllm.client.__main__:main
"""


def wheel(**changes: str) -> dict[str, bytes]:
    """Returns the files of a wheel of the client that has no problem, but for the changes: texts by the file's last name."""
    files = {
        "pluralllm/client/__init__.py": "",
        f"{INFORMATION}licenses/LICENSE": (ROOT / "LICENSE").read_text(),
        f"{INFORMATION}METADATA": METADATA,
        f"{INFORMATION}entry_points.txt": ENTRY_POINTS,
    }
    changed = {name: changes.get(Path(name).stem, text) for name, text in files.items()}
    return {name: text.encode() for name, text in changed.items()}


def test_all_distributions_and_the_code_have_one_version() -> None:
    assert list(release.problems_of_versions()) == []


@pytest.mark.parametrize(
    ("project", "problem"),
    [
        ({"version": "9.9.9", "dependencies": []}, "has version 9.9.9"),
        ({"version": __version__, "dependencies": ["pluralllm-common==9.9.9"]}, "requires pluralllm-common==9.9.9"),
        ({"version": __version__, "dependencies": [], "optional-dependencies": {"a": ["pluralllm-x>=1"]}}, "-x>=1"),
    ],
)
def test_another_version_anywhere_is_a_problem(
    project: dict[str, object], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "project_of", lambda _: project)
    problems = list(release.problems_of_versions())
    assert len(problems) == len(release.PARTS)
    assert all(problem in line for line in problems)


def test_citation_and_changelog_name_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d[\d.]*)\]", changelog, re.MULTILINE) == [__version__, "0.2.0", "0.1.0"]
    assert BEFORE_COMMIT in changelog


def test_a_security_policy_supports_this_version() -> None:
    minor = __version__.rpartition(".")[0]
    assert f"| {minor} | yes |" in (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("distribution", release.PARTS)
def test_each_distribution_has_the_license_and_what_an_index_shows(distribution: str) -> None:
    assert (ROOT / distribution / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    project = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]
    assert (project["readme"], project["license"], project["license-files"]) == ("README.md", "Apache-2.0", ["LICENSE"])
    assert (project["requires-python"], len(project["classifiers"]) > 5) == (">=3.11,<3.14", True)
    assert project["urls"] == {"Paper": "https://arxiv.org/abs/2503.09925"}
    scripts = {name for name, place in project.get("scripts", {}).items() if place.endswith(".__main__:main")}
    assert scripts == release.SCRIPTS.get(distribution, set())


@pytest.mark.parametrize("distribution", release.PARTS)
def test_each_room_of_a_distribution_is_typed(distribution: str) -> None:
    rooms = [path for path in (ROOT / distribution / "src" / "pluralllm").iterdir() if (path / "__init__.py").exists()]
    assert [room.name for room in rooms if not (room / "py.typed").exists()] == []


def test_a_good_wheel_has_no_problem() -> None:
    assert list(release.problems_of_wheel("client", wheel())) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda: wheel() | {"pluralllm/__init__.py": b""}, "namespace"),
        (lambda: wheel() | {"tests/test_a.py": b""}, "namespace"),
        (lambda: wheel(LICENSE="another"), "license of this repository"),
        (lambda: wheel(METADATA=METADATA.replace("Requires-Python", "Requires-Pithon")), "unknown fields"),
        (lambda: wheel(METADATA=METADATA.replace(": >=3.11,<3.14", ": three")), "not valid"),
        (lambda: wheel(METADATA=METADATA.replace(f"Version: {__version__}", "Version: 9.9")), "pluralllm-client 9.9"),
        (lambda: wheel(METADATA=METADATA.replace("-client\n", "-server\n", 1)), "pluralllm-server"),
        (lambda: wheel(METADATA=METADATA.replace("License-Expression: Apache-2.0\n", "")), "license or the range"),
        (lambda: wheel(METADATA=METADATA.partition("\n\n")[0] + "\n"), "long description"),
        (lambda: wheel(METADATA=METADATA.replace(":: 3.11", ":: 3.10")), "classifiers"),
        (lambda: wheel(entry_points=ENTRY_POINTS.replace("pluralllm-client =", "client =")), "commands are"),
    ],
)
def test_a_wheel_with_a_problem_is_refused(spoil: Callable[[], dict[str, bytes]], problem: str) -> None:
    assert any(problem in line for line in release.problems_of_wheel("client", spoil()))


def test_the_metadata_of_the_test_is_what_a_parser_knows() -> None:
    assert parse_email(METADATA)[1] == {}


def test_the_hashes_are_those_that_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "b.whl").write_bytes(b"b")
    (tmp_path / "a.cdx.json").write_bytes(b"")
    (tmp_path / "SHA256SUMS").write_text("old")
    lines = [line.split("  ") for line in release.sums(tmp_path).splitlines()]
    assert [name for _, name in lines] == ["a.cdx.json", "b.whl"]
    assert lines[0][0] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_build_that_takes_too_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "BUILD_LIMIT_S", 0.001)
    with pytest.raises(subprocess.TimeoutExpired):
        release.build(ROOT / "client", tmp_path, "wheel")
    assert list(tmp_path.iterdir()) == []


def test_a_release_with_two_versions_is_refused_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.whl").touch()
    monkeypatch.setattr(release, "problems_of_versions", lambda: iter(("client has 9", "server has 8")))
    monkeypatch.setattr("sys.argv", ["release.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: a release has one version:\n  client has 9\n  server has 8\n$"):
        release.main()
    assert [path.name for path in tmp_path.iterdir()] == ["old.whl"]


def test_a_source_archive_that_makes_another_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "contents", lambda _: wheel())
    monkeypatch.setattr(release, "wheel_from_archive", lambda _: wheel(LICENSE="another"))
    problem = r"^error: pluralllm-client cannot be released:\n  the wheel from the source archive has other files\n$"
    with pytest.raises(SystemExit, match=problem):
        release.check("client", Path("dist"))


def test_the_hashes_are_of_all_files_of_the_release_and_of_none_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("old.whl", "old.tar.gz", "a.cdx.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(release, "PARTS", ())
    monkeypatch.setattr("sys.argv", ["release.py", str(tmp_path)])
    assert release.main() == 0
    assert (tmp_path / "SHA256SUMS").read_text() == release.sums(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / 'SHA256SUMS'}: 1 files\n"
