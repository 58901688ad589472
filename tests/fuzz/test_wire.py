"""Bytes from the wire become domain objects or are refused: libFuzzer searches inputs by the code that they reach.

PLURALLLM_FAULTS=all gives the fuzzer its whole budget.
"""

import base64
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzz.wire_decoders import NAMES, decode, seeds
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import NormTooLarge
from pluralllm.common.trust.invite import LINE_PREFIX
from pluralllm.v1.enrolment_pb2 import GetMembershipResponse
from pluralllm.v1.federation_pb2 import BeginUpdateResponse
from pluralllm.v1.resources_pb2 import ChunkRange

BUDGET_S = 60 if os.environ.get("PLURALLLM_FAULTS") == "all" else 6
START_LIMIT_S = 60.0  # for the imports and their instrumentation
BOMB = b'{"a":{"dtype":"F32","shape":["x",1000000000],"data_offsets":[0,4]}}'
TARGET = Path(__file__).with_name("wire_target.py")
needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None,
    reason="atheris is not installed: it has wheels for x86-64 Linux only",
)


def fuzz(folder: Path, budget_s: int, *options: str) -> "subprocess.CompletedProcess[str]":
    """Runs the fuzzer from the seeds, for at most `budget_s` seconds."""
    for number, seed in enumerate(seeds().values()):
        (folder / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={budget_s}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-seed=1"]
    command = [sys.executable, str(TARGET), *options, *limits, f"-artifact_prefix={folder}/found-", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=budget_s + START_LIMIT_S,
        check=False,
        env=environment,
    )


@needs_atheris
@pytest.mark.timeout(BUDGET_S + 2 * START_LIMIT_S)
def test_no_bytes_that_libfuzzer_finds_break_a_decoder(tmp_path: Path) -> None:
    done = fuzz(tmp_path, BUDGET_S)
    found = {path.name: path.read_bytes() for path in tmp_path.glob("found-*")}
    again = [f"decoder {NAMES[raw[0] % len(NAMES)]!r}: decode({raw!r})" for raw in found.values()]
    assert done.returncode == 0, "\n".join(
        [*again, f"again: python {TARGET} FILE, FILE being the bytes above", done.stdout[-2000:], done.stderr[-6000:]]
    )
    runs = re.findall(r"Done (\d+) runs", done.stderr)
    assert runs, done.stderr[-2000:]
    print(f"{runs[-1]} inputs in {BUDGET_S} s")
    assert int(runs[-1]) > 1000


@needs_atheris
@pytest.mark.timeout(30 + 2 * START_LIMIT_S)
def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    done = fuzz(tmp_path, 30, "--planted")
    assert done.returncode != 0
    assert "PlantedBug" in done.stdout + done.stderr
    assert list(tmp_path.glob("found-*"))


def refusal_with_a_wrong_type() -> bytes:
    """Returns a refusal in which one fact is a text where we expect a number."""
    good = to_status(NormTooLarge(norm=1.0, limit=1.0)).trailing_metadata[0][1]
    return bytes(good).replace(b"\x031.0", b'\x03"x"')


FOUND = {  # repaired faults: these bytes ended in another exception, or in gigabytes of memory
    "invite": LINE_PREFIX.encode() + base64.urlsafe_b64encode(b"[" * 5000).rstrip(b"=") + b".AAAA",
    "answer BeginUpdate": BeginUpdateResponse(missing=[ChunkRange(last=2**31 - 1)] * 100_000).SerializeToString(),
    "answer GetMembership": GetMembershipResponse(
        server_time=Timestamp(seconds=2**62, nanos=2**30)
    ).SerializeToString(),
    "status": refusal_with_a_wrong_type(),
    "model file": (len(BOMB)).to_bytes(8, "little") + BOMB,
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_is_refused(name: str) -> None:
    decode(bytes([NAMES.index(name)]) + FOUND[name])


@pytest.mark.parametrize("name", seeds())
def test_every_seed_is_read(name: str) -> None:
    decode(seeds()[name])


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 255))
def test_noise_is_refused_by_every_decoder(raw: bytes, which: int) -> None:
    decode(bytes([which]) + raw)
