"""Files of the current training: the update that is being made, and the states that the run's next training starts from."""

from pathlib import Path

from pluralllm.common.process.files import make_folder, write_durably
from pluralllm.common.words.ids import RunId


def next_state(path: Path) -> Path:
    """Returns the path of the new state that a training writes beside the state at `path`.

    The new state replaces the old state when the coordinator has given the receipt for the round's update. Until then, a
    repeated training of the round starts from the old state again.
    """
    return path.with_name(f"{path.name}.next")


class Drafts:
    """A folder with the delta that is being made, masked or not, and the states of each run (optimizer, residual, factors).

    The residual is the part of earlier updates that rounding took away. The factors are those of private_rounds/own_factors.py.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._noised = folder / "from-noised-answers"  # there while all states follow from noised answers
        self.delta = folder / "delta.safetensors"
        self.masked = folder / "masked.safetensors"  # in private rounds, what becomes of the delta

    def follow(self, *, noised: bool) -> None:
        """Deletes the states of all runs if they follow from true answers, and the client uses noised answers from now on.

        An optimizer's state, a residual and a factor go into later updates, which must tell nothing but the noised answers.
        """
        if noised == self._noised.is_file():
            return
        if not noised:
            self._noised.unlink()
            return
        for path in self._folder.iterdir():
            path.unlink()
        write_durably(self._noised, b"")

    def optimizer_state(self, run: RunId) -> Path:
        """Returns the path of the run's optimizer state."""
        return self._folder / f"{run}.optimizer"

    def residual(self, run: RunId) -> Path:
        """Returns the path of the run's residual: the part of earlier updates that rounding took away."""
        return self._folder / f"{run}.residual"

    def factors(self, run: RunId) -> Path:
        """Returns the path of what this client's factors in the run start from."""
        return self._folder / f"{run}.factors"

    def drop_run(self, run: RunId) -> None:
        """Deletes the states of a run that has ended."""
        self.factors(run).unlink(missing_ok=True)
        for state in (self.optimizer_state(run), self.residual(run)):
            state.unlink(missing_ok=True)
            next_state(state).unlink(missing_ok=True)

    def keep_states(self, run: RunId) -> None:
        """Replaces the run's old states by the new states of a round. Call this method when the update has its receipt."""
        for state in (self.optimizer_state(run), self.residual(run)):
            following = next_state(state)
            if following.is_file():
                following.replace(state)
