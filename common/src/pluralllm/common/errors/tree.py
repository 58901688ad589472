"""The tree of all errors that a caller may receive.

PluralError
|- Refused                 the caller can act; nothing was changed
|  |- InvalidArgument      a field of a call is out of range
|  |- InvalidSpec          a run spec is not valid; the error names the file and the keys
|  |- InvalidConfig        a process's configuration is not valid; the error names the file and the keys
|  |- InvalidData          a private data file cannot be used; the error lists all problems
|  |- DataChanged          a private data file has changed since the client announced its content
|  |- InvalidResults       an experiment's results cannot be read; the error names the folder or file
|  |- InvalidModel         the folder of an exported model cannot be used
|  |- TooFewQuestions      a group has fewer questions than the run spec's episodes need
|  |- NotFound             the named run, round, model or task does not exist
|  |- WrongPhase           the run's phase does not allow the command
|  |- RunNotEnded          only a run that has ended can be archived
|  |- RoundClosed          the update's round has ended
|  |- WrongBase            the update was trained from another model version than the version that its round trains from
|  |- SpecMismatch         the run was created with another run spec
|  |- AlreadyCommitted     another update of this client is committed in this round already
|  |- LeaseLost            the task is no longer leased to the caller
|  |- OverLimit            a value, a size or a number is above its limit
|  |- ChunksMissing        an update was committed before all its chunks arrived
|  |- DigestMismatch       bytes do not have the digest that they should have
|  |- WrongLayout          tensor names, shapes or dtypes differ from the run's model
|  |- NotFinite            an update contains NaN or infinity
|  |- NormTooLarge         the update's L2 norm is above the run's bound
|  |- ProtocolUnsupported  client and coordinator have no protocol version in common
|  |- StaleSession         the coordinator does not know the session: the client must call Hello again
|  |- SessionReplaced      another daemon with this client's identity has taken over
|  |- Unidentified         the connection does not identify a client
|  |- PolicyForbids        the partner's policy.toml forbids what the coordinator asks for
|  |- ConsentNeeded        the partner must consent to the run before this client does a task of the run
|  |- EmbeddingMismatch    this machine's embedding model gives other vectors than the run spec expects
|  |- EmbeddingUnusable    the embedding model gives a vector that is not finite, or 0
|  |- ModelUnavailable     an embedding model cannot be loaded on this machine
|  |- ExtraMissing         an optional package is needed and not installed
|  |- CommandMissing       the package with this command is not installed
|  |- CommandBroken        the package with this command cannot be loaded
|  |- HistoryDiverged      the coordinator's model versions differ from those that this client saw before
|  |- RecordInvalid        the record of a model version is false: its hash, its signature or its updates are wrong
|  |- InUse                another process uses the state directory or the port already
|  |- NotLoopback          a connection in plain text to another machine was requested
|  |- NoAnswer             the call has no answer of the coordinator; the same call may succeed later
|  |  |- Unreachable       nothing answers
|  |  |- ProxyFailed       the HTTP proxy does not answer, or does not connect to the coordinator
|  |  |- Busy              the coordinator has as many open calls as it may have
|  |  |- WrongPort         what answers is not the port of the coordinator that was asked for
|  |  |- LinkTooSlow       the network carries less than the slowest speed that is supported
|  |  |- StreamSilent      an upload has stopped in the middle
|  |  `- ForeignAnswer     gRPC, a proxy or another server has ended the call
|  `- ...                  members, certificates and invites: membership.py; backups and disk space: storage.py;
|                          noised answers: privacy.py; private rounds: private_rounds.py; plug-ins: plugins.py
`- Broken                  this program is at fault
   |- AnswerInvalid        the coordinator's answer breaks the protocol
   |- WorkerDied           the training process ended unexpectedly
   |- BackgroundFailed     a background task failed again and again, so the process ends
   |- Internal             any other failure; the details are in the log under the incident id
   `- ...                  disk, database and stored data: storage.py

Each error carries its facts (the values that describe the error) as dataclass fields. The templates `why` (the cause) and `fix`
(the advice to the caller) are filled in with the facts. The message to a person is the filled `why`, then the filled `fix`.
"""

from dataclasses import dataclass

from pluralllm.common.errors.plugins import PluginBroken as PluginBroken
from pluralllm.common.errors.plugins import PluginMissing as PluginMissing
from pluralllm.common.errors.privacy import AnswersProtected as AnswersProtected
from pluralllm.common.errors.privacy import LedgerBroken as LedgerBroken
from pluralllm.common.errors.privacy import LedgerDiverged as LedgerDiverged
from pluralllm.common.errors.privacy import NoiseDemanded as NoiseDemanded
from pluralllm.common.errors.privacy import NoisedFileLost as NoisedFileLost
from pluralllm.common.errors.privacy import NotReleased as NotReleased
from pluralllm.common.errors.privacy import PrivacyBudgetSpent as PrivacyBudgetSpent
from pluralllm.common.errors.root import Broken as Broken
from pluralllm.common.errors.root import PluralError as PluralError
from pluralllm.common.errors.root import Refused as Refused
from pluralllm.common.errors.root import fields_of as fields_of
from pluralllm.common.errors.root import reason_of as reason_of
from pluralllm.common.errors.storage import BackupUnusable as BackupUnusable
from pluralllm.common.errors.storage import BaseLost as BaseLost
from pluralllm.common.errors.storage import Corrupt as Corrupt
from pluralllm.common.errors.storage import DiskFailed as DiskFailed
from pluralllm.common.errors.storage import NotEmpty as NotEmpty
from pluralllm.common.errors.storage import Overtaken as Overtaken
from pluralllm.common.errors.storage import StorageFull as StorageFull
from pluralllm.common.errors.storage import StoreFailed as StoreFailed
from pluralllm.common.errors.storage import UpdateLost as UpdateLost


@dataclass(eq=False)
class InvalidArgument(Refused):
    field: str
    problem: str
    why = "{field}: {problem}."


@dataclass(eq=False)
class InvalidSpec(Refused):
    file: str
    problems: str
    why = "The run spec {file} is not valid:\n{problems}"


@dataclass(eq=False)
class InvalidConfig(Refused):
    file: str
    problems: str
    why = "The configuration {file} is not valid:\n{problems}"


@dataclass(eq=False)
class InvalidData(Refused):
    file: str
    problems: str
    why = "The private data {file} cannot be used:\n{problems}"


@dataclass(eq=False)
class DataChanged(Refused):
    file: str
    why = "The private data {file} have changed since this client announced them."
    fix = (
        "The client reads them again and goes on; a run that it has sent updates to keeps the weight of the first one."
    )


@dataclass(eq=False)
class InvalidResults(Refused):
    path: str
    problem: str
    why = "The results {path} cannot be read: {problem}."


@dataclass(eq=False)
class InvalidModel(Refused):
    folder: str
    problem: str
    why = "The model {folder} cannot be used: {problem}."


@dataclass(eq=False)
class TooFewQuestions(Refused):
    group: str
    usable: int
    needed: int
    use: str
    why = "Group {group} has {usable} usable questions, {use} needs {needed}."
    fix = "Add questions, or ask the run's operator for smaller episodes."


@dataclass(eq=False)
class NotFound(Refused):
    what: str
    name: str
    why = "There is no {what} {name}."


@dataclass(eq=False)
class WrongPhase(Refused):
    run: str
    phase: str
    wanted: str
    why = "Run {run} is {phase}; it cannot be {wanted}."


@dataclass(eq=False)
class RunNotEnded(Refused):
    run: str
    phase: str
    why = "Run {run} is {phase}; only a run that has ended can be archived."
    fix = "Wait for its end, or end it for good: pluralllm run cancel {run}."


@dataclass(eq=False)
class RoundClosed(Refused):
    run: str
    asked: int
    current: int
    why = "Round {asked} of run {run} is closed; the current round is {current}."


@dataclass(eq=False)
class WrongBase(Refused):
    asked: str
    current: str
    why = "The update was trained on model {asked}, the round's base is {current}."


@dataclass(eq=False)
class SpecMismatch(Refused):
    run: str
    asked: str
    stored: str
    why = "Run {run} was created with spec {stored}, not {asked}."
    fix = "A run's spec never changes: create a run under another name."


@dataclass(eq=False)
class AlreadyCommitted(Refused):
    client: str
    round: int
    committed: str
    why = "Client {client} has committed update {committed} in round {round}; another one cannot replace it."


@dataclass(eq=False)
class LeaseLost(Refused):
    task: str
    why = "Task {task} is not leased to this client."


@dataclass(eq=False)
class OverLimit(Refused):
    what: str
    got: int
    limit: int
    why = "{what} is {got}, the limit is {limit}."


@dataclass(eq=False)
class ChunksMissing(Refused):
    missing: int
    why = "{missing} chunks of the update have not arrived."


@dataclass(eq=False)
class DigestMismatch(Refused):
    what: str
    expected: str
    got: str
    why = "{what}: sha256 is {got}, expected {expected}."


@dataclass(eq=False)
class WrongLayout(Refused):
    problem: str
    why = "The update does not have the layout of the run's model: {problem}."
    fix = "Client and coordinator must run the same run spec and architecture version."


@dataclass(eq=False)
class NotFinite(Refused):
    tensor: str
    count: int
    why = "The update has {count} NaN or infinite values, the first in {tensor}."
    fix = "Look for a too high learning rate or broken data at the client."


@dataclass(eq=False)
class NormTooLarge(Refused):
    norm: float
    limit: float
    why = "The update's L2 norm is {norm:.4g}, the run allows {limit:.4g}."
    fix = "Look for a too high learning rate or too many local steps at the client."


@dataclass(eq=False)
class ProtocolUnsupported(Refused):
    client_min: int
    client_max: int
    server_min: int
    server_max: int
    why = "Client protocol {client_min}-{client_max} and coordinator protocol {server_min}-{server_max} do not overlap."
    fix = "Upgrade the older side."


@dataclass(eq=False)
class StaleSession(Refused):
    client: str
    why = "The coordinator does not know this session of {client} (it restarted, or Hello was not said)."


@dataclass(eq=False)
class SessionReplaced(Refused):
    client: str
    why = "Another daemon with the identity of client {client} has connected later, and has taken over."
    fix = "Run one daemon for each identity. If the other one is not yours: have the administrator run pluralllm revoke {client}."


@dataclass(eq=False)
class Unidentified(Refused):
    problem: str
    why = "The caller cannot be identified: {problem}."
    fix = "Join the federation with an invite."


@dataclass(eq=False)
class PolicyForbids(Refused):
    key: str
    asked: str
    allowed: str
    why = "This partner's policy forbids it: {key} is {asked}, allowed is {allowed}."
    fix = "The partner can change policy.toml; the coordinator cannot."


@dataclass(eq=False)
class ConsentNeeded(Refused):
    run: str
    differences: str  # what the policy does not allow without consent: field, value, allowed value and the policy's key
    why = "This partner has not consented to run {run}: {differences}."
    fix = "The partner can consent: pluralllm-client consent {run}."


@dataclass(eq=False)
class EmbeddingMismatch(Refused):
    model: str
    cosine: float
    needed: float
    why = "Embedding model {model} gives other vectors here than the run spec expects: cosine {cosine:.4f}, needed {needed}."
    fix = "Install the model and revision the run spec names."


@dataclass(eq=False)
class EmbeddingUnusable(Refused):
    model: str
    why = "Embedding model {model} gives a vector with NaN or infinite values, or with zeros only."
    fix = "Set device = cpu, which computes in float32; if the vector stays so, install the model's files anew."


@dataclass(eq=False)
class ModelUnavailable(Refused):
    model: str
    problem: str
    why = "Embedding model {model} cannot be loaded: {problem}."
    fix = "Give its local folder: --embedding-model-path, or embedding_model_path in client.toml and in Python."


@dataclass(eq=False)
class ExtraMissing(Refused):
    package: str
    extra: str
    part: str = "client"
    why = "This needs {package}, which is not installed."
    fix = "pip install 'pluralllm-{part}[{extra}]'"


@dataclass(eq=False)
class CommandMissing(Refused):
    command: str
    distribution: str
    purpose: str  # of the distribution
    requirement: str  # for pip: the distribution, with its extra where the command needs one
    why = "`{command}` comes with {distribution} ({purpose}), which is not installed."
    fix = "pip install '{requirement}'"


@dataclass(eq=False)
class CommandBroken(Refused):
    command: str
    distribution: str
    problem: str
    why = "`{command}` comes with {distribution} and cannot be loaded: {problem}."
    fix = "Update or uninstall {distribution}; all other commands work."


@dataclass(eq=False)
class HistoryDiverged(Refused):
    run: str
    version: int
    problem: str = "is not the one this client saw before"
    why = "Model version {version} of run {run} {problem}: the coordinator's history diverged."
    fix = "Do not go on; ask the coordinator's operator."


@dataclass(eq=False)
class RecordInvalid(Refused):
    run: str
    version: int
    problem: str
    why = "The record of model version {version} of run {run} is false: {problem}."
    fix = "Do not go on; ask the coordinator's operator."


@dataclass(eq=False)
class InUse(Refused):
    what: str
    by: str
    why = "{what} is in use by {by}."
    fix = "Stop the other process or choose another one."


@dataclass(eq=False)
class NotLoopback(Refused):
    address: str
    why = "Refusing {address}: plain text is for the loopback interface only."
    fix = "Use certificates instead of plain text, or use 127.0.0.1, ::1 or localhost."


class NoAnswer(Refused):
    """Base class of failed calls that have no answer of the coordinator. They say nothing about the request."""

    address: str  # that was called


@dataclass(eq=False)
class Unreachable(NoAnswer):
    address: str
    problem: str
    why = "The coordinator at {address} does not answer: {problem}."
    fix = "Check the address and that pluralllm-server serve is running there."


@dataclass(eq=False)
class ProxyFailed(NoAnswer):
    proxy: str  # host:port, never with a password
    address: str
    problem: str
    why = "The proxy {proxy} does not connect to {address}: {problem}."
    fix = "Ask who runs the proxy to allow this address, or correct `proxy` in client.toml, https_proxy or no_proxy."


@dataclass(eq=False)
class Busy(NoAnswer):
    address: str
    problem: str
    why = "The coordinator at {address} has no room for another call now: {problem}."
    fix = "Try again in some seconds. If that does not help, its operator can raise max_concurrent_rpcs."


@dataclass(eq=False)
class WrongPort(NoAnswer):
    address: str
    wanted: str  # the main port, or the enrolment port
    problem: str
    why = "Wrong port: {address} is not the coordinator's {wanted}: {problem}."
    fix = "Correct the address. The invite names both: the main port is usually 7443, the enrolment port 7444."


@dataclass(eq=False)
class LinkTooSlow(NoAnswer):
    address: str
    way: str  # "to" or "from" the coordinator
    kib_s: float
    needed_kib_s: float
    why = "This link is too slow: {kib_s:.1f} KiB/s {way} the coordinator at {address}, needed are {needed_kib_s:.0f} KiB/s."
    fix = "Use a faster link, or keep it free for PluralLLM; chunks that have arrived are not sent again."


@dataclass(eq=False)
class StreamSilent(NoAnswer):
    address: str  # for the coordinator, the member whose stream it is
    silent_s: float
    why = "The stream between here and {address} was silent: no byte for {silent_s:g} s."
    fix = "Look at the network between the two; chunks that have arrived are not sent again."


@dataclass(eq=False)
class ForeignAnswer(NoAnswer):
    address: str
    code: str  # of gRPC
    problem: str
    why = "The call to {address} ended with gRPC's status {code}, without a reason that this release knows: {problem}."
    fix = "Look at the address, and for a proxy on the way: another server may answer there, or a newer release."


@dataclass(eq=False)
class AnswerInvalid(Broken):
    call: str
    field: str
    problem: str
    why = "The coordinator's answer to {call} breaks the protocol: {field} {problem}."
    fix = "Ask the coordinator's operator; the client asks again later."


@dataclass(eq=False)
class WorkerDied(Broken):
    problem: str
    why = "The training process died: {problem}."


@dataclass(eq=False)
class BackgroundFailed(Broken):
    work: str
    problem: str
    why = "A part of this process, {work}, failed again and again: {problem}. The process ends."
    fix = "Start it again, as a supervisor does; nothing acknowledged is lost. The log has the details for a report."


@dataclass(eq=False)
class Internal(Broken):
    incident: str
    why = "Internal error, incident {incident}: the coordinator's log has the details under this id."


def leaves() -> dict[str, type[PluralError]]:
    """Returns every error class that has no subclass, by its name in gRPC statuses (for example WRONG_BASE)."""

    def below(branch: type[PluralError]) -> list[type[PluralError]]:
        children = branch.__subclasses__()
        return [branch] if not children else [leaf for child in children for leaf in below(child)]

    return {reason_of(leaf): leaf for leaf in below(PluralError)}
