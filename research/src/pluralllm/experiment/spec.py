"""Describes an experiment: its data, its training groups and scored groups, its methods and seeds.

An experiment is written as a TOML file, and is checked completely before any work begins.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, ValidationError, model_validator

from pluralllm.common.errors.tree import InvalidArgument, InvalidSpec
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.model_files import load_model
from pluralllm.common.words.predictors import KERNEL_SUMS, architecture_of
from pluralllm.common.words.problems import explain
from pluralllm.common.words.spec import Preset, RunSpec, merge, preset_values
from pluralllm.common.words.spec_part import Name, Positive, Seed, SpecPart

QUICK_ROUNDS, QUICK_STEPS, QUICK_QUESTIONS, QUICK_GROUPS = 2, 12, 30, 3
OF_THE_EXPERIMENT = (
    ("seed",),
    ("groups",),
    ("round", "min_clients"),
    ("round", "target_clients"),
    ("evaluation", "holdout_share"),
    ("embedding", "model"),
)
BASELINES = ("uniform", "own nearest answer", "mean of training groups")
# Keys that earlier releases did not have. Where they say nothing, the digest of an experiment leaves them out, so that the
# results of an earlier release still belong to the same experiment.
LATER_KEYS: dict[str, dict[str, Any]] = {
    "data": {"files": None, "virtual": None},
    "scoring": {"train_groups": True},
    "methods": {"groups": None, "cohort": None},
}
Names = Annotated[tuple[Name, ...], Field(min_length=1)]


def _form_of_files(value: Any) -> str | None:
    """Returns the form in which an experiment names its private files; None for a value of another type."""
    return "table" if isinstance(value, dict) else "folder" if isinstance(value, str | Path) else None


# A folder with a file NAME.jsonl or NAME.parquet for each group, or a table of files by group.
Files = Annotated[
    Annotated[dict[Name, Path], Tag("table")] | Annotated[Path, Tag("folder")],
    Discriminator(
        _form_of_files,
        custom_error_type="neither_table_nor_folder",
        custom_error_message='give a folder, "survey", or a table of files by group, { Kenya = "kenya.jsonl" }',
    ),
]


class Virtual(SpecPart):
    """Virtual clients: so many clients, each with the questions of one training group (virtual.py)."""

    clients: Annotated[int, Field(ge=1, le=10**7)]
    per_group: Literal["dirichlet", "even"] = "dirichlet"  # shares of the clients that the groups get
    alpha: Positive = 0.3  # of the Dirichlet distribution: the smaller, the less even


class Data(SpecPart):
    """Data of an experiment, and the division of its groups into three parts: train, validation and test.

    The data is one public file of many groups (`file`), or one private file for each group (`files`), as
    `pluralllm-client data import` writes it. Paths are relative to the experiment's file.
    Scores on validation groups may be used to choose a method. Scores on test groups are only reported.
    """

    file: Path | None = None
    layout: Literal["globalopinionqa"] = "globalopinionqa"  # of `file`
    files: Files | None = None
    train: Names  # in the order in which methods with `groups` take them
    validation: tuple[Name, ...] = ()
    test: tuple[Name, ...] = ()
    max_questions: PositiveInt | None = None  # for each group, chosen by hash, so that groups keep the same questions
    virtual: Virtual | None = None  # None: each training group is one client

    @model_validator(mode="after")
    def _the_data_is_named_once(self) -> Self:
        if (self.file is None) == (self.files is None):
            raise ValueError(
                "give either file, one public file of all groups, or files, one private file for each group"
            )
        if not isinstance(self.files, dict):
            return self
        if missing := [name for name in self.groups if name not in self.files]:
            raise ValueError(f"files has no file for {', '.join(missing)}; add it, or take the group out of its part")
        paths = [self.files[name] for name in self.groups]
        if twice := sorted({str(path) for path in paths if paths.count(path) > 1}):
            raise ValueError(f"two groups have one file: {', '.join(twice)}; give each group a file of its own")
        return self

    @model_validator(mode="after")
    def _some_group_is_scored(self) -> Self:
        if not self.validation and not self.test:
            raise ValueError(
                "no group is left to be scored; name some as validation (to choose by) or test (to report)"
            )
        return self

    @model_validator(mode="after")
    def _each_group_has_one_part(self) -> Self:
        names = [*self.train, *self.validation, *self.test]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"a group has one part: train, validation or test; in two: {', '.join(twice)}")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        return (*self.train, *self.validation, *self.test)

    def quick(self) -> Self:
        """Returns a copy with only a few groups of each part and only a few questions of each group, for a trial run."""
        fewer = {part: getattr(self, part)[:QUICK_GROUPS] for part in ("train", "validation", "test")}
        questions = min(self.max_questions or QUICK_QUESTIONS, QUICK_QUESTIONS)
        return self.model_copy(update={**fewer, "max_questions": questions})

    def part_of(self, group: str) -> str:
        """Returns the part of the experiment that a group belongs to: train, validation or test."""
        return "train" if group in self.train else "validation" if group in self.validation else "test"

    def located(self, folder: Path) -> Self:
        """Returns a copy whose relative paths start from `folder`."""
        if self.file is not None:
            return self.model_copy(update={"file": folder / self.file})
        if isinstance(self.files, dict):
            return self.model_copy(update={"files": {name: folder / path for name, path in self.files.items()}})
        return self.model_copy(update={"files": folder / self.files}) if self.files is not None else self


class Scoring(SpecPart):
    """Settings for scoring a predictor with contexts of several sizes.

    The contexts are drawn with fixed seeds, so that they are the same for every method and every training seed.
    """

    contexts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        1,
        5,
        10,
        20,
        40,
    )  # numbers of context questions for groups that do not train
    # Groups that are too small for some contexts, by name. An experiment with such a group that is not listed is refused.
    # The main context cannot be left out.
    without: dict[Name, tuple[PositiveInt, ...]] = Field(default_factory=dict)
    main_context: PositiveInt = 20  # number of context questions for the scores during training
    draws: PositiveInt = 5  # contexts drawn for each group and size, at the end of training
    curve_draws: PositiveInt = 2  # contexts drawn during training; fewer, because every point is scored
    # False: only validation and test groups are scored. Training groups then need no withheld questions.
    train_groups: bool = True
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = (
        0.1  # share of questions that no method trains on, chosen by hash
    )
    shown_questions: Annotated[int, Field(ge=0, le=50)] = 6  # questions whose predicted and true shares are kept
    every: PositiveInt = (
        5  # interval between scores during training: rounds, or local_steps times as many gradient steps
    )

    @model_validator(mode="after")
    def _main_is_scored(self) -> Self:
        if len(set(self.contexts)) < len(self.contexts):
            raise ValueError(f"contexts has one twice: {list(self.contexts)}")
        if self.main_context not in self.contexts:
            raise ValueError(f"main_context {self.main_context} is not one of contexts {list(self.contexts)}")
        if any(self.main_context in contexts for contexts in self.without.values()):
            raise ValueError(f"without: every group is scored at main_context {self.main_context}")
        return self


def slug_of(name: str) -> str:
    """Turns a method's name into lower-case words joined by hyphens, for use in a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


class Method(SpecPart):
    """Training method that an experiment compares.

    A method has one line in the results table, or two lines if `adapt_steps` is set.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,60}$")]  # becomes part of a file's name
    kind: Literal["fedavg", "centralized", "local"] = "fedavg"
    preset: Preset = "default"
    groups: PositiveInt | None = None  # trains the first so many groups of data.train; None: all of them
    cohort: PositiveInt | None = None  # only for fedavg; most groups that train in one round; None: all of the method's
    steps: PositiveInt | None = None  # only for centralized; default: rounds * local_steps, as many as a client takes
    # Steps that each training group trains the fedavg model on its own questions. These models have their own table line.
    adapt_steps: PositiveInt | None = None
    adapt_learning_rate: Positive = 1e-4  # constant over the adapt_steps
    spec: dict[str, Any] = Field(default_factory=dict)  # run spec values that override the preset

    @model_validator(mode="after")
    def _steps_fit_the_kind(self) -> Self:
        if self.steps is not None and self.kind != "centralized":
            raise ValueError("steps is for kind = centralized")
        if self.adapt_steps is not None and self.kind != "fedavg":
            raise ValueError("adapt_steps is for kind = fedavg")
        if self.cohort is not None and self.kind != "fedavg":
            raise ValueError("cohort is for kind = fedavg")
        return self

    @property
    def lines(self) -> tuple[str, ...]:
        """Names of the method's lines in the results table.

        The first line is for the method itself. A second line is for the models that are adapted to each group, if there are any.
        """
        return (self.name,) if self.adapt_steps is None else (self.name, f"{self.name} adapted locally")

    @model_validator(mode="after")
    def _the_experiment_decides_what_is_compared(self) -> Self:
        for path in OF_THE_EXPERIMENT:
            table: Any = self.spec
            for key in path:
                table = table.get(key) if isinstance(table, dict) else None
            if table is not None:
                raise ValueError(f"spec.{'.'.join(path)} is the experiment's to say, for all methods alike")
        return self

    def quick(self) -> Self:
        """Returns a copy of the method with only a few rounds or gradient steps, for a trial run."""
        rounds: dict[str, Any] = {"rounds": min(self.spec["rounds"], QUICK_ROUNDS)} if "rounds" in self.spec else {}
        steps = None if self.steps is None else min(self.steps, QUICK_STEPS)
        predictor = merge(preset_values(self.preset), self.spec)["predictor"]
        if architecture_of(predictor) == KERNEL_SUMS:  # the second stage needs fewer rounds than there are
            rounds["predictor"] = {**self.spec.get("predictor", {}), "subspace_rounds": 1}
        groups = None if self.groups is None else min(self.groups, QUICK_GROUPS)
        return self.model_copy(update={"steps": steps, "groups": groups, "spec": {**self.spec, **rounds}})


class Experiment(SpecPart):
    """Comparison of training methods on one data set, with every seed. `load_experiment` reads it from a TOML file."""

    format: Literal["pluralllm.experiment/1"] = "pluralllm.experiment/1"
    title: Annotated[str, Field(max_length=200)] = ""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 60
    model: Name = "sentence-transformers/all-MiniLM-L6-v2"
    width: PositiveInt = 384  # numbers in one vector of that model
    data: Data
    scoring: Scoring = Scoring()
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has one twice: {list(self.seeds)}")
        return self

    @model_validator(mode="after")
    def _without_names_groups(self) -> Self:
        if unknown := sorted(set(self.scoring.without) - set(self.data.groups)):
            raise ValueError(f"scoring.without names groups that take no part: {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _methods_fit_the_groups(self) -> Self:
        for method in self.methods:
            if method.groups is not None and method.groups > len(self.data.train):
                problem = f"groups = {method.groups}, but data.train names {len(self.data.train)}"
                raise ValueError(f"method {method.name}: {problem}")
            if not self.scoring.train_groups and (method.kind == "local" or method.adapt_steps is not None):
                problem = "its models are scored on training groups only, and scoring.train_groups is false"
                raise ValueError(f"method {method.name}: {problem}")
        return self

    @model_validator(mode="after")
    def _methods_have_names_of_their_own(self) -> Self:
        names = [slug_of(name) for name in (*BASELINES, *(line for method in self.methods for line in method.lines))]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two methods have one file: {', '.join(twice)}; names must differ in a letter or digit")
        return self

    def contexts_of(self, group: str) -> tuple[int, ...]:
        """Returns the numbers of context questions that a group is scored with.

        A training group is scored with one number only, `main_context` of the settings for scoring.
        """
        if group in self.data.train:
            return (self.scoring.main_context,)
        return tuple(size for size in self.scoring.contexts if size not in self.scoring.without.get(group, ()))

    def training_groups(self, method: Method) -> tuple[str, ...]:
        """Returns the groups that a method trains on: the first ones of data.train, so that a smaller set is in a larger one."""
        return self.data.train[: method.groups]

    def scored_groups(self, method: Method) -> tuple[str, ...]:
        """Returns the groups that a method is scored on; training groups that the method does not train on are left out."""
        training = self.training_groups(method) if self.scoring.train_groups else ()
        return (*training, *self.data.validation, *self.data.test)

    def on_file(self, file: Path) -> Self:
        """Returns the experiment on another public file of all groups.

        Raises InvalidArgument if the experiment's data is one private file for each group.
        """
        if self.data.file is None:
            problem = (
                "is one file of all groups, but the experiment names a file for each group in data.files; change those"
            )
            raise InvalidArgument(field="--data", problem=problem)
        return self.model_copy(update={"data": self.data.model_copy(update={"file": file})})

    def run_spec(self, method: Method, seed: int) -> RunSpec:
        """Returns the run spec of a federation that would train this method with this seed.

        Raises InvalidSpec if the method's own settings are not valid in a run spec.
        """
        training = self.training_groups(method)
        virtual = self.data.virtual if method.kind == "fedavg" else None
        count = min(len(training), method.cohort or len(training))
        if virtual is not None:
            count = min(virtual.clients, method.cohort or virtual.clients)
        own: dict[str, Any] = {
            "format": "pluralllm.run/2",  # withholds the questions that published results withhold
            "seed": seed,
            "rounds": self.rounds,
            # Many clients of one group have no name in a spec: there, whoever declares to train takes part.
            "groups": {"train": () if virtual else training, "held_out": (*self.data.validation, *self.data.test)},
            "round": {"min_clients": count, "target_clients": count},
            "evaluation": {"holdout_share": self.scoring.holdout_share},
            "embedding": {"model": self.model},
        }
        if (
            method.kind == "centralized" and method.steps is not None
        ):  # as in the paper, the rate falls to 0 over the steps
            own["training"] = {"schedule": "cosine", "cosine_steps": method.steps}
        usual = preset_values(method.preset, has_private_rounds="private_rounds" in method.spec)
        values = merge(merge(usual, own), method.spec)
        if "plugin" in values["embedding"]:
            del values["embedding"]["model"]
        values["embedding"].setdefault("dimension", self.width * len(values["embedding"]["templates"]))
        try:
            spec = RunSpec.model_validate(values)
        except ValidationError as error:
            raise InvalidSpec(file=f"of method {method.name}", problems=explain(error)) from error
        self._check_rounds(method, spec, count)
        return spec

    def _check_rounds(self, method: Method, spec: RunSpec, count: int) -> None:
        """Raises InvalidSpec if an experiment cannot play such rounds in one process. count: number of clients in a round."""
        clients = len(self.training_groups(method))
        if spec.sums is not None and (method.kind != "fedavg" or method.adapt_steps is not None):
            problem = f"  kind: {spec.sums.architecture} is solved by rounds: set kind = fedavg without adapt_steps"
            raise InvalidSpec(file=f"of method {method.name}", problems=problem)
        if count < clients and spec.training.keep_optimizer_state:
            # A client of the service keeps its moments between its rounds; an experiment keeps them for whole cohorts only.
            problem = "  cohort: leave it out, or set spec.training.keep_optimizer_state = false"
            raise InvalidSpec(file=f"of method {method.name}", problems=problem)
        if self.data.virtual is None or method.kind != "fedavg":
            return
        needed = {
            "spec.training.keep_optimizer_state = false": spec.training.keep_optimizer_state,
            'spec.updates.encoding = "fp32"': spec.updates.encoding != "fp32",
            "another aggregation.rule than multi_krum": spec.aggregation.rule == "multi_krum",
            "a method without private_rounds": spec.private_rounds is not None,
            "an architecture that trains": spec.sums is not None,
            "no adapt_steps": method.adapt_steps is not None,
            f"data.virtual.clients = {clients} or more, one for each group": self.data.virtual.clients < clients,
        }
        if missing := [setting for setting, is_missing in needed.items() if is_missing]:
            problem = f"  data.virtual: virtual clients keep nothing between rounds; set {', '.join(missing)}"
            raise InvalidSpec(file=f"of method {method.name}", problems=problem)

    def quick(self) -> Self:
        """Returns a small version of the experiment that runs in minutes.

        The small version uses every method and every kind of scoring once, to show that everything works. Its scores mean
        nothing.
        """
        main = self.scoring.main_context  # every group is scored with it
        fewer = {"contexts": (main,), "without": {}, "draws": 1, "curve_draws": 1, "every": 2}
        scoring = self.scoring.model_copy(update=fewer)
        changes = {
            "data": self.data.quick(),
            "seeds": self.seeds[:1],
            "rounds": min(self.rounds, QUICK_ROUNDS),
            "scoring": scoring,
            "methods": tuple(method.quick() for method in self.methods),
        }
        return self.model_copy(update=changes)

    def portable(self) -> dict[str, Any]:
        """Returns the experiment as JSON values that do not depend on this machine: the data files have names, but no folders."""
        values = self.model_dump(mode="json")
        data, files = values["data"], self.data.files
        data["file"] = self.data.file.name if self.data.file is not None else None
        data["files"] = (
            {name: path.name for name, path in files.items()} if isinstance(files, dict) else files and files.name
        )
        for table, later in LATER_KEYS.items():
            for part in values[table] if isinstance(values[table], list) else [values[table]]:
                for key in [key for key, meaningless in later.items() if part[key] == meaningless]:
                    del part[key]
        return values

    def sha256(self) -> Digest:
        """Digest of the experiment and of the run specs of its methods.

        If a later release changes a preset, the run specs change, and therefore the digest too.
        """
        specs = [self.run_spec(method, self.seeds[0]).sha256() for method in self.methods]
        return Digest(hashlib.sha256(json.dumps([self.portable(), specs], sort_keys=True).encode()).hexdigest())


def load_experiment(path: Path) -> Experiment:
    """Reads and checks an experiment's TOML file.

    Raises InvalidSpec, with file, key and allowed values, for an experiment or a method's run spec that is not valid.
    """
    experiment = load_model(path, Experiment, InvalidSpec)
    experiment = experiment.model_copy(update={"data": experiment.data.located(path.parent)})
    for method in experiment.methods:
        experiment.run_spec(method, experiment.seeds[0])
    return experiment
