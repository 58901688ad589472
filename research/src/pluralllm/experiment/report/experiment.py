"""Builds the report page of an experiment from a folder of results."""

from collections.abc import Sequence
from pathlib import Path

from pluralllm.experiment.report.answers import calibration, predicted_and_true
from pluralllm.experiment.report.curves import convergence, fairness
from pluralllm.experiment.report.findings import caveats, findings
from pluralllm.experiment.report.groups import by_context, by_group, by_kind
from pluralllm.experiment.report.growth import growth_finding, growth_picture, growth_table
from pluralllm.experiment.report.overview import overview
from pluralllm.experiment.report.page import Page, Section
from pluralllm.experiment.report.study import Study, study_of
from pluralllm.experiment.report.tables import (
    USUAL_THRESHOLDS,
    calibration_table,
    methods_table,
    options_table,
    provenance_table,
    setting_table,
    thresholds_tables,
)
from pluralllm.experiment.report.theme import Picture
from pluralllm.experiment.results import Result, read_results


def experiment_page(folder: Path, main: Sequence[str] = (), thresholds: Sequence[float] = ()) -> Page:
    """Returns the report page for the results in `folder`.

    main: methods to draw in colour; empty: the methods of the paper's comparison and the best on validation groups.
    thresholds: alignment scores whose costs are shown in tables; empty: USUAL_THRESHOLDS.
    Raises InvalidResults for damaged or missing results; InvalidArgument for a method in `main` that has no results.
    """
    study = study_of(read_results(folder), main)
    seeds = sorted({result.seed for name in study.learned for result in study.methods[name]})
    counted = (
        f"{len(study.learned)} methods, {len(study.baselines)} baselines, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
    )
    groups = ", ".join(
        f"{len(study.groups[part])} {word}"
        for part, word in (("train", "training groups"), ("validation", "for validation"), ("test", "unseen"))
        if study.groups[part]
    )
    return Page(
        study.title or "Methods compared",
        f"{counted}; {groups}. Alignment score: 1 - mean Jensen-Shannon distance (natural logarithm), 1 is perfect.",
        (*findings(study), *([grown] if (grown := growth_finding(study)) else ())),
        tuple(caveats(study)),
        tuple(
            section
            for section in _sections(study, thresholds or USUAL_THRESHOLDS)
            if section.pictures or section.tables
        ),
    )


def _sections(study: Study, thresholds: Sequence[float]) -> list[Section]:
    calibrated, grown, sized = calibration_table(study), growth_table(study), options_table(study)
    return [
        Section(
            "Which method serves unseen groups best?", pictures=_there(overview(study)), tables=(methods_table(study),)
        ),
        Section(
            "Do more training groups help?",
            pictures=_there(growth_picture(study)),
            tables=() if grown is None else (grown,),
        ),
        Section("What does training cost, axis by axis?", pictures=_there(convergence(study))),
        Section(
            "What does it cost to reach a score?",
            "Median over seeds (lowest to highest), on straight lines between the points of each curve. The same method can be "
            "ahead on one axis and behind on another: a federated round is several gradient steps of every client.",
            tables=thresholds_tables(study, thresholds),
        ),
        Section("How well is each unseen group served?", pictures=_there(by_group(study, "test"))),
        Section("Are all unseen groups served alike, on the way?", pictures=_there(fairness(study))),
        Section("Does it hold for new groups, new questions, and both?", pictures=_there(by_kind(study))),
        Section("How many context questions are needed?", pictures=_there(by_context(study))),
        Section("What do predictions look like beside true answers?", pictures=_there(predicted_and_true(study))),
        Section(
            "Is the predicted spread right?",
            pictures=_there(calibration(study)),
            tables=() if calibrated is None else (calibrated,),
        ),
        Section("Does the number of options matter?", tables=() if sized is None else (sized,)),
        Section(
            "Validation groups, each",
            pictures=_there(by_group(study, "validation")),
            is_folded=study.shown != "validation",
        ),
        Section("Training groups, each", pictures=_there(by_group(study, "train")), is_folded=True),
        Section("How this was made", tables=(setting_table(study), provenance_table(study)), code=how_to_repeat(study)),
    ]


def how_to_repeat(study: Study) -> str:
    """Returns the commands that repeat the experiment, with the digests of the experiment and of its data."""
    first: Result = study.results[0]
    data = ((first.header.get("experiment") or {}).get("data") or {}).get("file")
    lines = [
        "pluralllm experiment run EXPERIMENT.toml --out RESULTS --embedding-model-path FOLDER",
        "pluralllm experiment report RESULTS",
        "",
        f"# the experiment whose sha256 is {first.header['experiment_sha256']}",
        f"# data: {f'{Path(str(data)).name}, ' if data else ''}answers with sha256 {first.header['data_sha256']}",
    ]
    return "\n".join(lines)


def _there(picture: Picture | None) -> tuple[Picture, ...]:
    return () if picture is None else (picture,)
