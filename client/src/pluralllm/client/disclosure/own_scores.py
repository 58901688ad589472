"""The scores that this client has measured for its owner, whether they have left this machine or not.

The folder has one file for each run, which only its owner can read: the numbers are exact. A run keeps its newest KEPT versions.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pluralllm.client.disclosure.measurements import MeasuredScores
from pluralllm.common.process.files import make_folder, read_state_as, write_durably
from pluralllm.common.words.ids import Digest, ModelVersion, RoundNumber, RunId, is_id

OWN_SCORES = "disclosure/scores"  # the folder in the state directory
KEPT = 50  # versions of one run
MEND = "move it away: then this client measures anew"
KEPT_BACK, REPORTED = "stay on this machine", "reported, rounded"


@dataclass(frozen=True, slots=True)
class OwnScores:
    """The scores of one model version on this group's own answers, and what has become of them."""

    version: ModelVersion
    digest: Digest  # of the version
    noised: bool  # whether the answers that were scored have noise
    left: str  # KEPT_BACK, REPORTED, or what `in_sum_of` returns
    measured: MeasuredScores


def in_sum_of(number: RoundNumber) -> str:
    """Returns what has become of scores that are in the sum of a private round."""
    return f"given to the sum of round {number}"


class OwnScoresFolder:
    """The folder of the scores of all runs. It is made when the first scores are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, run: RunId, scores: OwnScores) -> None:
        """Keeps the scores of a version durably, in place of earlier ones. Raises StorageFull, or InvalidConfig as `of`."""
        others = (one for one in self.of(run) if one.version != scores.version)
        newest = sorted((*others, scores), key=lambda one: one.version)[-KEPT:]
        make_folder(self._folder)
        write_durably(self._path(run), json.dumps([asdict(one) for one in newest]).encode(), mode=0o600)

    def mark(self, run: RunId, version: ModelVersion, left: str) -> None:
        """Notes what has become of the scores of a version, if they are here. Raises as `keep`."""
        for one in self.of(run):
            if one.version == version and one.left != left:
                self.keep(run, replace(one, left=left))

    def measured(self, run: RunId, version: ModelVersion, digest: Digest, *, noised: bool) -> MeasuredScores | None:
        """Returns the scores of a version on the answers in use; None if they were not measured.

        noised: whether the answers in use have noise. Raises InvalidConfig for a damaged file.
        """
        wanted = version, digest, noised
        return next((one.measured for one in self.of(run) if (one.version, one.digest, one.noised) == wanted), None)

    def of(self, run: RunId) -> list[OwnScores]:
        """Returns the scores of a run, sorted by version. Raises InvalidConfig for a damaged file."""
        path = self._path(run)
        return read_state_as(path, list[OwnScores], MEND) if path.is_file() else []

    def runs(self) -> list[RunId]:
        """Returns the runs that have scores here, sorted."""
        return [RunId(path.stem) for path in sorted(self._folder.glob("*.json")) if is_id(path.stem)]

    def _path(self, run: RunId) -> Path:
        return self._folder / f"{run}.json"
