"""Measures the memory of `score` with many rows: twice as many rows must need no more, and no row is lost to another's fault.

.venv/bin/python benchmarks/scoring_memory.py [--rows 1000000]

The embedding model and the predictor are tiny and have random weights. There are 10,000 distinct questions, which are repeated;
each thousandth row cannot be scored. Each size runs in a process of its own.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from support.exported_model import export  # noqa: E402 - of the tests, which make such models
from support.process_harness import tiny_embedding_model  # noqa: E402
from support.session_folder import open_session_folder  # noqa: E402

from pluralllm.client.data.private_data import write_group  # noqa: E402
from pluralllm.client.data.sample_survey import sample_groups  # noqa: E402

DISTINCT, BAD_EVERY = 10_000, 1_000
SCORED = """
import resource, sys
from pathlib import Path
from pluralllm.align import GroupReward
from pluralllm.align.scoring import score_rows
folder, source, out = map(Path, sys.argv[1:])
reward = GroupReward(folder / "model", {"group": folder / "group.jsonl"}, embedding_model_path=folder / "tiny",
                     cache=folder / "cache", device="cpu", accept_no_context_gain=True)
told = score_rows(reward, source, out, lambda _done: None)
print(told["rows"], told["not_scored"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_rows(path: Path, rows: int) -> None:
    """Writes rows of two options; each thousandth one is no JSON object, or has votes that are none, in turn."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "prompt": f"Question {number % DISTINCT}?",
                "options": ["yes", "no"],
                "votes": [3, 1],
                "completion": "no",
            }
            if number % BAD_EVERY == BAD_EVERY - 1:
                file.write(
                    "[1]\n" if number % (2 * BAD_EVERY) == BAD_EVERY - 1 else json.dumps(row | {"votes": "none"}) + "\n"
                )
            else:
                file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    most = parser.parse_args().rows
    with contextlib.ExitStack() as stack:
        stack.callback(open_session_folder())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export(folder / "model")
        tiny_embedding_model(folder / "tiny")
        write_group(folder / "group.jsonl", next(iter(sample_groups(2, 40, 0).values()))[:20])
        for rows in (most // 4, most // 2, most):
            write_rows(folder / "rows.jsonl", rows)
            begin_s = time.monotonic()
            command = [sys.executable, "-c", SCORED, str(folder), str(folder / "rows.jsonl"), str(folder / "out.jsonl")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            read, not_scored, peak_kib = map(int, done.stdout.split())
            seconds = time.monotonic() - begin_s
            with (folder / "out.jsonl").open(encoding="utf-8") as out:
                written = sum(1 for _ in out)
            assert (read, written, not_scored) == (rows, rows, rows // BAD_EVERY), done.stdout
            sys.stdout.write(
                f"{rows} rows: {seconds:.0f} s, peak {peak_kib / 2**10:.0f} MiB, {not_scored} not scored\n"
            )


if __name__ == "__main__":
    main()
