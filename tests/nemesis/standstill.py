"""The verdict on progress: no run and no living process does nothing for longer than LIMIT_S while no fault strikes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

LIMIT_S = 30.0


@dataclass
class Standstill:
    """Looks at a federation again and again, and keeps each standstill that it sees."""

    start_s: float
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._moved_s = self._struck_s = self.start_s
        self._step: object = None

    def look(self, now_s: float, *, step: object, is_struck: bool, signs_s: Mapping[str, float]) -> None:
        """Takes in one look.

        step: changes when the run goes on. is_struck: whether a fault lasts. signs_s: for each coordinator that runs, the time on
        the clock of `now_s` when it last gave a sign of life or started.
        """
        if is_struck:
            self._struck_s = now_s
        if is_struck or step != self._step:
            self._moved_s, self._step = now_s, step
        self._note("the run", now_s - self._moved_s)
        for name, sign_s in signs_s.items():
            self._note(f"{name} is alive and", now_s - max(sign_s, self._struck_s))

    def _note(self, what: str, stood_s: float) -> None:
        problem = f"progress: {what} does nothing for more than {LIMIT_S:g} s although no fault lasts"
        if stood_s > LIMIT_S and problem not in self.problems:
            self.problems.append(problem)
