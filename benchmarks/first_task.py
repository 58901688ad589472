"""Measures the time from the start of a coordinator until a client has received its first task.

.venv/bin/python benchmarks/first_task.py [--runs 7]

The coordinator's state directory holds a run that was started before. The coordinator starts as a process, and a client that
knows its address calls it until it answers. The time includes the coordinator's Python start and imports, but not the client's.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from idle_clients import connected, spec_of
from processes import administrator, coordinator, free_port

from pluralllm.client.link.tasks import Introduction, Task
from pluralllm.common.errors.tree import Unreachable
from pluralllm.common.words.spec import GroupRole

NAME = "first"
LIMIT_S = 30.0


async def first_task(address: str) -> None:
    transport = connected(address, NAME)
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                with contextlib.suppress(Unreachable):
                    await transport.hello(Introduction(f"group of {NAME}", GroupRole.TRAIN, questions=100))
                    break
                await asyncio.sleep(0.01)
            while not isinstance(await transport.poll(None, []), Task):
                pass
    finally:
        await transport.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    lengths_s = []
    for _ in range(arguments.runs):
        with tempfile.TemporaryDirectory() as name:
            folder, address = Path(name), f"127.0.0.1:{free_port()}"
            with coordinator(folder, plain_text=True):
                remote = administrator(folder, plain_text=True)
                remote.create_run("run", spec_of(f"group of {NAME}").canonical_json())
                remote.start_run("run")
                remote.close()
            began_s = time.perf_counter()
            with coordinator(folder, plain_text=True, listen=address):
                asyncio.run(first_task(address))
                lengths_s.append(time.perf_counter() - began_s)
    print(
        f"from the coordinator's start to a first task: {statistics.median(lengths_s):.2f} s "
        f"({min(lengths_s):.2f} to {max(lengths_s):.2f}, {arguments.runs} runs)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
