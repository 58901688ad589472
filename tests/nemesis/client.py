"""One client as in the drills, in a process of its own; it trains for a moment and copies all that it sends.

`python -m nemesis.client HOME`. A thief of the client's key could send the copies again: see replay.py.
"""

import asyncio
import json
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drill import client as drill
from drill.private_clients import RecordingTransport
from nemesis import pace

from pluralllm.client.daemon import polling, renewal
from pluralllm.client.link import transport
from pluralllm.client.work.orders import Train
from pluralllm.common.process.logs import configure_logs
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.wire import channels
from pluralllm.common.words.ids import Digest, TaskId
from pluralllm.common.words.noise import NoiseStatement

SENT = "sent"  # the name of a folder in HOME
TRAINING_S = 0.25  # the longest time
STEP_S = 0.1  # the longest time before a message of a private round leaves, so that strikes meet each step


class PacedWorker(drill.ScriptedWorker):
    """A worker whose training takes a time that follows from the task."""

    async def answer(self, order: object) -> object:
        if isinstance(order, Train):
            await asyncio.sleep(TRAINING_S * (order.seed % 100) / 100)
        return await super().answer(order)


class CopyingTransport(RecordingTransport):
    """A transport that writes a copy of each update before it sends it, and waits before each message of a private round."""

    folder = Path()

    async def call(self, method: str, request: Any, deadline_s: float | None = None) -> Any:
        if method == "PutRoundStep":
            await asyncio.sleep(
                STEP_S * (zlib.crc32(f"{request.task} {request.WhichOneof('body')}".encode()) % 100) / 100
            )
        return await super().call(method, request, deadline_s)

    async def push_update(
        self,
        task: TaskId,
        path: Path,
        manifest: Manifest,
        spec_sha256: Digest,
        base: Digest,
        examples: int,
        metrics: Mapping[str, float],
        noise: NoiseStatement | None = None,
        statement: bytes = b"",
    ) -> None:
        facts = {"task": task, "spec_sha256": spec_sha256, "base": base, "examples": examples, "metrics": {**metrics}}
        facts["statement"] = statement.hex()
        copy = self.folder / task.replace("/", ".")
        if not copy.with_suffix(".json").exists():
            shutil.copyfile(path, copy.with_suffix(".part"))
            copy.with_suffix(".part").rename(copy.with_suffix(".bytes"))
            copy.with_suffix(".draft").write_text(json.dumps(facts))
            # The JSON file comes last, so that its update is complete when it is there.
            copy.with_suffix(".draft").rename(copy.with_suffix(".json"))
        await super().push_update(task, path, manifest, spec_sha256, base, examples, metrics, noise, statement)


def main() -> None:
    """Runs the client whose folder the command line names."""
    home = Path(sys.argv[1])
    configure_logs(form="json", level="DEBUG")
    drill.hurry()
    polling.APPROVAL_WAIT_S = renewal.DIAGNOSE_EVERY_S = 1.0
    transport.RETRY_FOR_S = 20.0
    channels.DAEMON_OPTIONS = pace.faster_keepalive(channels.DAEMON_OPTIONS)  # type: ignore[attr-defined]
    pace.wrong_clock()
    CopyingTransport.folder = home / SENT
    CopyingTransport.folder.mkdir(exist_ok=True)
    asyncio.run(drill.play(home, CopyingTransport, PacedWorker))


if __name__ == "__main__":
    main()
