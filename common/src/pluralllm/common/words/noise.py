"""The statements of members about the noise in their answers.

Nobody but the partner can check a declaration: it is shown as declared, never as verified.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RESPONDENT = "respondent"  # the unit: one person, with everything that this person has answered
UNIT = "[a-z][a-z-]{0,39}"  # a later release may know other units


@dataclass(frozen=True, slots=True)
class NoiseStatement:
    """The statement of a member about the noise in the answers that its client uses. Nobody has verified it.

    Without noise, `epsilon` and `delta` are 0 and `unit` is empty.
    """

    noised: bool
    epsilon: float = 0.0  # the most that all releases together tell about one `unit`
    delta: float = 0.0
    unit: str = ""

    def problem(self) -> str:
        """Returns what is wrong with the statement; an empty text if nothing is."""
        if not self.noised:
            is_empty = (self.epsilon, self.delta, self.unit) == (0.0, 0.0, "")
            return "" if is_empty else "answers without noise have no epsilon, delta and unit"
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            return f"epsilon is {self.epsilon}, must be a finite number of at least 0"
        if not 0 < self.delta < 1:
            return f"delta is {self.delta}, must be between 0 and 1"
        if re.fullmatch(UNIT, self.unit) is None:
            return "unit must be 1 to 40 characters of a-z and '-', the first a letter"
        return ""

    def weaker(self, other: "NoiseStatement") -> "NoiseStatement":
        """Returns the one of two statements that promises less: no noise, or the larger epsilon."""
        return max(self, other, key=lambda one: (not one.noised, one.epsilon, one.delta))


def declared_text(statement: Mapping[str, Any] | None) -> str:
    """Returns a statement as text for people, who must see beside it that it is only declared.

    statement: the fields of a NoiseStatement by name; None if the member has stated nothing, as clients of earlier releases.
    """
    if statement is None:
        return "not stated"
    if not statement["noised"]:
        return "not noised"
    return f"epsilon {statement['epsilon']:.4g}, delta {statement['delta']:.2g}, unit {statement['unit']}"
