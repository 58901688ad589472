"""Writes the lock files of the release into deploy/locks: every package that an installation needs, with version and hashes.

.venv/bin/python deploy/lock.py      or `make locks`; after a change of constraints.txt or of a distribution's dependencies

uv resolves the requirements under constraints.txt and takes the hashes of all files of a version from the package index, so that
a lock file fits Python 3.11 to 3.13 on every machine. `pip install --require-hashes` then accepts these files and no others.
The one exception is client-cpu.txt: its torch comes from another index, which need not have a file for every machine.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "deploy" / "locks"
OURS = ("pluralllm-common", "pluralllm-server", "pluralllm-client")
TORCH_INDEX = (
    (ROOT / "deploy" / "locks" / "torch-index").read_text().strip()
)  # the image of the client reads this file, too
PIN = re.compile(r"^[\w.-]+==", re.MULTILINE)
CONSTRAINTS = ROOT / "constraints.txt"


@dataclass(frozen=True, slots=True)
class Lock:
    """The contents of one lock file. The distributions of this repository are never in it: they come from the checkout."""

    requirements: tuple[str, ...]
    purpose: str
    cpu_torch: bool = False  # torch without CUDA, which the package index does not have for Linux
    python: str = "3.11"  # the oldest version that it fits


WANTED = {
    "server": Lock(("./common[tracing]", "./server"), "the coordinator's image"),
    "client-cpu": Lock(
        ("./common[tracing]", "./client[train,noise]"), "the client's image without CUDA", cpu_torch=True
    ),
    "client-cuda": Lock(("./common[tracing]", "./client[train,noise]"), "the client's image with CUDA 13"),
    "operator": Lock(
        ("./common[tracing]", "./server", "./client"), "a coordinator's host, with the operator's command"
    ),
    "build": Lock(("hatchling", "cyclonedx-bom"), "building the distributions and listing an image's packages"),
    # pymdown-extensions needs 3.11.5.
    "site": Lock(("mkdocs-material", "mkdocstrings[python]", "ruff"), "building the site of docs/", python="3.11.5"),
    "manifests": Lock(("kubernetes-validate", "check-jsonschema"), "validating the manifests of deploy/"),
}


def header(name: str, lock: Lock) -> str:
    """Returns the first lines of a lock file."""
    return (
        f"# For {lock.purpose}. Made by `make locks`; do not edit.\n"
        f"# Use: pip install --require-hashes -r deploy/locks/{name}.txt\n"
    )


def resolve(lock: Lock, torch_from: str) -> str:
    """Returns the text of a lock file without its header. torch_from: index or folder that has torch without CUDA."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder) / "overrides.txt"
        arguments = ["--constraints", "constraints.txt"]
        if lock.cpu_torch:
            overrides.write_text(f"torch=={pinned('torch')}+cpu\n")
            place = "--index" if "://" in torch_from else "--find-links"
            arguments += ["--overrides", str(overrides), place, torch_from]
        for name in OURS:
            arguments += ["--no-emit-package", name]
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--no-config",
            "--no-header",
            "--no-annotate",
        ]
        command += ["--generate-hashes", "--universal", "--python-version", lock.python, *arguments, "-"]
        wanted = "\n".join(lock.requirements)
        done = subprocess.run(command, cwd=ROOT, input=wanted, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"uv could not resolve {', '.join(lock.requirements)}:\n{done.stderr}")
    return done.stdout


def pinned(name: str) -> str:
    """Returns the version of a package in constraints.txt."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.partition("==")[2]
    raise SystemExit(f"constraints.txt does not pin {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-from", default=TORCH_INDEX, help="Index or folder of wheels of torch without CUDA.")
    torch_from = str(parser.parse_args().torch_from)
    for name, lock in WANTED.items():
        text = resolve(lock, torch_from)
        (LOCKS / f"{name}.txt").write_text(header(name, lock) + text)
        print(f"deploy/locks/{name}.txt: {len(PIN.findall(text))} packages, {text.count('--hash=')} hashes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
