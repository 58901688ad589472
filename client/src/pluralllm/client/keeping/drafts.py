"""What a training leaves before its update has its receipt, by run."""

from pathlib import Path

from pluralllm.common.words.ids import RunId


def next_state(path: Path) -> Path:
    """Where a new state waits until the round's update has its receipt: a round that is trained again starts from the old."""
    return path.with_name(f"{path.name}.next")


class Drafts:
    """The delta, and what the next training goes on from once this one's update is in: the optimizer's state, and what rounding
    took from the update."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self.delta = folder / "delta.safetensors"

    def optimizer_state(self, run: RunId) -> Path:
        return self._folder / f"{run}.optimizer"

    def residual(self, run: RunId) -> Path:
        return self._folder / f"{run}.residual"

    def drop_run(self, run: RunId) -> None:
        """A run that is over needs no state."""
        for state in (self.optimizer_state(run), self.residual(run)):
            state.unlink(missing_ok=True)
            next_state(state).unlink(missing_ok=True)

    def keep_states(self, run: RunId) -> None:
        """What was left after the committed round becomes what the next round starts from."""
        for state in (self.optimizer_state(run), self.residual(run)):
            following = next_state(state)
            if following.is_file():
                following.replace(state)
