"""Client process that does not train; it answers each task with a delta in which all values are equal. echo.py starts it.

In all other respects it works as the daemon does: with the daemon's transport, hashes at both ends, a file for the model and
a file for the update.
"""

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path

import numpy as np

from pluralllm.client.link.tasks import Introduction, RunOver, Scores, Task, Wait
from pluralllm.client.link.transport import Transport
from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.layout import read_layout, write_weights
from pluralllm.common.words.ids import ClientId, Digest
from pluralllm.common.words.names import TaskKind
from pluralllm.common.words.spec import GroupRole, parse_spec

SLICE = 262_144  # values
LIMIT_S = 900.0


def write_constant(base: Path, out: Path, value: float) -> Manifest:
    """Writes a delta to the file `out`, in which every parameter has the same value; its layout is that of the model in `base`.

    Returns the manifest (digest and chunks) of the file.
    """
    layout = read_layout(base)
    piece = np.full(SLICE, value, dtype=np.float32)
    whole, rest = divmod(layout.values, SLICE)
    return write_weights(out, layout, (piece[:size] for size in (*[SLICE] * whole, rest)))


async def echo(transport: Transport, name: str, run: str, folder: Path) -> None:
    """Polls the coordinator for tasks of the run and answers them until the run is over.

    name: the client's name. folder: for the files of model and update.
    """
    await transport.hello(Introduction(f"group of {name}", GroupRole.TRAIN, questions=100))
    number = sum(name.encode()) % 100
    size_bytes: dict[str, int] = {}  # of a run's model
    while True:
        answer = await transport.poll(None, [run])  # type: ignore[list-item]
        match answer:
            case RunOver():
                return
            case Wait(after_s, _):
                await asyncio.sleep(after_s)
            case Task():
                if answer.kind is TaskKind.EVALUATE:
                    await transport.report_scores(answer.name, Scores(0.7, 0.4, None, 50))
                    continue
                base = folder / answer.base_digest
                if answer.run not in size_bytes:
                    parsed = parse_spec(await transport.run_spec(answer.run), "of the run")
                    size_bytes[answer.run] = layout_for(parsed).size_bytes
                expected_bytes = size_bytes[answer.run]
                await transport.fetch_model(answer.run, answer.base_version, answer.base_digest, expected_bytes, base)
                delta, value = folder / "delta", (answer.round + number / 100) * 1e-6
                manifest = await asyncio.to_thread(write_constant, base, delta, value)
                spec, digest = Digest(answer.spec_sha256), Digest(answer.base_digest)
                await transport.push_update(answer.name, delta, manifest, spec, digest, 100, {})
                base.unlink()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--identity", type=Path)
    arguments = parser.parse_args()
    if arguments.identity is None:
        transport = Transport.in_plain_text(arguments.address, ClientId(arguments.name))
    else:
        transport = Transport.of_member(load_identity(arguments.identity, "").at(arguments.address))
    try:
        async with asyncio.timeout(LIMIT_S):
            await echo(transport, arguments.name, arguments.run, arguments.folder)
    finally:
        await transport.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    usage_facts = {"peak_mb": usage.ru_maxrss / 1024, "cpu_s": time.process_time()}
    print(
        json.dumps({**usage_facts, "sent": transport.traffic.sent_bytes, "received": transport.traffic.received_bytes})
    )


if __name__ == "__main__":
    asyncio.run(main())
