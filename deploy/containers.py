"""Builds the images of deploy/docker with podman, and checks what is in them. `make containers` then runs a federation in them.

.venv/bin/python deploy/containers.py                   with the base image of the Dockerfiles, or one made by debootstrap
.venv/bin/python deploy/containers.py --base IMAGE      with another base image; it needs Python 3.11 as `python`

It exits with 3 if this machine cannot build images; nothing has been checked then.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDES = ("server", "client")
IMAGES = {side: f"localhost/pluralllm-{side}:check" for side in SIDES}
PUBLISHED_BASE = "docker.io/library/python:3.11-slim-bookworm"
MADE_BASE = "localhost/pluralllm-base:bookworm"  # made by debootstrap
SUITE = "bookworm"  # the release of Debian with Python 3.11
IN_BASE = "python3-venv,python-is-python3,ca-certificates"
CANNOT = 3  # exit code: no images can be built here
PULL_LIMIT_S = 300
LIMIT_S = 3600
# What an image must not hold, by the path of a file within it. Certificates of Debian and of Python's packages are public.
UNWANTED = {
    "tests of this repository": re.compile(r"^(?!usr/|.*/(site|dist)-packages/(?!pluralllm/)).*\btests/"),
    "a history of sources": re.compile(r"(^|/)\.git(/|$)"),
    "sources": re.compile(r"^(src|work)/."),
    "a key or an identity": re.compile(
        r"\.(key|p12|pfx|invite)$|(^|/)(identity|authority)/|^(root|home)/\.(ssh|netrc)"
    ),
    "settings of the machine that built it": re.compile(r"(^|/)pip\.conf$"),
    "research": re.compile(r"(^|/)pluralllm/(experiment|align)/"),
}
OTHER_SIDE = {
    "server": re.compile(r"site-packages/(torch|pluralllm/client)/"),
    "client": re.compile(r"site-packages/pluralllm/server/"),
}


class CannotBuild(Exception):
    """This machine has no container engine or no base image."""


def podman(*words: str | Path) -> str:
    """Runs podman and returns its standard output. Its errors go to the terminal; a failure ends the script."""
    command = ["podman", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} exited with {done.returncode}")
    return done.stdout.strip()


def published_base() -> str | None:
    """Returns the base image of the Dockerfiles, named by its digest; None where its registry cannot be reached."""
    words = ["podman", "pull", "--quiet", PUBLISHED_BASE]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PULL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        print(f"the base image cannot be pulled: {last_line(done.stderr)}")
        return None
    return podman("image", "inspect", "--format", "{{index .RepoDigests 0}}", PUBLISHED_BASE)


def made_base() -> str:
    """Returns a base image made of Debian's packages, from the mirror that debootstrap takes. It is made once."""
    if podman("images", "--quiet", MADE_BASE):
        return MADE_BASE
    if shutil.which("debootstrap") is None:
        raise CannotBuild("no base image can be pulled, and there is no debootstrap to make one")
    with tempfile.TemporaryDirectory(prefix="pluralllm-base-") as place:
        root = Path(place) / "root"
        words = ["debootstrap", "--variant=minbase", f"--include={IN_BASE}", SUITE, str(root)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode != 0:
            raise CannotBuild(f"debootstrap failed: {last_line(done.stderr or done.stdout)}")
        for name in ("resolv.conf", "hostname"):  # copies of this machine's
            (root / "etc" / name).unlink(missing_ok=True)
        archive = shutil.make_archive(str(root), "tar", root)
        podman("import", "--quiet", archive, MADE_BASE)
    return MADE_BASE


def base_image(asked_for: str | None) -> str:
    """Returns the name of the base image. Raises CannotBuild without an engine or a base image."""
    if shutil.which("podman") is None:
        raise CannotBuild("there is no podman")
    return asked_for or published_base() or made_base()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


@dataclass(frozen=True, slots=True)
class Sources:
    """The base image, and the packages that a build takes from this machine or from an index."""

    base: str  # name of the base image
    pip_conf: Path | None = None  # pip's settings for the build
    mounts: tuple[str, ...] = ()  # files and folders of this machine that the build reads at the same place
    torch_index: str | None = None  # index of torch without CUDA


def build_words(side: str, sources: Sources) -> list[str]:
    """Returns podman's arguments that build one image."""
    words = ["build", "--quiet", "--format", "docker", "--isolation", "chroot", "--network", "host"]
    words += ["--build-arg", f"BASE={sources.base}"]
    if sources.torch_index and side == "client":
        words += ["--build-arg", f"TORCH_INDEX={sources.torch_index}"]
    if sources.pip_conf:
        words += ["--secret", f"id=pip,src={sources.pip_conf}"]
    for mount in sources.mounts:
        words += ["--volume", f"{mount}:{mount}:ro"]
    return [*words, "--file", f"deploy/docker/{side}.Dockerfile", "--tag", IMAGES[side], str(ROOT)]


def faults(side: str, paths: Iterable[str]) -> Iterator[str]:
    """Yields what an image holds that it must not hold, given the paths of its files."""
    rules = {**UNWANTED, "the other side": OTHER_SIDE[side]}
    for path in paths:
        for what, rule in rules.items():
            if rule.search(path):
                yield f"{what}: {path}"


def paths_of(image: str) -> list[str]:
    """Returns the paths of all files of an image, relative to its root."""
    container = podman("create", "--no-healthcheck", image)
    try:
        with tempfile.TemporaryDirectory() as place:
            archive = Path(place) / "image.tar"
            podman("export", "--output", archive, container)
            with tarfile.open(archive) as files:
                return [member.name.removeprefix("./") for member in files if not member.isdir()]
    finally:
        podman("rm", "--force", "--volumes", container)


def check(side: str) -> None:
    paths = paths_of(IMAGES[side])
    for needed in (f"pluralllm/{side}/__main__.py", "opt/pluralllm/sbom.cdx.json"):
        if not any(path.endswith(needed) for path in paths):
            raise SystemExit(f"error: {IMAGES[side]} holds no {needed}")
    if bad := list(faults(side, paths)):
        shown = "\n  ".join(bad[:20])
        raise SystemExit(f"error: {IMAGES[side]} holds {len(bad)} files that it must not hold:\n  {shown}")
    size_mb = int(podman("image", "inspect", "--format", "{{.Size}}", IMAGES[side])) / 1e6
    print(f"{IMAGES[side]}: {len(paths)} files, {size_mb:.0f} MB")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="Base image; default: the published one, or one made by debootstrap.")
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        help="File or folder that the build reads at the same place, such as wheels. The image holds an empty one.",
    )
    parser.add_argument("--pip-conf", type=Path, help="pip's settings for the build, such as another index.")
    parser.add_argument("--torch-index", help="Another index of torch without CUDA than deploy/locks/torch-index.")
    options = parser.parse_args(arguments)
    try:
        base = base_image(options.base)
    except CannotBuild as error:
        print(f"not checked: {error}", file=sys.stderr)
        return CANNOT
    print(f"base image: {base}")
    sources = Sources(base, options.pip_conf, tuple(options.mount), options.torch_index)
    for side in SIDES:
        podman(*build_words(side, sources))
        check(side)
    return 0


if __name__ == "__main__":
    sys.exit(main())
