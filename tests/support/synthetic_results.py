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
class Method:
    """The properties of one invented method."""

    name: str
    kind: str = "fedavg"  # or centralized, local, baseline
    preset: str = "default"
    end: float = 0.80  # alignment after training
    speed: float = 60.0  # gradient steps to two thirds of the way
    steps: int = 360
    loss: str = "gaussian"
    confidence: float = 1.0  # above 1: the predicted spreads are too small
    context_gain: float = 0.0004


SMALL = (
    Method("FedAvg default", end=0.812, speed=50, context_gain=0.023),
    Method("FedAvg paper", preset="paper", end=0.782, speed=130),
    Method("Centralized 100 steps (paper)", "centralized", "paper", 0.70, 80, 100, confidence=1.5),
    Method("Centralized equal steps", "centralized", end=0.803, speed=60),
    Method("Each group alone", "local", end=0.74, speed=60),
    Method("uniform", "baseline", end=0.657),
    Method("own nearest answer", "baseline", end=0.668),
    Method("mean of training groups", "baseline", end=0.787),
)
MANY = (
    *SMALL,
    Method("FedProx", end=0.806, speed=55),
    Method("FedAvgM", end=0.809, speed=40),
    Method("FedAdam", end=0.811, speed=35),
    Method("FedYogi", end=0.810, speed=36),
    Method("q-FedAvg", end=0.801, speed=70),
    Method("Agnostic (worst group)", end=0.798, speed=80),
    Method("Adaptive alpha", end=0.804, speed=60),
    Method("FedAvg default + 5 adaptation steps", end=0.815, speed=50),
    Method("FedAvg cross-entropy", end=0.808, speed=45, loss="cross_entropy"),
)


def write_results(
    folder: Path,
    methods: Sequence[Method] = SMALL,
    seeds: Sequence[int] = (0, 1),
    draws: int = 3,
    questions: int = QUESTIONS,
) -> Path:
    """Writes a folder of results; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for method in methods:
        for seed in (0,) if method.kind == "baseline" else seeds:
            records = list(records_of(method, methods, tuple(seeds), seed, draws, questions))
            text = "".join(json.dumps(record) + "\n" for record in records)
            slug = "".join(c if c.isalnum() else "-" for c in method.name.lower()).strip("-")
            (folder / f"{slug}.seed{seed}.jsonl").write_text(text)
    return folder


def records_of(
    method: Method, methods: Sequence[Method], seeds: tuple[int, ...], seed: int, draws: int, questions: int
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([sum(method.name.encode()), seed])
    luck = 0.0 if method.kind == "baseline" else float(rng.normal(0, 0.002))
    records = [header_of(method, methods, seeds, seed)]
    groups = [*TRAIN, *VALIDATION, *TEST]
    if method.kind != "baseline":
        records += points_of(method, TRAIN if method.kind == "local" else groups, luck, rng)
    for group in TRAIN if method.kind == "local" else groups:
        for context in CONTEXTS:
            records.append(final_of(method, group, context, luck, rng, draws, questions))
        if method.kind != "baseline":
            records.append(gain_of(method, group))
    if seed == seeds[0] and method.kind != "local":
        records += distributions_of(method, rng)
    records.append({"kind": "options", "counts": {f"question {number}": 2 + number % 9 for number in range(questions)}})
    return records


def header_of(method: Method, methods: Sequence[Method], seeds: tuple[int, ...], seed: int) -> dict[str, Any]:
    is_baseline = method.kind == "baseline"
    spec = {"rounds": 60, "training": {"loss": method.loss, "local_steps": 6, "learning_rate": 0.001}}
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
        "method": method.name,
        "method_kind": method.kind,
        "seed": seed,
        "experiment_sha256": "e" * 64,
        "data_sha256": "d" * 64,
        "spec_sha256": "" if is_baseline else f"{sum(method.name.encode()):064x}",
        "spec": None if is_baseline else spec,
        "experiment": experiment,
        "versions": {"pluralllm-client": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "python": "3.11.2",
        "machine": "x86_64 Linux, 2 threads",
    }


def ease(group: str) -> float:
    """Returns by how much the group's alignment is above the average of all groups."""
    return (sum(group.encode()) % 11 - 5) / 200


def points_of(method: Method, groups: Sequence[str], luck: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    points = []
    for step in range(0, method.steps + 1, 20 if method.steps < 360 else 30):
        gain = 1 - float(np.exp(-step / method.speed))
        level = 0.66 + (method.end + luck - 0.66) * gain
        spread = {
            group: round(level + ease(group) * (1.3 - gain / 2) + float(rng.normal(0, 0.002)), 6) for group in groups
        }
        rounds = step // 6 if method.kind == "fedavg" else 0
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
    method: Method, group: str, context: int, luck: float, rng: np.random.Generator, draws: int, questions: int
) -> dict[str, Any]:
    group_part = "train" if group in TRAIN else "validation" if group in VALIDATION else "test"
    gain = 0.0 if method.name in ("uniform", "mean of training groups") else 0.02 * float(np.log2(context / 20))
    asked_questions = np.flatnonzero(np.random.default_rng(sum(group.encode())).random(questions) < 0.6)
    rows = []
    for draw in range(draws):
        key = np.random.default_rng([context, draw, sum(group.encode())])
        targets = np.sort(key.choice(asked_questions, max(1, len(asked_questions) - context), replace=False))
        drawn = []
        for question in targets.tolist():
            kind = "w" if group_part == "train" or question % 8 == 0 else "u" if question % 8 == 1 else "a"
            hard = (question * 37 % 17 - 8) / 80  # the same in every group
            level = (
                method.end + luck + ease(group) + gain * (0.4 if context > 20 else 1) - (0.0 if kind == "a" else 0.02)
            )
            distance = float(np.clip(1 - level + hard + rng.normal(0, 0.05), 0.005, 0.83))
            spread = float(np.clip(0.05 + abs(hard) * 0.6 + rng.normal(0, 0.008), 0.015, None))
            error = abs(float(rng.normal(0, spread)))
            log_std = None if method.kind == "baseline" else round(float(np.log(spread / method.confidence)), 4)
            drawn.append([f"question {question}", kind, round(distance, 6), log_std, round(error, 6)])
        rows.append(drawn)
    return {"kind": "final", "group": group, "part": group_part, "context": context, "draws": rows}


def gain_of(method: Method, group: str) -> dict[str, Any]:
    group_part = "train" if group in TRAIN else "validation" if group in VALIDATION else "test"
    own = method.end + ease(group)
    scores = {"own": round(own, 6), "another": round(own - method.context_gain, 6)}
    return {"kind": "context_gain", "group": group, "part": group_part, "context": 20, **scores}


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


def distributions_of(method: Method, rng: np.random.Generator) -> list[dict[str, Any]]:
    distributions = []
    for group in TEST[:2]:
        for number, (text, options) in enumerate(TEXTS):
            true = np.random.default_rng([number, sum(group.encode())]).dirichlet(np.ones(len(options)))
            guess = true * rng.lognormal(0, (0.9 - method.end) * 3, len(options))
            if method.name == "uniform":
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
