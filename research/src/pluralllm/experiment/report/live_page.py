"""Builds the report page of a live run from the coordinator's answers."""

import json
from collections.abc import Iterator

from pluralllm.common.predictor.metrics import coefficient_of_variation, fairness_index
from pluralllm.common.words.context_gain import gain_statement, gain_text, ignores_context, mean_gain
from pluralllm.common.words.names import MemberName
from pluralllm.common.words.noise import declared_text
from pluralllm.common.words.run_state import state_of_run
from pluralllm.common.words.score_sums import clipped_text, scores_text
from pluralllm.experiment.report.findings import amount
from pluralllm.experiment.report.live import Answers, LiveRun, Series, at_round, common_rounds, live_run, moved_bytes
from pluralllm.experiment.report.live_figures import (
    ROLES,
    fairness_over_rounds,
    groups_now,
    groups_over_rounds,
    time_of_rounds,
)
from pluralllm.experiment.report.page import Finding, Page, Row, Section, Table

NOT_THERE = "–"
MAX_ROUNDS = 500  # newest rounds in the table
PRIVATE = (
    "Answers, predictions and single questions' scores never leave the partners, so nothing here shows predicted beside true "
    "answers, and there are no intervals over questions. pluralllm experiment report has both, for data in one place."
)


def live_page(answers: Answers, made: str) -> Page:
    """Returns the report page of a run, with everything that the coordinator's answers hold so far.

    made: the time at which the report was made, as text.
    """
    live = live_run(answers)
    run = answers.run
    state = state_of_run(run)
    if run["phase"] == "ended" and run["outcome_reason"]:
        state = f"{state}: {run['outcome_reason']}"
    figures = [groups_over_rounds(live), groups_now(live), fairness_over_rounds(live), time_of_rounds(live)]
    over_rounds, now, fairness, rounds = [() if figure is None else (figure,) for figure in figures]
    sections = (
        Section("How well is each group served, round by round?", pictures=over_rounds),
        Section("Where does each group stand now?", pictures=now, tables=(groups_table(live),) if live.series else ()),
        Section("Are all groups served alike?", pictures=fairness),
        Section("How long does a round take, and which rounds were lost?", pictures=rounds),
        Section("Each round", tables=(rounds_table(live),) if live.rounds else (), is_folded=True),
        Section("Members", tables=() if answers.members is None else (members_table(answers),), is_folded=True),
        Section("What this run is", tables=(provenance_table(live),)),
        Section("The run spec", code=spec_text(answers), is_folded=True),
    )
    return Page(
        f"Run {live.name}",
        f"{state}, round {run['round']} of {run['rounds']}, model version {run['version']}; as of {made}.",
        tuple(live_findings(live)),
        (PRIVATE,),
        tuple(section for section in sections if section.pictures or section.tables or section.code),
    )


def live_findings(live: LiveRun) -> Iterator[Finding]:
    """Yields the sentences that the run's rounds and evaluations allow so far."""
    if not live.series:
        yield Finding("No group has been evaluated yet.")
    for role, (name, _, _) in ROLES.items():
        if live.of_role(role):
            reasons = tuple(f"{one.group}: {one.not_reported}" for one in live.of_role(role) if one.not_reported)
            yield from (Finding(text, reasons) for text in _standing(name, live, role))
    gain = mean_gain(one.context_gain for one in live.series if not one.not_reported)
    if ignores_context(gain) or (gain is None and any(one.scores and not one.not_reported for one in live.series)):
        yield Finding(f"The mean context gain is {gain_statement(gain)}.")
    yield from _sums(live)
    yield from _noise(live)
    closed = sum(row.outcome == "closed" for row in live.rounds)
    abandoned = [row for row in live.rounds if row.outcome == "abandoned"]
    if live.rounds:
        reasons = tuple(f"round {row.number}: {row.reason or 'no reason is on record'}" for row in abandoned)
        updates = sum(row.updates for row in live.rounds)
        yield Finding(f"{closed} rounds closed, {len(abandoned)} abandoned; {updates} updates received.", reasons)
    moved = moved_bytes(live)
    if moved:
        run = live.answers.run
        yield Finding(
            f"Weights moved by the rounds: {amount('moved_bytes', moved[-1])}. The coordinator's process has received "
            f"{amount('moved_bytes', run['received_bytes'])} and sent {amount('moved_bytes', run['sent_bytes'])} since its start."
        )


def _sums(live: LiveRun) -> Iterator[Finding]:
    """Yields sentences about the sums of private rounds: scores inside a sum, and how many updates were clipped."""
    scored, newest = live.answers.run.get("scored_sum"), live.answers.run.get("newest_sum")
    if scored is not None:
        numbers = scored["base_version"], scored["scored"], scored["updates"], scored["mean_alignment_score"] or 0.0
        text = scores_text(*numbers, scored["score_histogram"])
        yield Finding(f"{text[:1].upper()}{text[1:]}.")
    if newest is not None:
        clipped = clipped_text(newest["round"], newest["clipped_updates"], newest["updates"])
        means = (
            ("their mean loss", newest["mean_loss"]),
            ("mean distance of their base", newest["mean_base_distance"]),
        )
        said = ", ".join(f"{name} {number:.4f}" for name, number in means if number is not None)
        yield Finding(f"Private {clipped}{said and '; '}{said}.")


def _noise(live: LiveRun) -> Iterator[Finding]:
    """Yields a sentence about the noise that the members declare; nothing if nobody states anything."""
    people = [(str(one["group"]), declared_text(one.get("noise"))) for one in live.answers.run["participants"]]
    stated = [text for _, text in people if text != declared_text(None)]
    if stated:
        noised = sum(text.startswith("epsilon") for text in stated)
        yield Finding(
            f"{noised} of {len(people)} members declare that their answers have noise, which protects single respondents. Nobody "
            "but the partner can check it.",
            tuple(f"{group}: {text}" for group, text in sorted(people)),
        )


def _standing(name: str, live: LiveRun, role: str) -> Iterator[str]:
    """Yields a sentence about the groups of one role; nothing before a round in which all that report their scores did so."""
    series, count = live.reporting(role), len(live.of_role(role))
    rounds = common_rounds(series)
    if not series:
        yield f"{name.capitalize()} ({count}): none reports its newest alignment."
    if not rounds:
        return
    first, now = at_round(series, rounds[0]), at_round(series, rounds[-1])
    scores = list(now.values())
    mean = sum(scores) / len(scores)
    over = f"{count}" if len(series) == count else f"{len(series)} of {count} report"
    head = f"{name.capitalize()} ({over}): mean alignment {mean:.3f} after round {rounds[-1]}"
    if len(rounds) > 1:
        head += f", {sum(first.values()) / len(first):.3f} after round {rounds[0]}"
    if len(series) == 1:
        yield f"{head}."
        return
    worst = min(now, key=lambda group: now[group])
    yield (
        f"{head}; worst {worst} with {now[worst]:.3f}; coefficient of variation {coefficient_of_variation(scores):.3f} "
        f"(Jain's index {fairness_index(scores):.4f})."
    )


def groups_table(live: LiveRun) -> Table:
    """Returns the table of every evaluated group. A group that does not report its score is in it, with the reason."""
    rows = []
    for curve in sorted(live.series, key=lambda one: (one.role != "held_out", -one.scores[-1] if one.scores else 0.0)):
        change = f"{curve.scores[-1] - curve.scores[0]:+.4f}" if len(curve.scores) > 1 else NOT_THERE
        kind = ROLES[curve.role][0] if curve.role in ROLES else curve.role
        first = f"{curve.scores[0]:.4f}" if curve.scores else NOT_THERE
        rows.append(
            Row(
                (
                    curve.group,
                    kind,
                    first,
                    _newest(curve),
                    change,
                    gain_text(curve.context_gain),
                    f"{curve.questions or NOT_THERE}",
                )
            )
        )
    columns = ("group", "kind", "first alignment", "newest alignment", "change", "context gain", "questions")
    return Table(columns, tuple(rows))


def _newest(curve: Series) -> str:
    if not curve.not_reported:
        return f"{curve.scores[-1]:.4f}"
    earlier = f"\n{curve.scores[-1]:.4f} after round {curve.rounds[-1]}" if curve.scores else ""
    return f"{curve.not_reported}{earlier}"


def rounds_table(live: LiveRun) -> Table:
    rows = [
        Row(
            (
                str(row.number),
                row.outcome,
                NOT_THERE if row.version is None else str(row.version),
                f"{row.updates} of {row.cohort}",
                f"{row.seconds:.1f}",
                row.reason,
            )
        )
        for row in reversed(live.rounds)
        if row.number > live.rounds[-1].number - MAX_ROUNDS or row.outcome == "abandoned"
    ]
    note = "" if len(rows) == len(live.rounds) else f"The newest {MAX_ROUNDS} rounds, and all that were abandoned."
    return Table(("round", "outcome", "version made", "updates of cohort", "seconds", "reason"), tuple(rows), note=note)


def members_table(answers: Answers) -> Table:
    rows = [
        Row(
            (
                MemberName.parse(member["name"]).member,
                str(member["role"]),
                str(member["group"]) or NOT_THERE,
                str(member["state"]).replace("_", " "),
                str(member["training_questions"] or NOT_THERE),
                str(member["software_version"]) or NOT_THERE,
                declared_text(member.get("noise")) if member["role"] == "client" else NOT_THERE,
            )
        )
        for member in answers.members or ()
    ]
    return Table(
        ("member", "role", "group", "state", "training questions", "software", "noise, as declared"), tuple(rows)
    )


def provenance_table(live: LiveRun) -> Table:
    run, model = live.answers.run, live.answers.model
    pairs = [
        ("run spec, sha256", str(run["spec_sha256"])),
        ("model version", f"{run['version']}, digest {run['version_digest']}"),
        ("its record, sha256", str(model["record_sha256"]) if model else "told to administrators and clients only"),
        ("created", str(run["create_time"])),
        ("last change", str(run["update_time"])),
        ("how to repeat", f"pluralllm report {live.name}"),
    ]
    return Table(("", ""), tuple(Row(pair) for pair in pairs))


def spec_text(answers: Answers) -> str:
    """Returns the run spec as JSON text; an empty text if the caller's role may not read the run spec.

    The text leaves out the long vectors of the probe texts, by which a client checks that it has the right embedding model.
    """
    if answers.spec is None:
        return ""
    embedding = {key: value for key, value in answers.spec.get("embedding", {}).items() if key != "probes"}
    return json.dumps({**answers.spec, "embedding": embedding}, indent=2, ensure_ascii=False)
