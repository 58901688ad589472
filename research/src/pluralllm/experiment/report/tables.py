"""Builds the tables of an experiment's report."""

import json
from collections.abc import Sequence

from pluralllm.common.words.context_gain import IGNORES_CONTEXT, gain_text
from pluralllm.experiment.by_options import CLASSES, by_options, options_of
from pluralllm.experiment.convergence import NOT_REACHED, Reach, last_score, reach_of
from pluralllm.experiment.report.answers import calibrations
from pluralllm.experiment.report.findings import amount, bounds
from pluralllm.experiment.report.groups import PART_NAMES
from pluralllm.experiment.report.page import Row, Table
from pluralllm.experiment.report.study import Study
from pluralllm.experiment.results import AXES, QuestionKind
from pluralllm.experiment.summary import Estimate, Line, over_how_many, table

USUAL_THRESHOLDS = (0.75, 0.78)
NOT_THERE = "–"


def methods_table(study: Study) -> Table:
    """Returns the table of all methods on the test groups, best first.

    If no test group was scored, the table is about the validation groups, or else about the training groups.
    A further column has the score on validation groups, by which methods are chosen.
    """
    rows = []
    shown = study.shown
    kinds = [
        {line.method: line for line in table(study.results, study.selection(shown, (kind,)))} for kind in QuestionKind
    ]
    for line in study.tables[shown]:
        validation = study.line(line.method, "validation")
        cells = (
            line.method,
            stacked(line.mean),
            NOT_THERE if line.seed_deviation is None else f"{line.seed_deviation:.4f}",
            f"{line.worst.value:.3f} {line.worst_group}\n{bounds(line.worst)}",
            NOT_THERE if line.context_gain is None else gain_cell(line),
            *(stacked(lines[line.method].mean) if line.method in lines else NOT_THERE for lines in kinds),
            f"{line.fairness.value:.4f}",
            stacked(line.variation),
            stacked(validation.mean) if validation else NOT_THERE,
            NOT_THERE if line.method in study.baselines else str(line.seeds),
        )
        rows.append(_row(study, line.method, cells))
    groups = PART_NAMES[shown].capitalize()
    return Table(
        (
            "method",
            "mean alignment",
            "SD over seeds",
            "worst group",
            "context gain",
            "questions trained on",
            "nobody's questions",
            "withheld questions",
            "Jain's index",
            "CoV over groups",
            "validation mean",
            "seeds",
        ),
        tuple(rows),
        caption=f"{groups}, means {over_how_many(study.tables[shown])}, {study.context} context questions, best mean first.",
        note=(
            "Mean and worst: questions that are not withheld, whether training groups have them or not; then each kind alone. "
            "Withheld: kept from every group's training, by hash. Small: 95 % intervals by bootstrap over questions, a question "
            "drawn in all groups, draws and seeds at once. Worst group: the lowest of the groups' scores, each the mean over "
            "draws and seeds. Context gain: the score with the group's own context minus the one with another group's, for the "
            "same questions. In italics: guesses that need no training; the mean of training groups needs their data in one "
            "place. Anything chosen is chosen by validation."
        ),
    )


def gain_cell(line: Line) -> str:
    """Formats a method's context gain, with a second line if the predictions do not depend on the group."""
    return (
        f"{gain_text(line.context_gain)}\n{IGNORES_CONTEXT}" if line.ignores_context else gain_text(line.context_gain)
    )


def thresholds_tables(study: Study, thresholds: Sequence[float] = USUAL_THRESHOLDS) -> tuple[Table, ...]:
    """Returns one table for each threshold of mean alignment: the costs at which methods reach the threshold on the test groups.

    A last table has the final score of the paper's FedAvg as its threshold, if the results hold this method.
    """
    groups = study.groups["test"]
    if not groups:
        return ()
    captions = [(f"mean alignment of {threshold:g}", threshold) for threshold in thresholds]
    if study.roles.paper:
        end = last_score(study.methods[study.roles.paper], groups)
        if end is not None:
            captions.append((f"the score at which {study.roles.paper} ends, {end:.3f}", end))
    return tuple(_threshold_table(study, f"Until {what}", threshold) for what, threshold in captions)


def _threshold_table(study: Study, caption: str, threshold: float) -> Table:
    rows = []
    for name in study.learned:
        reaches = [reach_of(study.methods[name], axis, study.groups["test"], threshold) for axis in AXES]
        if any(reaches):
            cells = (name, *(reach_text(reach, axis) for reach, axis in zip(reaches, AXES, strict=True)))
            rows.append(_row(study, name, cells))
    columns = ("method", "rounds", "gradient steps", "episodes", "data moved", "seconds of computing")
    return Table(columns, tuple(rows), caption)


def reach_text(reach: Reach | None, axis: str) -> str:
    """Formats the cost of reaching a threshold: the median and the range over seeds.

    If not all seeds reach the threshold, the text gives the number of seeds that do.
    reach: the cost; None if the method has no cost on this axis.
    """
    if reach is None:
        return "no such cost"
    if not reach.reached:
        return "not reached"
    if reach.high == 0:
        return "at its start"
    if reach.median == NOT_REACHED:
        return f"not reached\nby most: {reach.reached} of {reach.seeds} seeds do"
    text = amount(axis, reach.median)
    if reach.reached < reach.seeds:
        return f"{text}\n{reach.reached} of {reach.seeds} seeds reach it"
    low, high = amount(axis, reach.low), amount(axis, reach.high)
    return text if low == high else f"{text}\n{low} to {high}"


def calibration_table(study: Study) -> Table | None:
    calibrated = calibrations(study)
    if not calibrated:
        return None
    rows = [
        _row(study, name, (name, f"{result.ratio:.3f}", f"{result.within:.1%}", f"{result.questions:,}"))
        for name, result in calibrated.items()
    ]
    return Table(
        ("method", "observed / expected error", "within 1 standard deviation", "scored questions"),
        tuple(rows),
        note=(
            "Gaussian errors of the predicted size would have a ratio of 1, and 58 % (5 options) to 63 % (2) of questions within "
            "one standard deviation, where a question's error is the root mean square over its options. Methods whose loss does "
            "not train the spread are left out."
        ),
    )


def options_table(study: Study) -> Table | None:
    """Returns the table of alignment by number of options; None if the results do not have the numbers of options."""
    options = options_of(study.results)
    shown = study.shown
    names = [line.method for line in study.tables[shown]]
    scores = {name: by_options(study.methods[name], study.selection(shown), options) for name in names}
    classes = [name for name, _ in CLASSES if any(name in one for one in scores.values())]
    if not classes:
        return None
    rows = [
        _row(study, name, (name, *(f"{of_class[c].alignment:.3f}" if c in of_class else NOT_THERE for c in classes)))
        for name, of_class in scores.items()
    ]
    counts = next(iter(scores.values()))
    asked = ", ".join(f"{name}: {counts[name].questions:,}" for name in classes if name in counts)
    return Table(
        ("method", *(f"{name} options" for name in classes)),
        tuple(rows),
        note=f"Each scored question counts alike, in whichever group, draw and seed. Scored questions of {names[0]}: {asked}.",
    )


def provenance_table(study: Study) -> Table:
    """Returns the table of each method's kind, seeds and digests of its run specs."""
    rows = []
    for name in (*study.learned, *study.baselines):
        runs = study.methods[name]
        kind = str(runs[0].header.get("method_kind") or ("baseline" if name in study.baselines else NOT_THERE))
        hashes = {str(run.header.get("spec_sha256", ""))[:12] for run in runs} - {""}
        cells = (
            name,
            kind,
            ", ".join(str(run.seed) for run in runs) if name not in study.baselines else NOT_THERE,
            ", ".join(sorted(hashes)) or NOT_THERE,
        )
        rows.append(_row(study, name, cells))
    return Table(("method", "kind", "seeds", "run spec, sha256 of each seed"), tuple(rows))


def setting_table(study: Study) -> Table:
    """Returns the table of the experiment's setting: digests, groups, scoring, versions and machines."""
    headers = [result.header for result in study.results]
    first = headers[0]
    experiment = first.get("experiment") or {}
    versions = dict(sorted((first.get("versions") or {}).items()))
    machines = sorted({str(header.get("machine", "")) for header in headers} - {""})
    pairs = [
        ("experiment, sha256", str(first["experiment_sha256"])),
        ("data, sha256", str(first["data_sha256"])),
        *(
            (f"{part} groups", ", ".join(study.groups[part]))
            for part in ("train", "validation", "test")
            if study.groups[part]
        ),
        ("scoring", ", ".join(f"{key} {json.dumps(value)}" for key, value in experiment.get("scoring", {}).items())),
        (
            "embeddings, sha256",
            ", ".join(sorted({str(header.get("embedding_sha256", ""))[:12] for header in headers} - {""})),
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Python", ", ".join(sorted({str(header.get("python", "")) for header in headers} - {""}))),
        ("machine", "; ".join(machines)),
    ]
    return Table(("", ""), tuple(Row(pair) for pair in pairs if pair[1]))


def stacked(estimate: Estimate) -> str:
    """Formats a value, with its interval on a second line."""
    return f"{estimate.value:.3f}\n{bounds(estimate)}"


def _row(study: Study, method: str, cells: tuple[str, ...]) -> Row:
    if method in study.main:
        return Row(cells, "main", study.main.index(method))
    return Row(cells, "baseline" if method in study.baselines else "")
