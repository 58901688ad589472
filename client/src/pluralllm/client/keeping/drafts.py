"""Files of a training whose update has no receipt yet, by run."""

from pathlib import Path

from pluralllm.common.words.ids import RunId


def next_state(path: Path) -> Path:
    """The path of a new state until the round's update has its receipt. A round that is trained again starts from the old one."""
    return path.with_name(f"{path.name}.next")


class Drafts:
    """The delta, and the states that the next training starts from: of the optimizer, and of the rounding of updates."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self.delta = folder / "delta.safetensors"

    def optimizer_state(self, run: RunId) -> Path:
        """The path of the optimizer's state."""
        return self._folder / f"{run}.optimizer"

    def residual(self, run: RunId) -> Path:
        """The path of the residual: the part of earlier updates that rounding took away."""
        return self._folder / f"{run}.residual"

    def drop_run(self, run: RunId) -> None:
        """Deletes the states of a run that is over."""
        for state in (self.optimizer_state(run), self.residual(run)):
            state.unlink(missing_ok=True)
            next_state(state).unlink(missing_ok=True)

    def keep_states(self, run: RunId) -> None:
        """Makes the new states of a committed round the ones that the next round starts from."""
        for state in (self.optimizer_state(run), self.residual(run)):
            following = next_state(state)
            if following.is_file():
                following.replace(state)
