"""What `--json` prints: an object whose "schema" names its form and the form's version.

A version is raised when a field goes, or changes its type or meaning; new fields do not raise it. docs/reference/json.md is
made from this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Form:
    """Top-level fields, and the protocol's message whose fields they are or are made of."""

    name: str
    commands: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)
    message: str = ""  # of pluralllm.v1: its fields are there too, enums as their last words in small letters
    version: int = 1

    @property
    def schema(self) -> str:
        return f"pluralllm.{self.name}/{self.version}"

    def dressed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """What is printed. A value without the fields of its form is our own mistake: AssertionError."""
        wrong = set(self.fields) - set(value) if self.message else set(self.fields) ^ set(value)
        if wrong:
            raise AssertionError(f"{self.schema} and what was to be printed differ in {', '.join(sorted(wrong))}")
        return {"schema": self.schema, **value}


STEERING = tuple(f"pluralllm run {word}" for word in ("create", "start", "pause", "resume", "cancel", "rewards"))

RUN = Form("run", ("pluralllm status", *STEERING), message="Run")
RUNS = Form("runs", ("pluralllm runs",), {"runs": "messages Run, newest first"})
ROUNDS = Form("rounds", ("pluralllm rounds",), {"rounds": "messages Round, newest first"})
MEMBERS = Form("members", ("pluralllm members",), {"members": "messages Member, open invites among them"})
MEMBER = Form("member", ("pluralllm approve", "pluralllm revoke"), message="Member")
INVITE = Form(
    "invite",
    ("pluralllm invite",),
    {
        "name": "of the new member",
        "role": "client, observer or admin",
        "file": "where the invite is: secret until it is used",
        "expires": "RFC 3339",
        "line": "the same as the file, in one line: as secret",
    },
)
AUDIT_LOG = Form(
    "audit-log",
    ("pluralllm audit",),
    {
        "entries": "messages AuditEvent, oldest first, the newest `--limit` of them",
        "verified": "number of entries whose hash chain was followed",
        "head_sha256": "of the last of these",
        "whole": "whether these are all there are",
    },
)
CHECKS = Form(
    "checks",
    ("pluralllm doctor", "pluralllm-client doctor", "pluralllm-server doctor"),
    {"checks": "list of `name`, `ok` (true, false), `result`, `fix` (empty if ok)"},
)
CONFIG = Form(
    "config",
    ("pluralllm-server config", "pluralllm-client config"),
    {"values": "by key; secrets as asterisks", "origins": "by key; null without `--origin`"},
)
EXPLANATION = Form(
    "explanation",
    ("pluralllm explain",),
    {
        "code": "reason of an ErrorInfo",
        "why": "facts as `<name>`",
        "fix": "facts as `<name>`",
        "grpc_status": "its canonical name",
        "exit_code": "of a command that meets it",
    },
)
SPEC = Form(
    "spec", ("pluralllm spec check",), {"sha256": "of the canonical JSON", "spec": "run-spec.md; no probe vectors"}
)
SCORES = Form(
    "scores",
    ("pluralllm score",),
    {
        "file": "that was written",
        "rows": "of the source",
        "not_scored": "rows that could not be",
        "completions_without_reward": "completions from which no answer could be read",
        "alignment_score": "0 to 1 (Jensen-Shannon, natural logarithm); null if no row has true shares",
        "alignment_score_base2": "the same with logarithms to base 2",
    },
)
PAIRS = Form(
    "pairs",
    ("pluralllm pairs",),
    {"file": "that was written", "rows": "of the source", "not_scored": "rows that could not be", "pairs": "written"},
)
MODEL = Form("model", ("pluralllm model pull",), {"folder": "where it lies"}, message="ModelVersion")
EXPORTED_MODEL = Form(
    "exported-model",
    ("pluralllm model export",),
    {
        "run": "its name",
        "version": "number",
        "participants": "clients whose updates are in it",
        "updates": "in it and the versions before",
        "fairness_index": "Jain's, 0 to 1, over groups; null if it was not evaluated",
        "folder": "where it lies",
    },
)
METHODS = Form(
    "methods",
    ("pluralllm experiment table",),
    {
        "methods": "list, best first: `method`, `seeds`, `questions`; `mean`, `worst`, `fairness`, `variation` and each of "
        "`groups` with `value`, `low`, `high`; `worst_group`, `mean_over_seeds`, `seed_deviation` (null with one seed)"
    },
)
DATA_CHECK = Form(
    "data-check",
    ("pluralllm-client data check",),
    {
        "lines": "of the file",
        "problems": "list of `line`, `problem`",
        "usable_questions": "",
        "options": "of all usable questions",
        "ordinal_questions": "with a scale",
        "training_questions": "null without `--spec`, as the next three",
        "evaluation_questions": "held out from training, by hash",
        "episode_needs": "questions in the smallest episode",
        "shortage": "what is too few; null also if nothing is",
    },
)
BACKUP = Form(
    "backup",
    ("pluralllm-server backup", "pluralllm-server restore"),
    {
        "directory": "the backup's",
        "blobs": "number of them",
        "blob_bytes": "",
        "authority": "whether the authority's keys are in it",
        "root_key": "whether the root's is",
        "audit": "the fields of `pluralllm.audit`",
    },
)
AUDIT = Form(
    "audit",
    ("pluralllm-server audit",),
    {
        "clean": "no findings",
        "runs": "number",
        "versions": "number",
        "receipts": "number",
        "aggregates_repeated": "versions averaged again and compared by their bits",
        "aggregates_not_kept": "versions whose updates are gone",
        "orphan_blobs": "that nothing names: harmless",
        "audit_entries": "of the members' audit log",
        "findings": "list of `run`, `invariant`, `problem`",
    },
)
FORMS = (
    RUN, RUNS, ROUNDS, MEMBERS, MEMBER, INVITE, AUDIT_LOG, CHECKS, CONFIG, EXPLANATION, SPEC, SCORES, PAIRS, MODEL,
    EXPORTED_MODEL, METHODS, DATA_CHECK, BACKUP, AUDIT,
)  # fmt: skip
