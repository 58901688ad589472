"""Validates the manifests of deploy/ against the schemas of Kubernetes and of Compose: `make manifests`.

.stamps/manifests/bin/python deploy/manifests.py [COMPOSE.yaml]...       further compose files are validated as well

kubectl makes one manifest of each kustomization. kubernetes-validate and check-jsonschema, which hold the schemas, are in the
environment of deploy/locks/manifests.txt. Nothing is loaded from elsewhere.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DEPLOY = Path(__file__).parent
KUSTOMIZATIONS = sorted(path.parent for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"))
VERSIONS = ("1.28", "1.37")  # of Kubernetes: the oldest and the newest one
TOOLS = Path(sys.executable).parent
LIMIT_S = 120


def output_of(words: Sequence[str | Path], text: str | None = None) -> str:
    """Runs a command with a text as its input; returns what it prints. A failure ends the script with the command's words."""
    try:
        done = subprocess.run(
            [str(word) for word in words], input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except FileNotFoundError:
        raise SystemExit(f"error: there is no {words[0]} here; nothing was validated with it") from None
    if done.returncode != 0:
        raise SystemExit(f"error: {words[0]} {words[-1]}: {done.stdout}{done.stderr}")
    return done.stdout


def validate_kustomization(folder: Path) -> int:
    """Validates what kubectl makes of a folder; returns the number of its resources."""
    manifest = output_of(["kubectl", "kustomize", folder])
    resources = sum(line.startswith("kind: ") for line in manifest.splitlines())
    for version in VERSIONS:
        report = output_of([TOOLS / "kubernetes-validate", "--strict", "-k", version, "-"], manifest)
        if report.count(" passed ") != resources:
            raise SystemExit(f"error: {folder}: not all of {resources} resources have a schema:\n{report}")
    return resources


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compose", nargs="*", type=Path, help="Further compose files.")
    further = parser.parse_args(arguments).compose
    for folder in KUSTOMIZATIONS:
        print(f"{folder.relative_to(DEPLOY)}: {validate_kustomization(folder)} resources")
    for file in (DEPLOY / "compose.yaml", *further):
        output_of([TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file])
        print(f"{file.name}: a compose file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
