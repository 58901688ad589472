"""The command `pluralllm-client doctor`: checks everything that could keep this daemon from working, and shows the fixes."""

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.client.answers_in_use import GIVE_RESPONDENTS, TRUE_SHARES, uses_true_shares
from pluralllm.client.data.private_data import check_file, read_counted
from pluralllm.client.disclosure.consents import COMMAND, Consents
from pluralllm.client.disclosure.policy import RespondentPrivacy, load_policy
from pluralllm.client.joining.partner import load_partner
from pluralllm.client.keeping.audit_watch import FILE, read_heads
from pluralllm.client.keeping.history import History
from pluralllm.client.privacy_commands import privacy_facts
from pluralllm.client.private_rounds.pins import load_pins, pins_file
from pluralllm.client.private_rounds.roster_watch import read_roster
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.embedding_notes import read_notes
from pluralllm.common.errors.tree import InvalidConfig
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.connections import connect
from pluralllm.common.process.console import Check, Json, checked, print_checks
from pluralllm.common.process.extras import need_torch
from pluralllm.common.process.files import can_others_read, why_not_writable
from pluralllm.common.process.model_folder import is_model_folder
from pluralllm.common.process.plugins import installed_version
from pluralllm.common.process.proxies import DIRECT
from pluralllm.common.trust.identity import Identity
from pluralllm.common.words.spec import GroupRole

CONNECT_TIMEOUT_S = 3.0
PROTECT = "let only the daemon's user read it: chmod 600 FILE"
DECLARED = "the coordinator is told the epsilon spent, delta and the unit"
MIN_FREE_BYTES = 500 * 1024**2

SEE_NUMBERS = "pluralllm-client data check FILE --spec SPEC --cache FOLDER shows numbers and what to do"
PIN_AGAIN = "ask that partner by phone; compare the digest and pin it again: pluralllm-client peers"


def doctor(
    config: Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")] = None,
    data: Annotated[Path | None, typer.Option(help="The private file: JSONL or Parquet.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The daemon's state directory.")] = None,
    as_json: Json = False,
) -> None:
    """Check configuration, data, policy, disk, device, model folder and coordinator. The exit code is 3 if a check fails."""
    if not print_checks(
        checks_of(load_config(ClientConfig, config, {"data": data, "state_dir": state_dir})), as_json=as_json
    ):
        raise typer.Exit(3)


def checks_of(settings: ClientConfig) -> list[Check]:
    """Runs all checks of the daemon, and returns their results. The checks change nothing."""
    checks = [checked(name, partial(probe, settings)) for name, probe in PROBES.items()]
    if not settings.plain_text:
        from pluralllm.client.joining.connection_checks import connection_checks  # noqa: PLC0415 - gRPC takes a moment

        checks += connection_checks(lambda: _identity(settings))
    return checks


def _data(config: ClientConfig) -> Check:
    """Checks that the private file has no problems."""
    checked = check_file(config.data)
    # How many of the questions have answers is private, and a support bundle holds this line.
    asked = len(checked.questions) + checked.unanswered
    result = f"{asked} questions, {len(checked.problems)} problems in {config.data}"
    if checked.problems:
        return Check("private data", ok=False, result=result, fix="pluralllm-client data check")
    if can_others_read(config.data):
        return Check(
            "private data", ok=True, result=f"{result}, which every user of this machine can read", fix=PROTECT
        )
    return Check("private data", ok=True, result=result)


def _policy(config: ClientConfig) -> Check:
    """Checks that the partner's policy can be read. Raises InvalidConfig if the policy cannot be read."""
    policy, file = load_policy(config.policy_file), config.policy_file
    if file is None or not policy.missing_keys:
        return Check("policy", ok=True, result=str(file or "defaults"))
    return Check(
        "policy", ok=True, result=f"{file}; keys not in it have their defaults: {', '.join(policy.missing_keys)}"
    )


def _consent(config: ClientConfig) -> Check:
    """Lists the runs that this client refuses until its owner consents. The check passes, because the owner may not want them."""
    consents = Consents(config.state_dir)
    waiting = [
        question.run
        for question in consents.questions()
        if not consents.covers(question.run, question.spec_sha256, question.differences)
    ]
    if not waiting:
        return Check("consent", ok=True, result="no run waits for it")
    return Check("consent", ok=True, result=f"refused until you consent: {', '.join(waiting)}", fix=f"{COMMAND} RUN")


def _peers(config: ClientConfig) -> Check:
    """Checks the roster of peer keys. Counts the members that are pinned, and names those with another key than the pinned one.

    The check fails if a roster was seen that does not continue the one before. Members that are not pinned are no failure,
    because only private rounds need pins.
    """
    roster, seen = read_roster(config.state_dir)
    pins = load_pins(pins_file(config.policy, config.state_dir))
    if seen.complaint:
        result = f"diverged on {seen.complained}: {seen.complaint}"
        fix = "compare the digest with the other partners (pluralllm-client peers), and ask the coordinator's operator"
        return Check("peers", ok=False, result=result, fix=fix)
    pinned = [name for name, entry in roster.members.items() if pins.get(name) == entry.fingerprint]
    others = sorted(name for name in pins if roster.fingerprint_of(name) not in (None, pins[name]))
    result = f"{len(pinned)} of {len(roster.members)} members pinned"
    if others:
        return Check("peers", ok=True, result=f"{result}; another key than pinned: {', '.join(others)}", fix=PIN_AGAIN)
    fix = "before a private run: pluralllm-client peers" if len(pinned) < len(roster.members) else ""
    return Check("peers", ok=True, result=result, fix=fix)


def _noise(config: ClientConfig) -> Check:
    """Checks the noised answers and their ledger. Warns if the policy asks for none, or if the private file has no counts."""
    privacy = load_policy(config.policy_file).privacy
    if privacy is None:
        result = "off: updates and scores are computed from the true answers, and the coordinator is told so"
        return Check("noised answers", ok=True, result=result, fix="for noise, set [privacy] in policy.toml")
    facts = privacy_facts(config, privacy)
    spent = f"epsilon {facts['epsilon_spent']:g} of {facts['epsilon_allowed']:g} spent"
    if facts["noised_file"] is None and uses_true_shares(config.data, privacy, privacy.ledger_folder(config.state_dir)):
        return Check("noised answers", ok=True, result=f"off: {TRUE_SHARES}", fix=GIVE_RESPONDENTS)
    if facts["noised_file"] is None or facts["released"] is None:
        result = f"{facts['noised_file'] or 'none released'}; {spent}"
        fix = f"pluralllm-client data release --data {config.data} --state-dir {config.state_dir}"
        return Check("noised answers", ok=False, result=result, fix=fix)
    # Whether the private file has changed is private, too, and a support bundle holds this line.
    unknown = _unknown_statements(config, privacy)
    fix = f"state in [privacy]: {', '.join(unknown)}" if unknown else ""
    released, most = facts["questions_released"], privacy.questions_per_respondent
    stated = (
        f" if nobody has answered more than {most} of {released} questions, as you state" if 0 < most < released else ""
    )
    result = f"released {facts['released']}, {spent}{stated}; {DECLARED}"
    return Check("noised answers", ok=True, result=result, fix=fix)


def _unknown_statements(config: ClientConfig, privacy: RespondentPrivacy) -> list[str]:
    """Returns the keys that the partner has to state, because the private file does not show them."""
    questions = read_counted(config.data)
    has_numbers = privacy.respondents or all(question.respondents is not None for question in questions)
    return [] if has_numbers else ["respondents (the number of people behind the answers)"]


def _disk(config: ClientConfig) -> Check:
    """Checks that files can be made in the state directory, and that its disk has enough free space."""
    if problem := why_not_writable(config.state_dir):
        return Check(
            "disk", ok=False, result=problem, fix="let the daemon's user write there, or set state_dir elsewhere"
        )
    folder = config.state_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = "" if free >= MIN_FREE_BYTES else "free some space, or set state_dir elsewhere"
    return Check("disk", free >= MIN_FREE_BYTES, f"{free / 1e9:.1f} GB free for {config.state_dir}", fix)


def _device(config: ClientConfig) -> Check:
    """Checks that torch can use the configured device. Raises ExtraMissing if torch is not installed."""
    need_torch()
    from pluralllm.client.work.train import pick_device  # noqa: PLC0415 - torch, only here

    try:
        return Check("device", ok=True, result=str(pick_device(config.device)))
    except (RuntimeError, AssertionError, ValueError) as error:
        return Check("device", ok=False, result=str(error).splitlines()[0], fix="set device = auto")


def _model(config: ClientConfig) -> Check:
    """Checks that the configured folder of the embedding model holds a model. Names what it did not see in the last run.

    Names the packages, too, whose embedders the policy allows, with their versions here.
    """
    path = config.embedding_model_path
    if path is not None and not is_model_folder(path):
        fix = "embedding_model_path must be a folder with a config.json"
        return Check("embedding model", ok=False, result=str(path), fix=fix)
    result = "looked up by the run spec's id" if path is None else str(path)
    with contextlib.suppress(InvalidConfig):  # the policy's own line says that
        if packages := load_policy(config.policy_file).allowed_embedders:
            result += f"; embedders allowed: {', '.join(map(_with_version, packages))}"
    notes = read_notes(config.cache_dir or config.state_dir / "cache", config.data)
    if notes is None or not notes.not_seen:
        return Check("embedding model", ok=True, result=result)
    # Kinds, not numbers: a support bundle holds this line.
    not_seen = f"{result}; in your data {notes.model} does not see {', '.join(notes.not_seen)}"
    return Check("embedding model", ok=True, result=not_seen, fix=SEE_NUMBERS)


def _with_version(package: str) -> str:
    """Returns a package of the policy with the version that is installed here. package: NAME or NAME==VERSION."""
    version = installed_version(package.split("==", maxsplit=1)[0])
    return f"{package} ({'not installed' if version is None else f'{version} is installed'})"


def _partner(config: ClientConfig) -> Check:
    """Checks that the daemon knows its name and group, from its certificate or from its configuration."""
    partner = load_partner(config)
    does = "evaluated only" if partner.role is GroupRole.HELD_OUT else "trains"
    return Check("member", ok=True, result=f"{partner.name}, group {partner.group} ({does})")


def _history(config: ClientConfig) -> Check:
    """Checks that this client can check the signatures of version records, and that the history's files can be read."""
    history = History(config.state_dir / "history") if (config.state_dir / "history").is_dir() else None
    count = 0 if history is None else sum(len(history.seen(run).versions) for run in history.runs())
    identity = load_partner(config).identity
    if identity is None or identity.membership.record_verifier is not None:
        how = "no signatures in plain text" if identity is None else "signed with the key in the invite"
        return Check("history", ok=True, result=f"{count} model versions seen, {how}")
    fix = "ask an administrator to revoke this membership and to invite you anew: the new invite has the key"
    return Check("history", ok=True, result=f"{count} model versions seen, their signatures are not checked", fix=fix)


def _audit_log(config: ClientConfig) -> Check:
    """Checks that the coordinator's audit log has not contradicted what this client had seen of it."""
    folder = config.state_dir / "history"
    seen = read_heads(folder)
    if seen.complaint is not None:
        fix = f"ask the coordinator's operator by phone; keep {folder / FILE}, or move it away if a backup was restored there"
        problem = f"on {seen.complaint.seen} the coordinator's audit log {seen.complaint.problem}"
        return Check("audit log", ok=False, result=problem, fix=fix)
    result = f"entry {seen.sequence} seen on {seen.seen}" if seen.sequence else "not seen yet"
    return Check("audit log", ok=True, result=result)


def _identity(config: ClientConfig) -> Identity:
    """Returns the daemon's identity. Callers must make sure that the daemon does not use plain text."""
    identity = load_partner(config).identity
    assert identity is not None  # it is None in plain text only
    return identity


def _plain_coordinator(config: ClientConfig) -> Check:
    """Checks that the coordinator answers in plain text. The check passes if the daemon does not use plain text."""
    if not config.plain_text:
        return Check("plain text", ok=True, result="off: certificates on both sides")
    address = load_partner(config).coordinator
    try:
        with connect(address, DIRECT, CONNECT_TIMEOUT_S):
            return Check("plain text", ok=True, result=f"{address} answers, on this machine only")
    except OSError as error:
        fix = "check the address, and that pluralllm-server serve --plain-text is running there"
        return Check("plain text", ok=False, result=f"{address}: {error}", fix=fix)


PROBES: dict[str, Callable[[ClientConfig], Check]] = {
    "private data": _data,
    "policy": _policy,
    "consent": _consent,
    "noised answers": _noise,
    "peers": _peers,
    "disk": _disk,
    "device": _device,
    "embedding model": _model,
    "member": _partner,
    "history": _history,
    "audit log": _audit_log,
    "plain text": _plain_coordinator,
}
