"""Writes the digests of the images that deploy/ uses into a file of environment variables.

python3 deploy/image_digests.py deploy/compose.env              digests that the file lacks
python3 deploy/image_digests.py --renew deploy/compose.env      all, when the tags have newer images

A tag can be moved to another image; a digest is the hash of one image. The file belongs to an installation: keep it, so that the
next build and the next start use the same images. It needs `docker buildx`, and no package of this repository.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).parent
FILES = (*sorted((DEPLOY / "docker").glob("*.Dockerfile")), DEPLOY / "compose.yaml")
PINNED = re.compile(r"([\w./-]+:[\w.-]+)@\$\{(\w+_DIGEST)\b")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def images() -> dict[str, str]:
    """Returns the tag of each image in the files of deploy/, by the name of the variable that holds its digest."""
    return {variable: tag for file in FILES for tag, variable in PINNED.findall(file.read_text())}


def digest_of(tag: str) -> str:
    """Asks the image's registry for the digest of a tag. The digest covers the image for every kind of processor."""
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", tag]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        raise SystemExit("error: there is no docker here; install Docker with buildx") from None
    digest = done.stdout.strip()
    if done.returncode != 0 or not DIGEST.fullmatch(digest):
        raise SystemExit(f"error: no digest of {tag}: {(done.stderr or digest).strip()}")
    return digest


def filled(text: str, *, renew: bool) -> str:
    """Returns the text of an environment file with the digest of every image. Other lines stay as they are.

    renew: whether digests that the file has already are looked up again.
    """
    lines = text.splitlines()
    for variable, tag in images().items():
        at = [number for number, line in enumerate(lines) if line.partition("=")[0].strip() == variable]
        if at and not renew and DIGEST.fullmatch(lines[at[-1]].partition("=")[2].strip()):
            continue
        line = f"{variable}={digest_of(tag)}"
        print(f"{tag}@{line.partition('=')[2]}")
        for number in reversed(at):
            del lines[number]
        lines.insert(at[0] if at else len(lines), line)
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="Environment file, such as deploy/compose.env.")
    parser.add_argument("--renew", action="store_true", help="Look up the digests that the file has already, too.")
    arguments = parser.parse_args()
    text = filled(arguments.file.read_text() if arguments.file.exists() else "", renew=arguments.renew)
    arguments.file.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
