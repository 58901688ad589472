"""Prepares an experiment's results for a report: its methods, its main methods, and the groups of each part.

The main methods are drawn in colour. The parts are the train, validation and test groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.experiment.report.theme import GREY, MARKERS, MUTED, SERIES, Look
from pluralllm.experiment.results import PARTS, QuestionKind, Record, Result
from pluralllm.experiment.summary import Line, Selection, contexts_of, methods_of, table

USUAL_CONTEXT = 20
MOST_MAIN = 5
UNIFORM, TRAINING_MEAN = "uniform", "mean of training groups"


@dataclass(frozen=True, slots=True)
class Roles:
    """Names of the methods that have a role in the paper's comparison; None for a role that no method has."""

    default: str | None = None  # this project's federated default
    paper: str | None = None  # FedAvg as in the paper
    central_paper: str | None = None  # the paper's baseline: 100 steps
    central_equal: str | None = None  # central, with as many gradient steps as a client takes


@dataclass(frozen=True, slots=True)
class Study:
    """Results of an experiment, with the tables and choices that all sections of its report share. `study_of` makes it."""

    results: tuple[Result, ...]
    title: str
    context: int  # number of context questions in the curves and the main table
    curve_draws: int | None  # contexts drawn for each point of a curve; None: the results do not say
    roles: Roles
    main: tuple[str, ...]  # methods drawn in colour, in this order
    baselines: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]  # by part
    tables: Mapping[str, Sequence[Line]]  # by part, at the main context
    methods: Mapping[str, list[Result]] = field(repr=False)

    @property
    def learned(self) -> tuple[str, ...]:
        """Names of all methods except the baselines; the methods that are drawn in colour come first."""
        best_first = [line.method for part in PARTS for line in self.tables.get(part, ())]
        named = dict.fromkeys([*self.main, *best_first, *self.methods])
        return tuple(name for name in named if name not in self.baselines)

    @property
    def shown(self) -> str:
        """The part of the groups that the report is about: test; validation, or else train, if no test group was scored."""
        return next((part for part in PARTS if self.tables[part]), PARTS[0])

    def look(self, method: str) -> Look:
        if method in self.main:
            number = self.main.index(method)
            return Look(SERIES[number], MARKERS[number], is_main=True)
        return Look(MUTED if method in self.baselines else GREY, "o", is_main=False)

    def line(self, method: str, part: str = "test") -> Line | None:
        return next((line for line in self.tables.get(part, ()) if line.method == method), None)

    def selection(self, part: str = "test", kinds: tuple[QuestionKind, ...] | None = None) -> Selection:
        return Selection(part, self.context, kinds)


def study_of(results: tuple[Result, ...], main: Sequence[str] = ()) -> Study:
    """Prepares the results for a report.

    main: methods to draw in colour; empty: the methods of the paper's comparison and the best on validation groups.
    Raises InvalidArgument if a method in `main` has no results, or if there are more methods in `main` than colours.
    """
    methods = methods_of(results)
    experiment: Record = next((r.header["experiment"] for r in results if r.header.get("experiment")), {})
    scoring = experiment.get("scoring", {})
    contexts = contexts_of(results)
    context = int(scoring.get("main_context", USUAL_CONTEXT if USUAL_CONTEXT in contexts else contexts[-1]))
    tables = {group_part: table(results, Selection(group_part, context)) for group_part in PARTS}
    baselines = tuple(name for name, runs in methods.items() if is_baseline(runs[0]))
    roles = roles_of(methods, baselines, experiment)
    unknown = [name for name in main if name not in methods or name in baselines]
    if unknown:
        allowed = ", ".join(name for name in methods if name not in baselines)
        raise InvalidArgument(field="--main", problem=f"there is no method {unknown[0]!r}; there are: {allowed}")
    chosen = tuple(dict.fromkeys(main)) or _usual_main(methods, baselines, roles, tables)
    if len(chosen) > len(SERIES):
        raise InvalidArgument(field="--main", problem=f"{len(chosen)} methods; at most {len(SERIES)} can be told apart")
    return Study(
        results,
        str(experiment.get("title", "")),
        context,
        scoring.get("curve_draws"),
        roles,
        chosen,
        baselines,
        {group_part: _groups(results, group_part) for group_part in PARTS},
        tables,
        methods,
    )


def is_baseline(result: Result) -> bool:
    """Returns whether a result belongs to a baseline, which guesses and is not trained."""
    kind = result.header.get("method_kind")
    return bool(kind == "baseline") if kind else result.header.get("spec") is None


def roles_of(methods: Mapping[str, list[Result]], baselines: Sequence[str], experiment: Record) -> Roles:
    """Returns the methods that have a role in the paper's comparison, such as the paper's own FedAvg.

    experiment: the experiment's settings, by which the methods are found; if it is empty, they are found by their names.
    If several methods fit a role, the method that changes the fewest settings of its run spec gets the role.
    """
    settings: list[Record] = [
        m for m in experiment.get("methods", ()) if m["name"] in methods and m["name"] not in baselines
    ]
    settings.sort(key=lambda method: len(method.get("spec") or {}))

    def first(kind: str, preset: str | None, *, has_steps: bool | None = None) -> str | None:
        for method in settings:
            fits = method.get("kind", "fedavg") == kind and preset in (None, method.get("preset", "default"))
            if fits and has_steps in (None, method.get("steps") is not None):
                return str(method["name"])
        return None

    if settings:
        equal = first("centralized", "default", has_steps=False) or first("centralized", None, has_steps=False)
        return Roles(
            first("fedavg", "default"), first("fedavg", "paper"), first("centralized", "paper", has_steps=True), equal
        )
    names = [name for name in methods if name not in baselines]

    def named(*words: str, without: str = "") -> str | None:
        fitting = (n for n in names if all(w in n.lower() for w in words) and not (without and without in n.lower()))
        return next(fitting, None)

    return Roles(
        named("fedavg", "default"),
        named("fedavg", "paper"),
        named("central", "paper"),
        named("central", without="paper"),
    )


def chosen_by_validation(
    methods: Mapping[str, list[Result]], baselines: Sequence[str], tables: Mapping[str, Sequence[Line]]
) -> str | None:
    """Returns the method with the best score on validation groups; None if no method was scored on validation groups.

    tables: the results table for each part of the groups. Scores on test groups are never used for the choice.
    """
    lines = [line for line in tables["validation"] if line.method not in baselines and line.method in methods]
    return lines[0].method if lines else None


def _usual_main(
    methods: Mapping[str, list[Result]], baselines: Sequence[str], roles: Roles, tables: Mapping[str, Sequence[Line]]
) -> tuple[str, ...]:
    best = chosen_by_validation(methods, baselines, tables)
    comparison = [name for name in (roles.default, roles.paper, roles.central_paper, roles.central_equal, best) if name]
    rest = [line.method for line in tables["test"] if line.method not in baselines]
    return tuple(dict.fromkeys([*comparison, *rest]))[: max(len(set(comparison)), min(MOST_MAIN, 3))]


def _groups(results: Sequence[Result], part: str) -> tuple[str, ...]:
    return tuple(sorted({scores.group for result in results for scores in result.scores if scores.part == part}))
