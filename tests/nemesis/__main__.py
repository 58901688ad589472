"""Seeds again, or many of them: what happened, and what does not hold."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from drill.pairs import Embedded, Served
from nemesis.report import Total
from nemesis.schedule import Kind
from nemesis.trial import Trials
from support import real_stores


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nemesis", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--stores", choices=(Embedded.name, Served.name), default=Embedded.name)
    parser.add_argument("--kind", action="append", choices=[kind.name for kind in Kind], help="default: all")
    parser.add_argument("--plan", action="store_true", help="print the schedules, do nothing")
    parser.add_argument("--folder", type=Path, help="where the files of a seed that does not hold are left")
    given = parser.parse_args()
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    only = [Kind[name] for name in given.kind or ()]
    with contextlib.ExitStack() as stack:
        if given.stores == Embedded.name or given.plan:
            trials = Trials(Embedded(), given.folder, only)
        else:
            served = Served(stack.enter_context(real_stores.postgres()), stack.enter_context(real_stores.s3()))
            os.environ.update(served.environment)
            trials = Trials(served, given.folder, only)
        for kind, reason in trials.unavailable.items():
            print(f"left out: {kind} ({reason})")
        total = Total()
        for seed in range(given.seed, given.seed + given.seeds):
            if given.plan:
                print(*trials.schedule(seed).lines(), trials.schedule(seed).sha256, sep="\n")
                continue
            found = trials.run(seed)
            total.add(found)
            told = [found.report()] if found.problems else found.log if given.seeds == 1 else []
            print(*told, total.line(found), sep="\n", flush=True)
        print(*total.lines(), sep="\n")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
