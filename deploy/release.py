"""Builds the wheels and source archives of a release, checks them, and writes the hashes of all its files. It uploads nothing.

.venv/bin/python deploy/release.py dist      or `make release`, which adds a list of the packages that each image holds (SBOM)

Checks: the four distributions and the code have one version; the metadata is valid, with license, long description and the Python
versions; a wheel holds the folder `pluralllm` and nothing else; a wheel that is built from the source archive has the same files.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from packaging.metadata import Metadata, RawMetadata, parse_email

from pluralllm.common import __version__

ROOT = Path(__file__).parents[1]
PARTS = ("common", "server", "client", "research")
SUMS = "SHA256SUMS"
BUILT = ("*.whl", "*.tar.gz", SUMS)
BUILD_LIMIT_S = 120.0
SCRIPTS = {"server": {"pluralllm-server"}, "client": {"pluralllm", "pluralllm-client"}}


def refuse(what: str, problems: Sequence[str]) -> NoReturn:
    """Ends the program with an error and its problems, one on each line."""
    raise SystemExit(f"error: {what}:\n" + "".join(f"  {line}\n" for line in problems))


def build(project: Path, folder: Path, *targets: str) -> None:
    """Builds the distributions of one project into a folder. targets: `sdist`, `wheel` or both.

    Raises SystemExit if the project cannot be built, TimeoutExpired after BUILD_LIMIT_S.
    """
    words = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    words += [word for target in targets for word in ("--target", target)]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=BUILD_LIMIT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {project} cannot be built:\n{done.stderr}")


def contents(wheel: Path) -> dict[str, bytes]:
    """Returns the files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def wheel_from_archive(archive: Path) -> dict[str, bytes]:
    """Returns the files of the wheel that is built from a source archive, by name."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (project,) = Path(folder).iterdir()
        build(project, Path(folder, "built"), "wheel")
        (wheel,) = Path(folder, "built").iterdir()
        return contents(wheel)


def project_of(distribution: str) -> Mapping[str, Any]:
    """Returns the table [project] of a distribution."""
    table: Mapping[str, Any] = tomllib.loads((ROOT / distribution / "pyproject.toml").read_text())["project"]
    return table


def problems_of_versions() -> Iterator[str]:
    """Yields a line for each version in the sources that differs from the version of the code."""
    for distribution in PARTS:
        project = project_of(distribution)
        if project["version"] != __version__:
            yield f"{distribution}/pyproject.toml has version {project['version']}, the code has {__version__}"
        extras = project.get("optional-dependencies", {}).values()
        for line in [*project["dependencies"], *(line for lines in extras for line in lines)]:
            if line.startswith("pluralllm-") and not line.endswith(f"=={__version__}"):
                yield f"{distribution}/pyproject.toml requires {line}, not =={__version__}"


def problems_of_wheel(distribution: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Yields a line for each problem of a wheel. distribution: the distribution's folder. files: the wheel's files by name."""
    information = f"pluralllm_{distribution}-{__version__}.dist-info/"
    strange = [name for name in files if not name.startswith(("pluralllm/", information))]
    if strange or "pluralllm/__init__.py" in files:
        yield f"the wheel holds {strange or 'pluralllm/__init__.py'}: the namespace would not be shared"
    if files.get(f"{information}licenses/LICENSE") != (ROOT / "LICENSE").read_bytes():
        yield "the wheel has not the license of this repository"
    raw, unknown = parse_email(files[f"{information}METADATA"])
    if unknown:
        yield f"the metadata has unknown fields: {', '.join(unknown)}"
    yield from problems_of_metadata(distribution, raw)
    entry_points = files.get(f"{information}entry_points.txt", b"").decode()
    scripts = {line.split(" = ")[0] for line in entry_points.splitlines() if line.endswith("__main__:main")}
    if scripts != SCRIPTS.get(distribution, set()):
        yield f"the commands are {sorted(scripts)}"


def problems_of_metadata(distribution: str, raw: RawMetadata) -> Iterator[str]:
    """Yields a line for each problem of a wheel's metadata. distribution: the distribution's folder."""
    try:
        metadata = Metadata.from_raw(raw)
    except ExceptionGroup as errors:
        yield from (f"the metadata is not valid: {error}" for error in errors.exceptions)
        return
    if (metadata.name, str(metadata.version)) != (f"pluralllm-{distribution}", __version__):
        yield f"the wheel is {metadata.name} {metadata.version}"
    if metadata.license_expression != "Apache-2.0" or metadata.requires_python is None:
        yield "the license or the range of Python versions is missing"
    if (ROOT / distribution / "README.md").read_text() not in (metadata.description or ""):
        yield "README.md is not the long description"
    versions = [line.rsplit(" ", 1)[1] for line in metadata.classifiers or [] if "Python :: 3." in line]
    if [one for one in versions if metadata.requires_python is None or one not in metadata.requires_python]:
        yield f"the classifiers name versions outside {metadata.requires_python}"


def check(distribution: str, folder: Path) -> None:
    """Checks the wheel and the source archive of one distribution. Raises SystemExit with all problems."""
    stem = f"pluralllm_{distribution}-{__version__}"
    wheel, archive = folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz"
    files = contents(wheel)
    problems = list(problems_of_wheel(distribution, files))
    if wheel_from_archive(archive) != files:
        problems.append("the wheel from the source archive has other files")
    if problems:
        refuse(f"pluralllm-{distribution} cannot be released", problems)
    print(f"{wheel.name}: {len(files)} files, {wheel.stat().st_size} bytes; {archive.name}: the same wheel")


def sums(folder: Path) -> str:
    """Returns the lines of SHA256SUMS for all files below a folder, as `sha256sum --check` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in paths
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder for the files. Earlier wheels, archives and hashes in it go.")
    folder = Path(parser.parse_args().folder)
    if problems := list(problems_of_versions()):
        refuse("a release has one version", problems)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in BUILT:
        for path in folder.glob(pattern):
            path.unlink()
    for distribution in PARTS:
        build(ROOT / distribution, folder.absolute(), "sdist", "wheel")
        check(distribution, folder)
    lines = sums(folder)
    (folder / SUMS).write_text(lines)
    print(f"{folder / SUMS}: {len(lines.splitlines())} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
