"""Screens and tables for the terminal: one run, and lists of runs, rounds, members and audit entries.

The functions take the plain values that pluralllm.operator returns. `now` is the current time, from which ages are counted.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pluralllm.common.text.printable import printable
from pluralllm.common.text.several import shown
from pluralllm.common.words.context_gain import gain_statement, ignores_context, mean_gain
from pluralllm.common.words.names import MemberName, RoundName, RunName
from pluralllm.common.words.noise import declared_text
from pluralllm.common.words.not_reported import not_reported_text
from pluralllm.common.words.run_state import READS_SINGLE, READS_SUMS, state_of_run
from pluralllm.common.words.score_sums import clipped_text, scores_text

MAX_REFUSALS = 3
MAX_REASONS = 4
MAX_NAMES = 3  # of clients with one reason
MAX_STATEMENTS = 3
PEER_KEY_DIGITS = 16  # of a peer key's fingerprint, as `pluralllm-client peers` shows it
MEMBER_STYLES = {
    "active": "green",
    "awaiting_approval": "yellow",
    "invited": "yellow",
    "expired": "red",
    "revoked": "red",
    "unproven": "yellow",
}
STATE_STYLES = {
    "done": "green",
    "working": "cyan",
    "assigned": "yellow",
    "lost": "red",
    "idle": "dim",
    "away": "dim",
    "revoked": "dim",
}


def status_screen(run: Mapping[str, Any], now: datetime.datetime) -> RenderableType:
    """Returns one screen about a run: phase, next step, scores, participants, late clients and their reasons.

    A small terminal cuts off the end of the screen, so what matters for the whole run comes before the table of its clients.
    """
    lines: list[RenderableType] = [_head(run, now), Text.assemble(("next: ", "bold"), cell(run["next"]).plain)]
    if run["evaluations"]:
        lines.append(_fairness(run))
    lines += [*_reads(run), _groups(run), *_reasons(run)]
    lines += _not_reported(run)
    lines += _noise(run)
    lines += _sums(run)
    lines += [_refusal(refusal) for refusal in run["refusals"][-MAX_REFUSALS:]]
    return Group(*lines)


def _head(run: Mapping[str, Any], now: datetime.datetime) -> Text:
    phase = state_of_run(run)
    if run["phase"] == "ended":
        phase = f"{phase}: {cell(run['outcome_reason']).plain}"
    return Text.assemble(
        (run["name"], "bold"),
        f"  round {run['round']} of {run['rounds']}  ",
        (phase, "bold cyan"),
        f" for {age(run['phase_start_time'], now)}\n",
        f"version {run['version']} ({run['version_digest'][:12]})  "
        f"received {size(run['received_bytes'])}, sent {size(run['sent_bytes'])} since its start",
    )


def _reads(run: Mapping[str, Any]) -> list[Text]:
    """Returns the line about what the coordinator reads of the updates; no line if the run has none, or if nobody says it."""
    match run.get("updates_read"):
        case "single":
            return [Text(READS_SINGLE, "yellow")]
        case "sums":
            return [Text(f"private rounds: {READS_SUMS}", "green")]
        case _:
            return []


def _groups(run: Mapping[str, Any]) -> Table:
    """Returns a table of the run's participants. In a narrow terminal, names are cut, but numbers and states are not.

    The column "weight" has the share of a client's update in the newest model version.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group")  # it may shrink, because it has no no_wrap
    table.add_column("", no_wrap=True, min_width=1)
    table.add_column("client")
    table.add_column("state", no_wrap=True, min_width=8)
    table.add_column("weight", justify="right", no_wrap=True, min_width=6)
    table.add_column("alignment", justify="right", no_wrap=True, min_width=9)
    table.add_column("trend", no_wrap=True, min_width=9)
    latest = {score["client"]: score for score in run["evaluations"]}
    before = {score["client"]: score for score in run["previous_evaluations"]}
    for person in _people(run):
        score, earlier = latest.get(person["client"]), before.get(person["client"])
        table.add_row(
            cell(person["group"]),
            "*" if person["role"] == "held_out" else "",
            cell(person["client"]),
            cell(state(person), STATE_STYLES.get(person["state"], "")),
            "-" if person["weight"] is None else f"{person['weight']:.1%}",
            alignment(score),
            trend(score, earlier),
        )
    if any(person["role"] == "held_out" for person in run["participants"]):
        table.caption = "* held out: evaluated, never trains"
        table.caption_justify = "left"
    return table


def _people(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(run["participants"], key=lambda p: (p["role"] != "train", p["group"], p["client"]))


def _reasons(run: Mapping[str, Any]) -> list[RenderableType]:
    """Returns one line for each reason for which clients are late, lost or away. The line names the clients.

    Only the first MAX_REASONS reasons get a line. If there are more, a last line gives the number of the others.
    """
    clients: dict[tuple[str, bool], list[str]] = {}
    for person in _people(run):
        if person["reason"]:
            clients.setdefault((person["reason"], person["state"] == "lost"), []).append(person["client"])
    lines: list[RenderableType] = [
        cell(f"{shown(names, MAX_NAMES)}: {reason}", "red" if is_lost else "yellow")
        for (reason, is_lost), names in clients.items()
    ]
    more = len(lines) - MAX_REASONS
    return lines if more <= 0 else [*lines[:MAX_REASONS], cell(f"and {more} more: status --json has all", "yellow")]


def state(person: Mapping[str, Any]) -> str:
    """Returns the state of a participant as text. While it works, the text is the stage and the progress of its work."""
    if person["state"] == "working" and person["stage"]:
        return f"{person['stage']} {person['progress']:.0%}"
    return str(person["state"])


def alignment(score: Mapping[str, Any] | None) -> str:
    """Returns a group's alignment score as text. `score` is the group's evaluation; None if the group was not evaluated."""
    if score is None:
        return "-"
    return "not reported" if score["alignment_score"] is None else f"{score['alignment_score']:.4f}"


def trend(score: Mapping[str, Any] | None, earlier: Mapping[str, Any] | None) -> Text:
    """Returns an arrow and the change from the evaluation `earlier` to `score`; an empty text if one of them has no score."""
    values = [None if one is None else one["alignment_score"] for one in (score, earlier)]
    if values[0] is None or values[1] is None:
        return Text("")
    change = values[0] - values[1]
    arrow = "→" if abs(change) < 0.0005 else "↑" if change > 0 else "↓"
    return Text(f"{arrow} {change:+.4f}", "green" if change > 0 else "red" if change < 0 else "")


def _not_reported(run: Mapping[str, Any]) -> list[Text]:
    """Returns one line for each reason why groups do not report their scores. The line names the groups."""
    groups: dict[str, list[str]] = {}
    for score in run["evaluations"]:
        if score["alignment_score"] is None:
            groups.setdefault(not_reported_text(score["not_reported"]), []).append(score["group"])
    return [cell(f"{reason}: {', '.join(sorted(names))}", "yellow") for reason, names in sorted(groups.items())]


def _noise(run: Mapping[str, Any]) -> list[Text]:
    """Returns one line for each statement about noise, with the groups that declare it; no line if nobody states anything.

    Only the first MAX_STATEMENTS statements get a line.
    """
    groups: dict[str, list[str]] = {}
    for person in _people(run):
        groups.setdefault(declared_text(person.get("noise")), []).append(person["group"])
    if groups.keys() <= {declared_text(None)}:
        return []
    lines = [cell(f"noise declared: {text}: {', '.join(names)}", "dim") for text, names in sorted(groups.items())]
    more = len(lines) - MAX_STATEMENTS
    return lines if more <= 0 else [*lines[:MAX_STATEMENTS], cell(f"and {more} other statements about noise", "dim")]


def _sums(run: Mapping[str, Any]) -> list[Text]:
    """Returns what the sums of the newest private rounds say: the scores inside a sum, and how many updates were clipped."""
    lines, scored, newest = list[Text](), run.get("scored_sum"), run.get("newest_sum")
    if scored is not None:
        numbers = scored["base_version"], scored["scored"], scored["updates"], scored["mean_alignment_score"] or 0.0
        lines.append(Text(scores_text(*numbers, scored["score_histogram"])))
    if newest is not None:
        text = clipped_text(newest["round"], newest["clipped_updates"], newest["updates"])
        lines.append(cell(text, "yellow" if newest["clipped_updates"] else "dim"))
    return lines


def mean_alignment(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Returns the mean alignment score over the groups that report it, and the number of groups; "-" if no group does."""
    scores = [one["alignment_score"] for one in evaluations if one["alignment_score"] is not None]
    return _mean_over(sum(scores) / len(scores), len(scores), len(evaluations)) if scores else "-"


def _mean_over(mean: float, reporting: int, groups: int) -> str:
    number = str(reporting) if reporting == groups else f"{reporting} of {groups}"
    return f"{mean:.4f} over {number} group{'s' * (groups > 1)}"


def _mean_of_run(run: Mapping[str, Any]) -> str:
    """Returns the mean alignment score of a run in a list. An earlier release's coordinator sends the evaluations instead."""
    fairness = run["fairness"]
    if run["evaluations"] or fairness is None or not fairness["groups"]:
        return mean_alignment(run["evaluations"])
    return _mean_over(fairness["mean_alignment_score"], fairness["reporting_groups"], fairness["groups"])


def _fairness(run: Mapping[str, Any]) -> Text:
    fairness, version = run["fairness"], run["evaluations"][0]["version"]
    if fairness is None:
        return Text(f"version {version}: no group reports its alignment")
    worst = f"{fairness['min_alignment_score']:.4f} ({cell(fairness['min_group']).plain})"
    line = Text(
        f"version {version}: mean alignment {mean_alignment(run['evaluations'])}, worst {worst}, "
        f"fairness {fairness['index']:.4f} (CoV {fairness['coefficient_of_variation']:.4f})"
    )
    gain = mean_gain(score.get("context_gain") for score in run["evaluations"])
    line.append(", context gain ")
    line.append(gain_statement(gain), "yellow" if gain is None else "red" if ignores_context(gain) else "")
    return line


def _refusal(refusal: Mapping[str, Any]) -> Text:
    return cell(f"refused in round {refusal['round']}: {refusal['client']}: {refusal['message']}", "red")


def runs_table(runs: Sequence[Mapping[str, Any]], now: datetime.datetime) -> Table:
    """Returns a table of runs with one line for each run."""
    table = Table("run", "phase", "round", "version", "mean alignment", "created", box=None)
    for run in runs:
        table.add_row(
            RunName.parse(run["name"]).run,
            state_of_run(run),
            f"{run['round']} of {run['rounds']}",
            str(run["version"]),
            _mean_of_run(run),
            f"{age(run['create_time'], now)} ago",
        )
    return table


def rounds_table(rounds: Sequence[Mapping[str, Any]], now: datetime.datetime) -> Table:
    """Returns a table of rounds with one line for each round."""
    table = Table("round", "outcome", "base", "version", "updates", "cohort", "ended", "reason", box=None)
    for row in rounds:
        table.add_row(
            str(RoundName.parse(row["name"]).number),
            row["outcome"],
            str(row["base_version"]),
            "-" if row["version"] is None else str(row["version"]),
            str(row["updates"]),
            str(row["cohort_size"]),
            f"{age(row['update_time'], now)} ago",
            cell(row["reason"]),
        )
    return table


def members_table(members: Sequence[Mapping[str, Any]], now: datetime.datetime) -> Table:
    """Returns a table of members with one line for each member."""
    table = Table(
        "member",
        "role",
        "group or runs",
        "",
        "state",
        "left",
        "key",
        "peer key",
        "live",
        "last seen",
        "questions",
        "declared noise",
        "task",
        box=None,
    )
    for member in members:
        state = member["state"].replace("_", " ")
        table.add_row(
            MemberName.parse(member["name"]).member,
            member["role"],
            cell(member["group"] or ", ".join(member["runs"])),
            "held out" if member["group_role"] == "held_out" else "",
            Text(state, style=MEMBER_STYLES.get(member["state"], "")),
            left(member["expire_time"], now),
            member["key_sha256"][:8] or "-",
            member.get("peer_key_sha256", "")[:PEER_KEY_DIGITS] or "-",
            "yes" if member["live"] else "no",
            f"{age(member['last_seen_time'], now)} ago" if member["last_seen_time"] else "never",
            str(member["training_questions"] or "-"),
            _short_noise(member) if member["role"] == "client" else "-",
            member["task"] or "-",
        )
    return table


def _short_noise(member: Mapping[str, Any]) -> str:
    """Returns what a client declares about noise, without delta and unit, which `members --json` has."""
    return declared_text(member.get("noise")).split(",")[0]


def keys_table(members: Sequence[Mapping[str, Any]], authority: str) -> Table:
    """Returns a table of the members' whole key fingerprints, for a comparison by phone.

    authority: fingerprint of the certificate authority, for the last line of the table. It is empty for a connection in plain
    text.
    """
    table = Table("member", "fingerprint of the key", box=None, pad_edge=False)
    keys = [(MemberName.parse(member["name"]).member, member["key_sha256"]) for member in members]
    for name, key in [*keys, ("(the authority)", authority)]:
        if key:
            table.add_row(name, " ".join(key[at : at + 4] for at in range(0, 64, 4)))
    return table


def audit_table(
    entries: Sequence[Mapping[str, Any]], verified: int, head: str, now: datetime.datetime, *, whole: bool
) -> Group:
    """Returns a table of audit entries, and a line about the hash chain of the audit log.

    entries: the entries to show. verified: number of entries whose hash chain was verified. head: hash of the last verified
    entry. whole: whether the verified entries are the whole log.
    """
    table = Table("#", "when", "who", "did", "to", "result", "facts", box=None)
    for entry in entries:
        shown = {"ACCEPTED": "accepted", "BEGUN": "begun"}.get(entry["result"])
        facts = ", ".join(
            f"{key}={short(value)}" for key, value in json.loads(entry["facts_json"]).items() if value != ""
        )
        table.add_row(
            str(entry["sequence"]),
            f"{age(entry['time'], now)} ago",
            cell(MemberName.parse(entry["actor"]).member if entry["actor"] else "-"),
            cell(entry["action"]),
            cell(entry["object"]),
            cell(shown or entry["result"], "" if shown else "red"),
            cell(facts),
        )
    if not whole:
        note = f"the first {verified} entries only: the log was not read to its end. So far its hash chain is unbroken"
        return Group(table, Text(note, style="yellow"))
    return Group(table, Text(f"{verified} entries, the hash chain is unbroken; its head is {head[:16]}", style="green"))


def short(value: Any) -> str:
    """Returns a value as text; a long text, such as a hash, is cut after its first 16 characters."""
    return f"{value[:16]}..." if isinstance(value, str) and len(value) > 32 else str(value)


def left(time: str | None, now: datetime.datetime) -> str:
    """Returns the remaining time until a moment as text, in days or hours.

    time: the moment. The text is "over" if the moment has passed, and "-" if `time` is None.
    """
    if time is None:
        return "-"
    seconds = (datetime.datetime.fromisoformat(time) - now).total_seconds()
    if seconds <= 0:
        return "over"
    return f"{seconds / 86_400:.0f} d" if seconds >= 2 * 86_400 else f"{seconds / 3_600:.1f} h"


def age(time: str | None, now: datetime.datetime) -> str:
    """Returns the time that has passed since a moment as text, in the largest unit that fits.

    time: the moment. The text is "-" if `time` is None.
    """
    if time is None:
        return "-"
    seconds = max(0.0, (now - datetime.datetime.fromisoformat(time)).total_seconds())
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Returns a number of bytes as text in B, kB, MB or GB."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def cell(text: str, style: str = "") -> Text:
    """Returns a text as one line that is safe to print: markup has no effect, and a line that is too long is cut."""
    return Text(printable(" ".join(text.split())), style, no_wrap=True, overflow="ellipsis")
