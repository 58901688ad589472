"""Writes the generated code of protos/ into the given source folder: `python protos/generate.py common/src`."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def generate(target: Path) -> None:
    """Messages, gRPC stubs and their type stubs. Needs the development dependencies of this environment."""
    out = target.resolve()
    files = sorted(str(path.relative_to(HERE)) for path in HERE.glob("pluralllm/v1/*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *files]
    command += [f"--{kind}_out={out}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, cwd=HERE, check=True, env={**os.environ, "PATH": tools}, stderr=subprocess.DEVNULL)  # noqa: S603


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
