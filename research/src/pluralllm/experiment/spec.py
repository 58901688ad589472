"""What an experiment is: data, who trains and who is only scored, methods, seeds. TOML in, checked before any work."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from pluralllm.common.errors.tree import InvalidSpec
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import Name, Positive, RunSpec, Seed, SpecPart, explain, merge, preset_values

QUICK_ROUNDS, QUICK_STEPS, QUICK_QUESTIONS = 4, 24, 40
OF_THE_EXPERIMENT = (
    ("seed",),
    ("groups",),
    ("round", "min_clients"),
    ("round", "target_clients"),
    ("evaluation", "holdout_share"),
    ("embedding", "model"),
)
BASELINES = ("uniform", "own nearest answer", "mean of training groups")
Names = Annotated[tuple[Name, ...], Field(min_length=1)]


class Data(SpecPart):
    """Which file, and each group's part. What is chosen is chosen by validation groups; test groups are only reported."""

    file: Path  # relative to the experiment's file
    layout: Literal["globalopinionqa"] = "globalopinionqa"
    train: Names
    validation: tuple[Name, ...] = ()
    test: Names
    max_questions: PositiveInt | None = None  # of each group, chosen by hash, so that groups keep the same ones

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

    def part_of(self, group: str) -> str:
        """train, validation or test."""
        return "train" if group in self.train else "validation" if group in self.validation else "test"


class Scoring(SpecPart):
    """How predictors are scored: seeded contexts of several sizes, alike for every method and seed of training."""

    contexts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        1,
        5,
        10,
        20,
        40,
    )  # of groups that do not train
    # Groups too small for some contexts, by name: said here, or the experiment is refused. Never the main context.
    without: dict[Name, tuple[PositiveInt, ...]] = Field(default_factory=dict)
    main_context: PositiveInt = 20  # the curve over rounds is of this size
    draws: PositiveInt = 5
    curve_draws: PositiveInt = 2  # of the curve over rounds, where each point costs
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of questions that no method trains on, chosen by hash
    shown_questions: Annotated[int, Field(ge=0, le=50)] = 6  # whose predicted shares are kept beside the true ones
    every: PositiveInt = 5  # rounds, or as many times local_steps gradient steps

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
    """A method's name as part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


class Method(SpecPart):
    """One line of the table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,60}$")]  # becomes part of a file's name
    kind: Literal["fedavg", "centralized", "local"] = "fedavg"
    preset: Literal["default", "paper"] = "default"
    steps: PositiveInt | None = None  # of centralized; default: rounds * local_steps, as many as a client takes
    # After fedavg, of each training group on its own questions: its own last model, and a line of its own in the table.
    adapt_steps: PositiveInt | None = None
    adapt_learning_rate: Positive = 1e-4  # constant over them
    spec: dict[str, Any] = Field(default_factory=dict)  # merged over the preset

    @model_validator(mode="after")
    def _steps_fit_the_kind(self) -> Self:
        if self.steps is not None and self.kind != "centralized":
            raise ValueError("steps is for kind = centralized")
        if self.adapt_steps is not None and self.kind != "fedavg":
            raise ValueError("adapt_steps is for kind = fedavg")
        return self

    @property
    def lines(self) -> tuple[str, ...]:
        """What it gives the table: its own name, and that of its adapted models."""
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
        """A few rounds or steps of it."""
        rounds = {"rounds": min(self.spec["rounds"], QUICK_ROUNDS)} if "rounds" in self.spec else {}
        steps = None if self.steps is None else min(self.steps, QUICK_STEPS)
        return self.model_copy(update={"steps": steps, "spec": {**self.spec, **rounds}})


class Experiment(SpecPart):
    """Load it with `load_experiment`."""

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
    def _methods_have_names_of_their_own(self) -> Self:
        names = [slug_of(name) for name in (*BASELINES, *(line for method in self.methods for line in method.lines))]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two methods have one file: {', '.join(twice)}; names must differ in a letter or digit")
        return self

    def contexts_of(self, group: str) -> tuple[int, ...]:
        """The contexts this group is scored at; a training group, which answered far more, only at the main one."""
        if group in self.data.train:
            return (self.scoring.main_context,)
        return tuple(size for size in self.scoring.contexts if size not in self.scoring.without.get(group, ()))

    def run_spec(self, method: Method, seed: int) -> RunSpec:
        """The run spec a service would be given for this method. Raises InvalidSpec."""
        count = len(self.data.train)
        own: dict[str, Any] = {
            "seed": seed,
            "rounds": self.rounds,
            "groups": {"train": self.data.train, "held_out": (*self.data.validation, *self.data.test)},
            "round": {"min_clients": count, "target_clients": count},
            "evaluation": {"holdout_share": self.scoring.holdout_share},
            "embedding": {"model": self.model},
        }
        if method.kind == "centralized" and method.steps is not None:  # the paper's: the rate falls to 0 over the steps
            own["training"] = {"schedule": "cosine", "cosine_steps": method.steps}
        values = merge(merge(preset_values(method.preset), own), method.spec)
        values["embedding"].setdefault("dimension", self.width * len(values["embedding"]["templates"]))
        try:
            return RunSpec.model_validate(values)
        except ValidationError as error:
            raise InvalidSpec(file=f"of method {method.name}", problems=explain(error)) from error

    def quick(self) -> Self:
        """Every method and every way of scoring once, in minutes: to see that all works, not for its figures."""
        main = self.scoring.main_context  # at which nobody is left out
        fewer = {"contexts": (main,), "without": {}, "draws": 1, "curve_draws": 1, "every": 2}
        scoring = self.scoring.model_copy(update=fewer)
        changes = {
            "data": self.data.model_copy(
                update={"max_questions": min(self.data.max_questions or QUICK_QUESTIONS, QUICK_QUESTIONS)}
            ),
            "seeds": self.seeds[:1],
            "rounds": min(self.rounds, QUICK_ROUNDS),
            "scoring": scoring,
            "methods": tuple(method.quick() for method in self.methods),
        }
        return self.model_copy(update=changes)

    def portable(self) -> dict[str, Any]:
        """All of it but the file's place on this machine."""
        values = self.model_dump(mode="json")
        values["data"]["file"] = self.data.file.name
        return values

    def sha256(self) -> Digest:
        """Over the run specs too: a preset that changes in a later release makes another experiment."""
        specs = [self.run_spec(method, self.seeds[0]).sha256() for method in self.methods]
        return Digest(hashlib.sha256(json.dumps([self.portable(), specs], sort_keys=True).encode()).hexdigest())


def load_experiment(path: Path) -> Experiment:
    """Raises InvalidSpec: file, key, what is allowed; also for a method whose run spec would not be valid."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        found = Experiment.model_validate(given)
    except OSError as error:
        raise InvalidSpec(file=str(path), problems=f"  it cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(file=str(path), problems=f"  not TOML: {error}") from error
    except ValidationError as error:
        raise InvalidSpec(file=str(path), problems=explain(error)) from error
    file = found.data.file if found.data.file.is_absolute() else path.parent / found.data.file
    found = found.model_copy(update={"data": found.data.model_copy(update={"file": file})})
    for method in found.methods:
        found.run_spec(method, found.seeds[0])
    return found
