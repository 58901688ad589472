"""The noised answers that the daemon uses in place of the private file."""

from dataclasses import dataclass
from pathlib import Path

from pluralllm.client.data.answers import sha256_of
from pluralllm.client.privacy.entries import latest_release
from pluralllm.client.privacy.ledger import Ledger
from pluralllm.client.privacy.release import noised_file
from pluralllm.common.errors.tree import InvalidData, NotReleased


@dataclass(frozen=True, slots=True)
class ReleasedAnswers:
    """The file with the noised answers of a private file's newest release."""

    path: Path
    sha256: str  # its content; every reader checks it
    is_current: bool  # False: the private file has changed since the release. Only this machine may learn that


def released_answers(data: Path, folder: Path) -> ReleasedAnswers:
    """Returns the noised answers of a private file. folder: of the ledger. The private file itself may be elsewhere.

    Raises NotReleased if there are none; NoisedFileLost, LedgerBroken or LedgerDiverged.
    """
    data = data.resolve()
    released = latest_release(Ledger(folder, data).entries, str(data))
    if released is None:
        raise NotReleased(file=str(data))
    try:
        is_current = data.is_file() and sha256_of(data) == released.data_sha256
    except InvalidData:  # its owner may have shut it away, because the released answers are enough
        is_current = False
    return ReleasedAnswers(noised_file(released, folder), released.sha256, is_current)
