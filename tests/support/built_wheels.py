"""Wheels of this release and of the release before it, for tests that run what a user installs and not the clone."""

import subprocess
import zipfile
from pathlib import Path

import release

ROOT = Path(__file__).parents[2]
# Release 0.2.0: the tag, or where it is not pushed, the last commit before the version became 0.3.0. Its files still say 0.1.0.
BEFORE_TAG = "v0.2.0"
BEFORE_COMMIT = "31013d38fd832436f3cf34d6b61c84a9b6cb3b8f"


def build_wheels(sources: Path, folder: Path, parts: tuple[str, ...] = release.PARTS) -> Path:
    """Builds the wheels of a tree of sources into a folder, and returns the folder."""
    for distribution in parts:
        release.build(sources / distribution, folder, "wheel")
    return folder


def unpacked(wheels: Path, folder: Path) -> Path:
    """Unpacks all wheels of a folder into one folder, from which Python can import them, and returns this folder."""
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def commit_before() -> str | None:
    """Returns the commit of release 0.2.0; None in a clone that does not hold it, such as a shallow one."""
    for name in (f"refs/tags/{BEFORE_TAG}", BEFORE_COMMIT):
        words = ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
        found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    return None


def sources_of(commit: str, folder: Path) -> Path:
    """Writes the four distributions of a commit into a folder, and returns the folder."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", commit, *release.PARTS], cwd=ROOT, capture_output=True, timeout=60, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, timeout=60, check=True)
    return folder
