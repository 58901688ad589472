"""The packages and images that a release is made of: exact versions, hashes, digests."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy" / "locks"
LINUX = {name: str(value) for name, value in default_environment().items()} | {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
BUILD_ONLY = {"build", "site", "manifests"}
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
TRACING = ("pluralllm-common", {"tracing"})
CONTENTS = {
    "server": (TRACING, ("pluralllm-server", set[str]())),
    "client-cpu": (TRACING, ("pluralllm-client", {"train", "noise"})),
    "client-cuda": (TRACING, ("pluralllm-client", {"train", "noise"})),
    "operator": (TRACING, ("pluralllm-server", set[str]()), ("pluralllm-client", set[str]())),
}


def locked(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Returns the requirements of a lock file with their hashes, by canonical name."""
    entries: dict[str, tuple[Requirement, list[str]]] = {}
    for block in re.split(r"\n(?=\S)", (LOCKS / f"{name}.txt").read_text()):
        if block.startswith("#"):
            continue
        first, *hashes = block.replace("\\\n", "\n").split("\n")
        requirement = Requirement(first.strip())
        entries[canonicalize_name(requirement.name)] = (requirement, [line.strip() for line in hashes if line.strip()])
    return entries


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("name", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_every_locked_package_has_one_version_and_hashes(name: str) -> None:
    entries = locked(name)
    assert len(entries) > (15 if name in BUILD_ONLY else 30)
    for package, (requirement, hashes) in entries.items():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", package
        assert requirement.url is None, package
        assert hashes, package
        assert [line for line in hashes if not re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line)] == [], package


@pytest.mark.parametrize("name", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_a_locked_version_is_the_version_that_the_tests_ran_with(name: str) -> None:
    tested = pins()
    for package, (requirement, _) in locked(name).items():
        (specifier,) = requirement.specifier
        if package in tested:
            expected = tested[package] + ("+cpu" if (name, package) == ("client-cpu", "torch") else "")
            assert specifier.version == expected, package
        else:
            elsewhere = requirement.marker is not None and not requirement.marker.evaluate(LINUX)
            assert name in BUILD_ONLY or elsewhere or CUDA.match(package), f"constraints.txt does not pin {package}"


def needed(roots: Iterable[tuple[str, set[str]]]) -> set[str]:
    """Returns the packages that an installation on Linux needs, by the metadata of what is installed here."""
    waiting = [(canonicalize_name(package), frozenset(extras)) for package, extras in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        package, extras = step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        for line in metadata.requires(package) or []:
            requirement = Requirement(line)
            contexts = [{**LINUX, "extra": extra} for extra in ("", *extras)]
            if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {package for package, _ in seen if not package.startswith("pluralllm-")}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_lock_file_has_everything_that_an_installation_needs_and_nothing_else(name: str) -> None:
    packages = {
        package
        for package, (requirement, _) in locked(name).items()
        if not requirement.marker or requirement.marker.evaluate(LINUX)
    }
    of_cuda = {package for package in packages if CUDA.match(package)}
    assert packages - of_cuda == needed(CONTENTS[name])
    assert bool(of_cuda) == (name == "client-cuda")


def test_every_lock_file_is_written_by_the_script() -> None:
    written = runpy.run_path(str(ROOT / "deploy" / "lock.py"))["WANTED"]
    assert written.keys() == {path.stem for path in LOCKS.glob("*.txt")} == {*CONTENTS, *BUILD_ONLY}


def test_the_build_tools_are_locked_as_well() -> None:
    backends = set()
    for side in ("common", "server", "client"):
        project = tomllib.loads((ROOT / side / "pyproject.toml").read_text())
        backends |= {canonicalize_name(Requirement(line).name) for line in project["build-system"]["requires"]}
    assert backends | {"cyclonedx-bom"} <= locked("build").keys()


@pytest.mark.parametrize("name", ["server", "client"])
def test_an_image_installs_nothing_without_a_hash_and_lists_what_it_holds(name: str) -> None:
    text = (ROOT / "deploy" / "docker" / f"{name}.Dockerfile").read_text()
    installs = re.findall(r"pip (?:install|wheel) [^&\n]*", text)
    assert len(installs) == 4
    for command in installs:
        from_the_index = "--require-hashes" in command
        from_here = "--no-index --no-deps" in command and ("wheel " not in command or "--no-build-isolation" in command)
        assert from_the_index != from_here, command
        assert "*.whl" not in command, "the list of packages would name the folder of the wheel"
    (lock,) = re.findall(r'/opt/pluralllm/bin/pip install --require-hashes .*-r "?(\S+?)"?$', text, re.MULTILINE)
    chosen = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    assert (ROOT / lock.replace("$LOCK", chosen.get("LOCK", ""))).exists()
    assert re.search(
        r"cyclonedx-py environment .*-o /opt/pluralllm/sbom.cdx.json /opt/pluralllm/bin/python$", text, re.M
    )


DOCKER = """#!/bin/sh
[ "$*" = "buildx imagetools inspect --format {{.Manifest.Digest}} $6" ] || exit 2
echo "$6" >> "$(dirname "$0")/asked"
case "$6" in
  postgres:17) echo "sha256:$(printf 'b%.0s' $(seq 64))" ;;
  *) echo "sha256:$(printf 'a%.0s' $(seq 64))" ;;
esac
"""


def digests(folder: Path, docker: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs image_digests.py with a command `docker` that is a shell script."""
    tool = folder / "docker"
    tool.write_text(docker)
    tool.chmod(0o755)
    script = ROOT / "deploy" / "image_digests.py"
    return subprocess.run(
        [sys.executable, str(script), str(folder / "compose.env"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )


def test_the_digests_of_all_images_are_looked_up_once_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "compose.env"
    file.write_text((ROOT / "deploy" / "compose.env.example").read_text())
    done = digests(tmp_path, DOCKER)
    assert done.returncode == 0, done.stderr
    lines = file.read_text().splitlines()
    assert f"PYTHON_DIGEST=sha256:{64 * 'a'}" in lines
    assert f"POSTGRES_DIGEST=sha256:{64 * 'b'}" in lines
    assert "POSTGRES_PASSWORD=change-me" in lines
    assert [line for line in lines if line.endswith("_DIGEST=")] == []
    variables = [line.partition("=")[0] for line in lines if line.partition("=")[0].endswith("_DIGEST")]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(variables) == len(set(variables)) == len(asked) == 6
    before = file.read_text()
    assert digests(tmp_path, "exit 1\n").returncode == 0, "nothing is looked up again"
    assert file.read_text() == before
    assert digests(tmp_path, DOCKER.replace("'b%.0s'", "'c%.0s'"), "--renew").returncode == 0
    assert f"POSTGRES_DIGEST=sha256:{64 * 'c'}" in file.read_text().splitlines()


@pytest.mark.parametrize("docker", ["#!/bin/sh\necho no such host >&2; exit 1\n", "#!/bin/sh\necho latest\n"])
def test_a_digest_that_cannot_be_looked_up_leaves_the_file_as_it_is(tmp_path: Path, docker: str) -> None:
    (tmp_path / "compose.env").write_text("PYTHON_DIGEST=\n")
    done = digests(tmp_path, docker)
    assert done.returncode == 1
    assert "error: no digest of " in done.stderr
    assert (tmp_path / "compose.env").read_text() == "PYTHON_DIGEST=\n"


def test_the_index_of_torch_without_cuda_is_named_in_one_place() -> None:
    index = (LOCKS / "torch-index").read_text().strip()
    host = index.split("/")[2]
    places = [*(ROOT / "deploy").rglob("*"), ROOT / "Makefile", *(ROOT / ".github").rglob("*")]
    naming = [path for path in places if path.is_file() and host in path.read_text(errors="ignore")]
    assert [path.name for path in naming if path.suffix != ".txt"] == ["torch-index"]
    assert runpy.run_path(str(ROOT / "deploy" / "lock.py"))["TORCH_INDEX"] == index
    dockerfile = (ROOT / "deploy" / "docker" / "client.Dockerfile").read_text()
    assert "COPY deploy/locks " in dockerfile
    assert "cat deploy/locks/torch-index" in dockerfile
