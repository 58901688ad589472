"""The coordinator's own composition root, with shorter waits and a clock that can be set.

`python -m nemesis.coordinator serve --config FILE`. It makes its authority first, as the drill's does.
"""

import os
import sys
from pathlib import Path

from drill.coordinator import ADMIN, initialise
from nemesis import pace

from pluralllm.common.wire import channels
from pluralllm.server import __main__ as server
from pluralllm.server.rpc import serving
from pluralllm.server.runs import coordinator


def main() -> None:
    """The entry point."""
    serving.OPTIONS = pace.faster_keepalive(serving.OPTIONS)
    channels.CHANNEL_OPTIONS = pace.faster_keepalive(channels.CHANNEL_OPTIONS)  # type: ignore[attr-defined]
    coordinator.RETRY_S = 0.5  # after a disk or a store that refused
    if admin := os.environ.get(ADMIN):
        initialise(Path(sys.argv[sys.argv.index("--config") + 1]), Path(admin))
    pace.wrong_clock()
    server.main()


if __name__ == "__main__":
    main()
