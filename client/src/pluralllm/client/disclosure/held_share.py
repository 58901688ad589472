"""The share of questions that nobody trains on, which is fixed once for this client by the first run that it joins.

A coordinator that could choose the share for each run would get the scores of two sets of questions that differ in one question,
and so the score of this question.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from pluralllm.client.disclosure.differences import Difference
from pluralllm.client.disclosure.policy import ANY_SPEC, Policy
from pluralllm.common.process.files import read_state_as, write_durably
from pluralllm.common.words.spec import RunSpec

SHARES = (0.05, 0.1, 0.2)
FIELD = "evaluation.holdout_share"
MEND = "restore it from a backup, or move it away: then the next run fixes the share"
TWO_SHARES_SHOW = (
    "Scores on two sets of questions that differ in few questions show the answers to these few. The client therefore keeps the "
    "share of its first run."
)


class _ShareFile(BaseModel):
    holdout_share: Annotated[float, Field(ge=0, le=1)]


class HeldShare:
    """The file with this client's share. It stays when the private file changes, because most of its questions stay, too."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def value(self) -> float | None:
        """The share of this client's first run; None before the first run. Raises InvalidConfig if the file is damaged."""
        if not self._path.is_file():
            return None
        return read_state_as(self._path, _ShareFile, MEND).holdout_share

    def differences(self, policy: Policy, spec: RunSpec) -> Iterator[Difference]:
        """Yields a difference if the share in the run spec needs the partner's consent. A run for rewards scores nothing."""
        if spec.rewards is not None or ANY_SPEC in policy.allowed_presets:
            return
        share, fixed = spec.evaluation.holdout_share, self.value
        if fixed is None and share not in SHARES:
            allowed = " or ".join(map(str, SHARES))
            yield Difference(FIELD, str(share), allowed, "shares of the client", TWO_SHARES_SHOW)
        elif fixed is not None and share != fixed:
            yield Difference(FIELD, str(share), str(fixed), "share of this client's first run", TWO_SHARES_SHOW)

    def fix(self, spec: RunSpec) -> None:
        """Fixes the share to that of the first run. Later calls change nothing. The file is durable when this method returns."""
        if spec.rewards is None and self.value is None:
            content = json.dumps({"holdout_share": spec.evaluation.holdout_share})
            write_durably(self._path, content.encode(), mode=0o600)
