"""An experiment from Python: compares training methods, and gives its results as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pluralllm.api.arguments import all_name_arguments
from pluralllm.api.bars import progress_bar
from pluralllm.api.frames import frame_of
from pluralllm.api.surveys import path_of
from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec
from pluralllm.common.process.extras import need_experiment
from pluralllm.common.words.problems import explain
from pluralllm.experiment.results import PARTS, Result, read_results
from pluralllm.experiment.spec import Experiment as Plan
from pluralllm.experiment.spec import load_experiment
from pluralllm.experiment.summary import Line, Selection, contexts_of, table

if TYPE_CHECKING:
    from pandas import DataFrame


@all_name_arguments
@dataclass(frozen=True, slots=True)
class Results:
    """The results of an experiment: one of each method and seed."""

    results: tuple[Result, ...]

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Reads the folder of an experiment's results. Raises InvalidResults if there are none, or if one is damaged."""
        return cls(read_results(path_of("folder", folder)))

    def lines(self, group_part: str | None = None, context: int | None = None) -> list[Line]:
        """Returns one line for each method, best mean alignment first, with its interval, worst group, fairness and costs.

        group_part: the groups that count: test, validation or train; None is the first of these with scores.
        context: number of context questions; None is 20, or the only or nearest number that these groups were scored with.
        Raises InvalidArgument if nothing was scored so.
        """
        parts = [one for one in PARTS if any(score.part == one for result in self.results for score in result.scores)]
        group_part = parts[0] if group_part is None else group_part
        if group_part not in parts:
            raise InvalidArgument(field="group_part", problem=f"is {group_part!r}; scored were: {', '.join(parts)}")
        sizes = contexts_of(self.results, group_part)
        context = min(sizes, key=lambda size: (abs(size - 20), size)) if context is None else context
        if context not in sizes:
            scored = ", ".join(map(str, sizes))
            raise InvalidArgument(field="context", problem=f"is {context}; scored were contexts of {scored} questions")
        return table(self.results, Selection(group_part, context))

    def frame(self, group_part: str | None = None, context: int | None = None) -> "DataFrame":
        """Returns the lines as a data frame with a row for each method. Raises ExtraMissing without pandas."""
        return frame_of(map(_row, self.lines(group_part, context)))

    def groups_frame(self, group_part: str | None = None, context: int | None = None) -> "DataFrame":
        """Returns a data frame with a row for each method and group: alignment score and interval."""
        return frame_of(
            {
                "method": line.method,
                "group": group,
                "alignment_score": score.value,
                "low": score.low,
                "high": score.high,
            }
            for line in self.lines(group_part, context)
            for group, score in line.groups.items()
        )

    def curve_frame(self) -> "DataFrame":
        """Returns a data frame of the training: a row for each method, seed, moment and group, with the cost so far."""
        return frame_of(
            {"method": result.method, "seed": result.seed, **point.cost, "group": group, "alignment_score": score}
            for result in self.results
            for point in result.points
            for group, score in point.alignment.items()
        )


@all_name_arguments
class Experiment:
    """A comparison of training methods on survey data."""

    def __init__(
        self,
        experiment: Plan | Mapping[str, Any] | str | Path,
        out: str | Path,
        *,
        embedding_model_path: str | Path | None = None,
        cache: str | Path | None = None,
        device: str = "auto",
        jobs: int | None = None,
        only: Sequence[str] = (),
        quick: bool = False,
    ) -> None:
        """Reads and checks an experiment.

        experiment: its TOML file, or the values of one. out: folder of the results; those that are there already stay.
        cache: folder of embedded texts; None is a folder in `out`. jobs: processes side by side; None is one for each core, or
        one on a GPU. only: names of the methods to play now. quick: a few rounds of one seed, whose scores mean nothing.
        Raises InvalidSpec, which names key and allowed values.
        """
        plan = _plan(experiment)
        self.plan = plan.quick() if quick else plan
        self.out = path_of("out", out)
        self._model_path = (
            None if embedding_model_path is None else path_of("embedding_model_path", embedding_model_path)
        )
        self._cache = self.out / "cache" if cache is None else path_of("cache", cache)
        self._device, self._jobs, self._only = device, jobs, tuple(only)

    def run(self, *, progress: bool | None = None) -> Results:
        """Plays every method with every seed that has no result yet, and returns all results.

        progress: whether to show a bar; None shows it in a terminal and in a notebook. Raises ExtraMissing, InvalidArgument,
        InvalidData, TooFewQuestions, ModelUnavailable, StorageFull or WorkerDied.
        """
        need_experiment()
        from pluralllm.client.work.train import pick_device  # noqa: PLC0415 - torch, only here
        from pluralllm.experiment import runner  # noqa: PLC0415

        device = str(pick_device(self._device))
        plan = runner.Plan(
            experiment=self.plan,
            out=self.out,
            model_path=self._model_path,
            cache=self._cache,
            device=device,
            jobs=self._jobs or runner.usual_jobs(device),
            only=self._only,
        )
        with progress_bar(progress) as tell:
            runner.run_experiment(plan, tell)
        return self.results()

    def results(self) -> Results:
        """Returns the results that are in the folder. Raises InvalidResults if there are none."""
        return Results.read(self.out)


def _plan(experiment: Plan | Mapping[str, Any] | str | Path) -> Plan:
    if isinstance(experiment, str | Path):
        return load_experiment(path_of("experiment", experiment))
    if not isinstance(experiment, Plan):
        try:
            experiment = Plan.model_validate(dict(experiment))
        except ValidationError as error:
            raise InvalidSpec(file="(values)", problems=explain(error)) from error
    for method in experiment.methods:
        experiment.run_spec(method, experiment.seeds[0])
    return experiment


def _row(line: Line) -> dict[str, Any]:
    return {
        "method": line.method,
        "seeds": line.seeds,
        "mean": line.mean.value,
        "mean_low": line.mean.low,
        "mean_high": line.mean.high,
        "seed_deviation": line.seed_deviation,
        "worst": line.worst.value,
        "worst_group": line.worst_group,
        "fairness": line.fairness.value,
        "variation": line.variation.value,
        "context_gain": line.context_gain,
        "training_groups": line.training_groups,
        **line.cost,
    }
