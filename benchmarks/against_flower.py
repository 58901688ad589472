"""Compares the rounds of echo.py's federation with the same federation in Flower's deployment runtime.

.venv/bin/python benchmarks/against_flower.py [--points 8x4 8x64] [--rounds 4] [--venv FOLDER]

Flower is installed into its own virtual environment (--venv, created if it does not exist), in the version named below. Its
SuperLink, SuperNodes and apps run with Flower's own defaults: in plain text, with state in memory. Our coordinator keeps its
state on disk and uses mutual TLS. The first round of each federation does not count.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from echo import WIDTHS, service, spread
from processes import free_port

FLOWER = "flwr==1.41.0"
APP = Path(__file__).parent / "flower"
LIMIT_S = 900.0


def installed(venv: Path, flower: str = FLOWER, *, sees_this_environment: bool = False) -> Path:
    """Installs Flower into the virtual environment `venv` if needed, and returns the folder of its commands.

    flower: Flower's package, with its version. sees_this_environment: whether torch and our packages come from this environment.
    """
    commands, done = venv / "bin", venv / "installed"
    if done.exists():
        return commands
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    if sees_this_environment:
        packages_of_venv = sysconfig.get_path("purelib", vars={"base": str(venv)})
        (Path(packages_of_venv) / "experiment.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own go first
    pip = [str(commands / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, flower, *([] if sees_this_environment else ["numpy"])], check=True, timeout=900)
    done.touch()
    return commands


@contextlib.contextmanager
def started(
    commands: list[list[str]], log: Path, environment: dict[str, str]
) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Starts the commands as processes, and kills them and their children at the end of the `with` block."""
    with log.open("wb") as file:
        running = [subprocess.Popen(command, stdout=file, stderr=file, env=environment) for command in commands]
        try:
            yield running
        finally:
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(process.pid).children(recursive=True):
                        child.kill()
                process.kill()
                process.wait(10)


def flower(commands: Path, folder: Path, clients: int, megabytes: int, rounds: int) -> list[float]:
    """Runs the federation in Flower; returns the durations of its rounds in seconds, without the first round.

    commands: folder of Flower's commands. megabytes: size of the model.
    """
    port = free_port()  # the SuperLink uses it for all its interfaces
    home, ends = folder / "home", folder / "ends"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{commands}:{os.environ['PATH']}",
    }
    link = [str(commands / "flower-superlink"), "--insecure", "--port", str(port)]
    node = [str(commands / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
    nodes = [[*node, "--port", str(free_port())] for _ in range(clients)]
    asked = f"rounds={rounds} clients={clients} megabytes={megabytes} ends='{ends}'"
    with (
        started([link], folder / "link.log", environment),
        started(nodes, folder / "nodes.log", environment),
    ):
        until_s = time.monotonic() + LIMIT_S
        run = [str(commands / "flwr"), "run", str(APP), "bench", "--run-config", asked]
        while subprocess.run(run, capture_output=True, timeout=120, env=environment, check=False).returncode:
            if time.monotonic() > until_s:
                raise SystemExit((folder / "link.log").read_text()[-3000:])
            time.sleep(1)
        while not ends.exists() or len(ends.read_text().split()) < rounds:
            if time.monotonic() > until_s:
                raise SystemExit((folder / "link.log").read_text()[-3000:] + (folder / "nodes.log").read_text()[-2000:])
            time.sleep(0.2)
    moments = [float(end) for end in ends.read_text().split()]
    return [after - before for before, after in itertools.pairwise(moments)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="+", default=["8x4", "8x64"], metavar="CLIENTSxMB")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "pluralllm-flower")
    arguments = parser.parse_args()
    commands = installed(arguments.venv)
    print(f"{FLOWER}\n{'clients x MB':<14}{'ours s':>18}{'Flower s':>20}{'ratio':>8}")
    for point in arguments.points:
        clients, megabytes = map(int, point.split("x"))
        if megabytes not in WIDTHS:
            parser.error(f"no model of {megabytes} MB; there are: {', '.join(map(str, WIDTHS))}")
        with tempfile.TemporaryDirectory() as our_folder, tempfile.TemporaryDirectory() as flower_folder:
            ours, _ = service(Path(our_folder), clients, megabytes, arguments.rounds, is_secure=True)
            other = flower(commands, Path(flower_folder), clients, megabytes, arguments.rounds)
        ratio = statistics.median(other) / statistics.median(ours.rounds_s)
        print(f"{clients} x {megabytes:<10}{spread(ours.rounds_s):>18}{spread(other):>20}{ratio:>8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
