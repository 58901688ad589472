"""The coordinator's own composition root, with shorter waits and a clock that a test can set.

`python -m nemesis.coordinator serve --config FILE`. It creates its authority first, like the coordinator of the drills.
"""

import os
import sys
from pathlib import Path

from drill.coordinator import ADMIN, initialise
from nemesis import pace, side_effects

from pluralllm.server import __main__ as server
from pluralllm.server.rpc import serving
from pluralllm.server.runs import coordinator


def main() -> None:
    """Runs the server's command line with the shorter waits."""
    serving.OPTIONS = pace.faster_keepalive(serving.OPTIONS)
    coordinator.RETRY_S = 0.5  # the wait after an error of a disk or a store
    if admin := os.environ.get(ADMIN):
        initialise(Path(sys.argv[sys.argv.index("--config") + 1]), Path(admin))
    pace.wrong_clock()
    side_effects.fail_on_demand()
    server.main()


if __name__ == "__main__":
    main()
