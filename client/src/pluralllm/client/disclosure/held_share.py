"""The rule that says which questions nobody trains on, which is fixed once for this client by the first run that it joins.

A coordinator that could choose the share for each run would get the scores of two sets of questions that differ in one question,
and so the score of this question. With two rules it would get the scores of two sets, and train on what the other run withholds.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from pluralllm.client.disclosure.differences import Difference
from pluralllm.client.disclosure.policy import ANY_SPEC, Policy
from pluralllm.common.process.files import read_state_as, write_durably
from pluralllm.common.words.questions import HoldOut
from pluralllm.common.words.spec import RunSpec

SHARES = (0.05, 0.1, 0.2)
FIELD, RULE_FIELD = "evaluation.holdout_share", "format"
MEND = "restore it from a backup, or move it away: then the next run fixes the share"
TWO_SHARES_SHOW = (
    "Scores on two sets of questions that differ in few questions show the answers to these few. The client therefore keeps the "
    "share of its first run."
)
TWO_RULES_SHOW = (
    "Runs of the formats run/1 and run/2 withhold other questions from training than runs of later formats. With consent, this "
    "client changes to the later rule once and for all; no run brings it back without consent."
)


class _ShareFile(BaseModel):
    holdout_share: Annotated[float, Field(ge=0, le=1)]
    by_key: bool = False  # files of earlier releases do not name it


class HeldShare:
    """The file with this client's share. It stays when the private file changes, because most of its questions stay, too."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def value(self) -> HoldOut | None:
        """The rule of this client's first run; None before the first run. Raises InvalidConfig if the file is damaged."""
        if not self._path.is_file():
            return None
        kept = read_state_as(self._path, _ShareFile, MEND)
        return HoldOut(kept.holdout_share, by_key=kept.by_key)

    def differences(self, policy: Policy, spec: RunSpec) -> Iterator[Difference]:
        """Yields a difference if share or rule of the run spec need the partner's consent. A run for rewards scores nothing."""
        if spec.rewards is not None or ANY_SPEC in policy.allowed_presets:
            return
        share, fixed = spec.evaluation.holdout_share, self.value
        if fixed is None and share not in SHARES:
            allowed = " or ".join(map(str, SHARES))
            yield Difference(FIELD, str(share), allowed, "shares of the client", TWO_SHARES_SHOW)
        elif fixed is not None and share != fixed.share:
            yield Difference(FIELD, str(share), str(fixed.share), "share of this client's first run", TWO_SHARES_SHOW)
        if fixed is not None and spec.held_out.by_key != fixed.by_key:
            allowed = "run/3 or later" if fixed.by_key else "run/1 or run/2"
            yield Difference(RULE_FIELD, spec.format, allowed, "rule of this client's first run", TWO_RULES_SHOW)

    def fix(self, spec: RunSpec) -> None:
        """Fixes share and rule to those of the first run. The file is durable when this method returns.

        Later calls change nothing, but that the rule by key takes the place of the earlier one: the partner has then consented.
        """
        fixed, asked = self.value, spec.held_out
        if spec.rewards is not None or (fixed is not None and (fixed.by_key or not asked.by_key)):
            return
        share = asked.share if fixed is None else fixed.share
        content = json.dumps({"holdout_share": share, "by_key": asked.by_key})
        write_durably(self._path, content.encode(), mode=0o600)
