"""Releases noised answers in a process that is killed with SIGKILL, once for each point at which a release writes.

`python -m drill.release_kills FOLDER STEP` tries every STEP-th point, each in a folder FOLDER/NUMBER of its own and in a process
of its own, and prints how many points there are. Each folder has the state after an earlier release in `older`.
"""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from support.kill_points import stopping_at

from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import write_group
from pluralllm.client.privacy.release import Terms, release
from pluralllm.common.words.questions import Question

QUESTIONS = 3
CODEBOOK = tuple(Question(f"Question {n}?", ("Yes", "No"), (0.5, 0.5)) for n in range(QUESTIONS))
DELTA = 1e-6
FIRST, BOTH = (Terms("town", epsilon, DELTA) for epsilon in (1.0, 2.0))
LIMIT = 1_000  # more points than a release has


class Places:
    """The files of one trial."""

    def __init__(self, home: Path) -> None:
        self.data, self.state, self.older = home / "data" / "town.jsonl", home / "state", home / "older"
        self.drawn = home / "drawn"  # exists once noise was drawn


def prepare(places: Places) -> None:
    """Writes a private file, releases it once, and keeps the state of that moment as an older backup."""
    places.data.parent.mkdir(parents=True)
    write_group(
        places.data,
        [CountedQuestion(q.text, q.options, (0.7, 0.3), counts=(70, 30), respondents=100) for q in CODEBOOK],
    )
    release(places.data, places.state, CODEBOOK, FIRST, draw=lambda numbers, _: [number + 1 for number in numbers])
    shutil.copytree(places.state, places.older)


def release_and_die(places: Places, number: int) -> None:
    """Releases the answers a second time. At the so many-th point the process kills itself."""

    def draw(numbers: Sequence[int], _: float) -> list[int]:
        with places.drawn.open("ab") as file:  # by a call of the system that is no point
            file.write(b"drawn\n")
        return [value + number for value in numbers]

    for owner, name, value in stopping_at(number, lambda: os.kill(os.getpid(), signal.SIGKILL), []):
        setattr(owner, name, value)
    release(places.data, places.state, CODEBOOK, BOTH, draw=draw)


def main() -> None:
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    for number in range(1, LIMIT, step):
        places = Places(folder / str(number))
        prepare(places)
        child = os.fork()
        if child == 0:
            try:
                release_and_die(places, number)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            shutil.rmtree(folder / str(number))
            print(number - 1)
            return


if __name__ == "__main__":
    main()
