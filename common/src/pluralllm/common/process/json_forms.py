"""The forms of the JSON objects that commands print with `--json`. A form is a list of fields with a name and a version.

The field "schema" of an object names its form and the form's version. The version rises when a field is removed or changes its
type or meaning; a new field does not raise the version. docs/generate.py makes docs/reference/json.md from the forms here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Form:
    """One form of JSON output: its name, the commands that print this form, its top-level fields and its version."""

    name: str
    commands: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)  # meaning, by name
    # A message of pluralllm.v1 whose fields the object has, too; an enum is written as its last word in lower case.
    message: str = ""
    version: int = 1

    @property
    def schema(self) -> str:
        """The text of the field "schema": name and version of the form, for example "pluralllm.runs/1"."""
        return f"pluralllm.{self.name}/{self.version}"

    def dressed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the object to print: the field `schema`, and then the fields of `value`.

        Raises AssertionError if `value` has other fields than the form, because such a difference is a mistake in the program.
        """
        wrong = set(self.fields) - set(value) if self.message else set(self.fields) ^ set(value)
        if wrong:
            raise AssertionError(f"{self.schema} and what was to be printed differ in {', '.join(sorted(wrong))}")
        return {"schema": self.schema, **value}


WORDS = ("create", "start", "pause", "resume", "cancel", "archive", "unarchive", "rewards")
STEERING = tuple(f"pluralllm run {word}" for word in WORDS)

EVALUATIONS = (
    "messages GroupEvaluation; `alignment_score` and `alignment_score_base2` are null if the group does not report its scores, "
    "and `not_reported` is then the reason"
)
RUN = Form(
    "run",
    ("pluralllm status", *STEERING),
    {"evaluations": EVALUATIONS, "previous_evaluations": "the same for the evaluated model version before"},
    message="Run",
    version=2,  # 1: a score was never null
)
RUNS = Form("runs", ("pluralllm runs",), {"runs": "messages Run, newest first, as in `pluralllm.run`"}, version=2)
ROUNDS = Form("rounds", ("pluralllm rounds",), {"rounds": "messages Round, newest first"})
PEERS = Form(
    "peers",
    ("pluralllm-client peers",),
    {
        "digest": "hash of the roster's newest entry, 64 hex digits; all partners compare it",
        "entries": "number of entries of the roster",
        "members": "list of `name`, `group`, `fingerprint`, and `pinned`: yes, no, another key, no key now",
        "complaint": "why this client believes no roster any more; null if it does",
    },
)
PEER_KEY_RESET = Form(
    "peer-key-reset",
    ("pluralllm members reset-peer-key",),
    {"name": "name of the member", "reset": "true: the member has no peer key now"},
)
PAGE_LINK = Form(
    "page-link",
    ("pluralllm page",),
    {
        "link": "address of the coordinator's page with a token; it works once, within a minute, and is secret until then"
    },
)
MEMBERS = Form("members", ("pluralllm members",), {"members": "messages Member, open invites among them"})
MEMBER = Form("member", ("pluralllm approve", "pluralllm revoke"), message="Member")
INVITE = Form(
    "invite",
    ("pluralllm invite",),
    {
        "name": "name of the new member",
        "role": "client, observer or admin",
        "file": "path of the invite, which is secret until it is used",
        "expires": "end of its validity, RFC 3339",
        "line": "the invite in one line, as secret as the file",
    },
)
AUDIT_LOG = Form(
    "audit-log",
    ("pluralllm audit", "pluralllm-client audit"),
    {
        "entries": "messages AuditEvent, oldest first, the newest `--limit` of them; of a client those that concern it",
        "verified": "number of entries whose hash chain was followed",
        "head_sha256": "hash of the last of these entries",
        "whole": "whether the log has no entries besides those",
    },
)
HISTORY = Form(
    "history",
    ("pluralllm-client history",),
    {
        "runs": "list of `run`, `version`, `record_sha256`, and `digest`, `round`, `updates` (null for a version that an older "
        "release noted)",
        "audit_sequence": "number of the newest audit entry that the daemon has seen; 0 before the first",
        "audit_sha256": "hash of this entry",
        "audit_complaint": "contradiction of the audit log with what the daemon had seen before; null if there is none",
    },
)
CLIENT_STATUS = Form(
    "client-status",
    ("pluralllm-client status",),
    {
        "scores": "list of `run`, `version`, `alignment_score`, `wasserstein_score` (null without scales), `context_gain`, "
        "`questions`, `noised`, and `left`: whether the score stays on this machine, is reported, or was given to a sum"
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
    {
        "values": "values by key; secrets as asterisks",
        "origins": "sources of the values by key; null without `--origin`",
    },
)
EXPLANATION = Form(
    "explanation",
    ("pluralllm explain",),
    {
        "code": "name of the error, the reason of its ErrorInfo",
        "why": "what is wrong, facts as `<name>`",
        "fix": "what to do, facts as `<name>`",
        "grpc_status": "canonical name of the gRPC status",
        "exit_code": "exit code of a command that ends with this error",
    },
)
SPEC = Form(
    "spec",
    ("pluralllm spec check",),
    {"sha256": "digest of the canonical JSON", "spec": "the keys of run-spec.md, without probe vectors"},
)
SCORES = Form(
    "scores",
    ("pluralllm score",),
    {
        "file": "path of the file that was written",
        "rows": "number of rows of the source",
        "not_scored": "number of rows that could not be scored",
        "completions_without_reward": "number of completions from which no answer could be read",
        "rows_of_context": "number of rows whose question is in the context; they are not in the alignment score",
        "alignment_score": "0 to 1 (Jensen-Shannon, natural logarithm); null if no other row has true shares",
        "alignment_score_base2": "the same with logarithms to base 2",
    },
)
PAIRS = Form(
    "pairs",
    ("pluralllm pairs",),
    {
        "file": "path of the file that was written",
        "rows": "number of rows of the source",
        "not_scored": "number of rows that could not be scored",
        "pairs": "number of pairs written",
    },
)
MODEL = Form("model", ("pluralllm model pull",), {"folder": "path of the model"}, message="ModelVersion")
EXPORTED_MODEL = Form(
    "exported-model",
    ("pluralllm model export",),
    {
        "run": "name of the run",
        "version": "number of the model version",
        "participants": "number of clients whose updates are in this version",
        "updates": "number of updates in this version and all before it",
        "fairness_index": "Jain's index over the groups that report their scores, 0 to 1; null if none does",
        "context_gain": "mean over the groups that report it; near 0, predictions do not depend on the group; null if none does",
        "folder": "path of the exported model",
    },
)
METHODS = Form(
    "methods",
    ("pluralllm experiment table",),
    {
        "methods": "list, best first: `method`, `seeds`, `questions`; `mean`, `worst`, `fairness`, `variation` and each of "
        "`groups` with `value`, `low`, `high`; `worst_group`, `mean_over_seeds`, `seed_deviation` (null with one seed), "
        "`context_gain` (null if not measured), `training_groups`, `cost` of the whole training by axis, "
        "`by_options` (for each number of options `alignment` and `questions`), "
        "`calibration` (observed / expected error; null if no spread is predicted)"
    },
)
DATA_CHECK = Form(
    "data-check",
    ("pluralllm-client data check",),
    {
        "lines": "number of rows of the file",
        "problems": "list of `line`, `problem`",
        "usable_questions": "number of answered questions without a problem",
        "unanswered_questions": "number of questions with 0 respondents, which are kept and not used",
        "options": "number of options of all usable questions",
        "ordinal_questions": "number of usable questions with a scale",
        "training_questions": "number of questions for training; null without `--spec`, as are the next three",
        "evaluation_questions": "number of questions that a hash holds out from training",
        "episode_needs": "number of questions in the smallest episode",
        "shortage": "a sentence that says which questions are too few; null if none are",
        "written_twice": "number of usable questions that are another one of the file in another order or spelling",
        "shared_questions": "number of usable questions that the list has with the same id; null without `--against`",
        "differently_written": "number of those that it has with options in another order or spelling; null without `--against`",
        "noise_on_a_share": "standard deviation that noise would add to a share, at the median; null without `--epsilon`",
        "embedding_notes": "sentences about what the embedding model cannot see; null without `--cache`",
        "distance_of_noised_answers": "mean Jensen-Shannon distance from true to noised answers; null without `--epsilon`",
    },
)
PRIVACY = Form(
    "privacy",
    ("pluralllm-client privacy",),
    {
        "unit": "what epsilon is about: one respondent",
        "population": "name of the people in all private files of the ledger",
        "epsilon_spent": "privacy loss of all releases together, also of charges whose release did not happen",
        "epsilon_allowed": "the policy's bound",
        "delta": "chance that belongs to epsilon",
        "questions_released": "number of questions that were charged at least once",
        "questions_per_respondent": "number of questions that one respondent may have answered",
        "declared_to_coordinator": "what the daemon declares about the noise: epsilon spent, delta and unit",
        "releases": "number of releases, of all private files",
        "noised_file": "path of the answers in use; null if none are released; begins with LOST if the file is lost",
        "released": "time of the newest release of this private file; null if there is none",
        "private_file_changed": "whether the private file differs from the released one; null without a release",
    },
)
BACKUP = Form(
    "backup",
    ("pluralllm-server backup", "pluralllm-server restore"),
    {
        "directory": "path of the backup",
        "blobs": "number of blobs in it",
        "blob_bytes": "their size, all together",
        "authority": "whether the authority's keys are in it",
        "root_key": "whether the key of the root certificate is in it",
        "audit": "the fields of `pluralllm.verification`",
    },
)
VERIFICATION = Form(
    "verification",
    ("pluralllm-server verify",),
    {
        "clean": "whether there are no findings",
        "runs": "number of runs",
        "versions": "number of model versions",
        "receipts": "number of receipts",
        "aggregates_repeated": "number of versions that were averaged again and compared bit by bit",
        "aggregates_not_kept": "number of versions whose updates are no longer stored",
        "orphan_blobs": "number of blobs that no record names; they are harmless",
        "audit_entries": "number of entries of the members' audit log",
        "roster_entries": "number of entries of the roster of peer keys that were checked",
        "findings": "list of `run`, `invariant`, `problem`",
    },
)
FORMS = (
    RUN, RUNS, ROUNDS, MEMBERS, MEMBER, PEER_KEY_RESET, PAGE_LINK, PEERS, INVITE, AUDIT_LOG, HISTORY, CLIENT_STATUS, CHECKS,
    CONFIG, EXPLANATION, SPEC, SCORES, PAIRS, MODEL, EXPORTED_MODEL, METHODS, DATA_CHECK, PRIVACY, BACKUP, VERIFICATION,
)  # fmt: skip
