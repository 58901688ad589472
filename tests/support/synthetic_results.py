"""Invented results of an experiment in the layout of real ones; they follow from a seed and contain nobody's answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TRAIN = ("Nigeria", "Egypt", "India (Current national sample)", "Germany", "United States", "Canada")
VALIDATION = ("Mexico", "Italy", "Kenya")
TEST = ("China", "Japan", "France", "Spain", "Brazil", "New Zealand")
QUESTIONS = 200
CONTEXTS = (1, 5, 10, 20, 40)
MODEL_BYTES = 2_800_000


@dataclass(frozen=True, slots=True)
class Made:
    """The properties of one invented method."""

    name: str
    kind: str = "fedavg"  # or centralized, local, baseline
    preset: str = "default"
    end: float = 0.80  # alignment after training
    speed: float = 60.0  # gradient steps to two thirds of the way
    steps: int = 360
    loss: str = "gaussian"
    confidence: float = 1.0  # above 1: the predicted spreads are too small


SMALL = (
    Made("FedAvg default", end=0.812, speed=50),
    Made("FedAvg paper", preset="paper", end=0.782, speed=130),
    Made("Centralized 100 steps (paper)", "centralized", "paper", 0.70, 80, 100, confidence=1.5),
    Made("Centralized equal steps", "centralized", end=0.803, speed=60),
    Made("Each group alone", "local", end=0.74, speed=60),
    Made("uniform", "baseline", end=0.657),
    Made("own nearest answer", "baseline", end=0.668),
    Made("mean of training groups", "baseline", end=0.787),
)
MANY = (
    *SMALL,
    Made("FedProx", end=0.806, speed=55),
    Made("FedAvgM", end=0.809, speed=40),
    Made("FedAdam", end=0.811, speed=35),
    Made("FedYogi", end=0.810, speed=36),
    Made("q-FedAvg", end=0.801, speed=70),
    Made("Agnostic (worst group)", end=0.798, speed=80),
    Made("Adaptive alpha", end=0.804, speed=60),
    Made("FedAvg default + 5 adaptation steps", end=0.815, speed=50),
    Made("FedAvg cross-entropy", end=0.808, speed=45, loss="cross_entropy"),
)


def write_results(
    folder: Path,
    methods: Sequence[Made] = SMALL,
    seeds: Sequence[int] = (0, 1),
    draws: int = 3,
    questions: int = QUESTIONS,
) -> Path:
    """Writes a folder of results; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for made in methods:
        for seed in (0,) if made.kind == "baseline" else seeds:
            records = list(records_of(made, methods, tuple(seeds), seed, draws, questions))
            text = "".join(json.dumps(record) + "\n" for record in records)
            slug = "".join(c if c.isalnum() else "-" for c in made.name.lower()).strip("-")
            (folder / f"{slug}.seed{seed}.jsonl").write_text(text)
    return folder


def records_of(
    made: Made, methods: Sequence[Made], seeds: tuple[int, ...], seed: int, draws: int, questions: int
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([sum(made.name.encode()), seed])
    luck = 0.0 if made.kind == "baseline" else float(rng.normal(0, 0.002))
    records = [header_of(made, methods, seeds, seed)]
    groups = [*TRAIN, *VALIDATION, *TEST]
    if made.kind != "baseline":
        records += points_of(made, TRAIN if made.kind == "local" else groups, luck, rng)
    for group in TRAIN if made.kind == "local" else groups:
        for context in CONTEXTS:
            records.append(final_of(made, group, context, luck, rng, draws, questions))
    if seed == seeds[0] and made.kind != "local":
        records += distributions_of(made, rng)
    return records


def header_of(made: Made, methods: Sequence[Made], seeds: tuple[int, ...], seed: int) -> dict[str, Any]:
    is_baseline = made.kind == "baseline"
    spec = {"rounds": 60, "training": {"loss": made.loss, "local_steps": 6, "learning_rate": 0.001}}
    experiment = {
        "title": "Synthetic comparison",
        "seeds": list(seeds),
        "rounds": 60,
        "data": {"file": "made_up.csv", "train": TRAIN, "validation": VALIDATION, "test": TEST},
        "scoring": {"contexts": CONTEXTS, "main_context": 20, "draws": 3, "curve_draws": 2, "every": 5},
        "methods": [
            {
                "name": m.name,
                "kind": m.kind,
                "preset": m.preset,
                "steps": m.steps if m.steps != 360 else None,
                "spec": {},
            }
            for m in methods
            if m.kind != "baseline"
        ],
    }
    return {
        "kind": "header",
        "method": made.name,
        "method_kind": made.kind,
        "seed": seed,
        "experiment_sha256": "e" * 64,
        "data_sha256": "d" * 64,
        "spec_sha256": "" if is_baseline else f"{sum(made.name.encode()):064x}",
        "spec": None if is_baseline else spec,
        "experiment": experiment,
        "versions": {"pluralllm-client": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "python": "3.11.2",
        "machine": "x86_64 Linux, 2 threads",
    }


def ease(group: str) -> float:
    """Returns by how much the group's alignment is above the average of all groups."""
    return (sum(group.encode()) % 11 - 5) / 200


def points_of(made: Made, groups: Sequence[str], luck: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    points = []
    for step in range(0, made.steps + 1, 20 if made.steps < 360 else 30):
        gain = 1 - float(np.exp(-step / made.speed))
        level = 0.66 + (made.end + luck - 0.66) * gain
        spread = {
            group: round(level + ease(group) * (1.3 - gain / 2) + float(rng.normal(0, 0.002)), 6) for group in groups
        }
        rounds = step // 6 if made.kind == "fedavg" else 0
        points.append(
            {
                "kind": "point",
                "rounds": rounds,
                "gradient_steps": step,
                "episodes": step * 8,
                "moved_bytes": rounds * 16 * MODEL_BYTES,
                "seconds": round(step * 0.4 * float(rng.uniform(0.95, 1.05)), 3),
                "alignment": spread,
            }
        )
    return points


def final_of(
    made: Made, group: str, context: int, luck: float, rng: np.random.Generator, draws: int, questions: int
) -> dict[str, Any]:
    group_part = "train" if group in TRAIN else "validation" if group in VALIDATION else "test"
    gain = 0.0 if made.name in ("uniform", "mean of training groups") else 0.02 * float(np.log2(context / 20))
    asked_questions = np.flatnonzero(np.random.default_rng(sum(group.encode())).random(questions) < 0.6)
    rows = []
    for draw in range(draws):
        key = np.random.default_rng([context, draw, sum(group.encode())])
        targets = np.sort(key.choice(asked_questions, max(1, len(asked_questions) - context), replace=False))
        drawn = []
        for question in targets.tolist():
            kind = "w" if group_part == "train" or question % 8 == 0 else "u" if question % 8 == 1 else "a"
            hard = (question * 37 % 17 - 8) / 80  # the same in every group
            level = made.end + luck + ease(group) + gain * (0.4 if context > 20 else 1) - (0.0 if kind == "a" else 0.02)
            distance = float(np.clip(1 - level + hard + rng.normal(0, 0.05), 0.005, 0.83))
            spread = float(np.clip(0.05 + abs(hard) * 0.6 + rng.normal(0, 0.008), 0.015, None))
            error = abs(float(rng.normal(0, spread)))
            log_std = None if made.kind == "baseline" else round(float(np.log(spread / made.confidence)), 4)
            drawn.append([f"question {question}", kind, round(distance, 6), log_std, round(error, 6)])
        rows.append(drawn)
    return {"kind": "final", "group": group, "part": group_part, "context": context, "draws": rows}


TEXTS = (
    (
        "How satisfied are you with the way things are going in your country today?",
        ("Satisfied", "Dissatisfied", "DK/Refused"),
    ),
    (
        "Thinking about the next generation, will children in our country be better off or worse off financially than "
        "their parents when they grow up, all things considered, or about the same as they are?",
        ("Better off", "Worse off", "Same (volunteered by the person who was asked, not read out)", "DK/Refused"),
    ),
    ("Does it cost $5 or $50?", ("$5", "$50")),
    ("How often do you read the news?", ("Daily", "Weekly", "Monthly", "Rarely", "Never", "DK/Refused")),
)


def distributions_of(made: Made, rng: np.random.Generator) -> list[dict[str, Any]]:
    distributions = []
    for group in TEST[:2]:
        for number, (text, options) in enumerate(TEXTS):
            true = np.random.default_rng([number, sum(group.encode())]).dirichlet(np.ones(len(options)))
            guess = true * rng.lognormal(0, (0.9 - made.end) * 3, len(options))
            if made.name == "uniform":
                guess = np.ones(len(options))
            distributions.append(
                {
                    "kind": "distribution",
                    "group": group,
                    "part": "test",
                    "question_text": text,
                    "options": options,
                    "true": true.round(5).tolist(),
                    "predicted": (guess / guess.sum()).round(5).tolist(),
                    "context": 20,
                }
            )
    return distributions
