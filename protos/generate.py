"""Generates Python code from protos/ into a source folder: `python protos/generate.py common/src`."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def generate(target: Path) -> None:
    """Writes messages, gRPC stubs and their type stubs into `target`. It needs the development dependencies."""
    out = target.resolve()
    files = sorted(str(path.relative_to(HERE)) for path in HERE.glob("pluralllm/v1/*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *files]
    command += [f"--{kind}_out={out}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, cwd=HERE, check=True, env={**os.environ, "PATH": tools}, stderr=subprocess.DEVNULL)  # noqa: S603


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
