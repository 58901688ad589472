"""A federation from Python: the runs, members and models of a coordinator, and training in this process.

Every call has a deadline and raises the typed error that a command would print.
"""

import asyncio
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pluralllm.api.arguments import all_name_arguments, in_python
from pluralllm.api.events import Event, event_of
from pluralllm.api.facts import GroupScore, Member, Model, RunState, group_score, member, model_name, models, run_state
from pluralllm.api.frames import frame_of
from pluralllm.api.surveys import Answers, Spec, path_of, values_of
from pluralllm.client.joining import joining
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.environment import identity_of_person, proxies_of
from pluralllm.common.trust.identity import Identity, load_identity
from pluralllm.common.trust.invite import LINE_PREFIX, Invite
from pluralllm.common.words.addresses import PLAIN_TEXT_ADDRESS
from pluralllm.common.words.names import NEWEST, RunName
from pluralllm.common.words.roles import GroupRole, MemberRole
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.default_rounds import with_default_rounds
from pluralllm.operator.opening import opened
from pluralllm.operator.plain_values import Values
from pluralllm.operator.remote import Remote
from pluralllm.operator.saved_model import save_model
from pluralllm.operator.watching import events_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from pluralllm.api.predictor import PreferencePredictor
    from pluralllm.api.simulation import Simulation

COMMAND = "pluralllm"
ROLES = frozenset({MemberRole.OBSERVER, MemberRole.ADMIN})
INVITE_S = 24 * 3600.0  # the longest time that an invite is valid
FINISHED = object()


@all_name_arguments
class Federation:
    """An open connection to a federation's coordinator, as one of its administrators or observers.

    Close it, or use it in a `with` block. Several threads may share one.
    """

    def __init__(self, connection: Remote, older: Sequence[Remote] = ()) -> None:
        """Wraps a connection; `connect` and `in_plain_text` open one. older: connections to be closed with it."""
        self._connection, self._older = connection, older

    @classmethod
    def connect(
        cls,
        member: str | Path | Identity | Invite | None = None,
        *,
        folder: str | Path | None = None,
        coordinator: str | None = None,
    ) -> Self:
        """Connects with an identity. An invite is used up first, and the identity stays in a folder for the next time.

        member: the folder of an identity, an Identity, an invite (its file, its one line, or an Invite), or None for the
        identity that `pluralllm join` has stored.
        folder: where an invite's identity is stored; None is the folder that `pluralllm` uses.
        coordinator: host:port that replaces the coordinator's address in the identity.
        Raises NotJoined if there is no identity; InviteInvalid or another error of joining; InvalidArgument for an address
        that is none. A certificate that is due is renewed; if that fails there is a warning.
        """
        identity = _identity(member, folder).at(coordinator, None)
        connections: list[Remote] = []
        connection = opened(identity, connections.append, _warn_of_renewal)
        return cls(connection, [one for one in connections if one is not connection])

    @classmethod
    def in_plain_text(cls, address: str = PLAIN_TEXT_ADDRESS) -> Self:
        """Connects without certificates to a coordinator on this machine. Raises NotLoopback for another machine."""
        return cls(Remote.in_plain_text(address))

    @staticmethod
    def simulate(groups: Mapping[str, Answers], spec: Spec | None = None, **options: Any) -> "Simulation":
        """Trains a predictor in this process, with the round machine and the arithmetic of the service.

        groups: each group's answers. spec: a run spec, its values or its file; None is the default preset.
        options: those of pluralllm.api.simulation.simulate, such as held_out, embedding_model_path and progress.
        Raises ExtraMissing, InvalidSpec, InvalidArgument, InvalidData, TooFewQuestions or ModelUnavailable.
        """
        from pluralllm.common.process.extras import need_experiment  # noqa: PLC0415

        need_experiment()
        from pluralllm.api.simulation import simulate  # noqa: PLC0415 - torch, only here

        return simulate(groups, {} if spec is None else spec, **options)

    def runs(self, *, archived: bool = False) -> "list[Run]":
        """Returns the runs, newest first. archived: whether archived runs are listed, too."""
        listed = self._connection.runs(summary=True, archived=archived)
        return [Run(self._connection, RunName.parse(one["name"]).run) for one in listed]

    def run(self, name: str = NEWEST) -> "Run":
        """Returns a run by its name; without a name, the newest one that is neither archived nor cancelled.

        If there is no such run, another one stands for it. Raises NotFound if there is none at all.
        """
        return Run(self._connection, RunName.parse(self._connection.get_run(name)["name"]).run)

    def members(self) -> list[Member]:
        """Returns all members, those that are invited and have not joined, too."""
        return [member(values) for values in self._connection.members()]

    def invite(
        self,
        name: str,
        role: str,
        *,
        group: str = "",
        held_out: bool = False,
        runs: Sequence[str] = (),
        ttl_s: float = INVITE_S,
        needs_approval: bool = False,
    ) -> Invite:
        """Invites a member, and returns the invite, which works once. Its `to_line()` and `to_json()` are secret until then.

        name: a-z, 0-9 and '-'. role: client, observer or admin. group: what a client speaks for; "" is its name. held_out: a
        client's group is only evaluated, and never trained on. runs: the runs that an observer may read; "*" is every run.
        ttl_s: seconds until the invite expires, at most a day. needs_approval: an administrator must approve the member
        after it has joined.
        Raises InvalidArgument, or what the coordinator refuses.
        """
        if role not in list(MemberRole):
            raise InvalidArgument(field="role", problem=f"is {role!r}, must be one of: {', '.join(MemberRole)}")
        if role == MemberRole.OBSERVER and not runs:
            problem = 'must name the runs that the observer may read, or be ["*"] for every run'
            raise InvalidArgument(field="runs", problem=problem)
        if not 0 < ttl_s <= INVITE_S:
            raise InvalidArgument(field="ttl_s", problem=f"is {ttl_s:g}, must be above 0 and at most {INVITE_S:g}")
        group_role = GroupRole.HELD_OUT if held_out else None
        return self._connection.invite(
            name, MemberRole(role), group, group_role, ttl_s, needs_approval=needs_approval, runs=runs
        )

    def create(
        self,
        name: str,
        spec: RunSpec | Mapping[str, Any] | str | Path,
        *,
        start: bool = False,
        plain_rounds: bool = False,
    ) -> "Run":
        """Creates a run and its model version 0. The call may be repeated with the same run spec.

        name: a-z, 0-9 and '-'. spec: a RunSpec is sent as it is. From values or a file, the run has private rounds if at least
        four clients are to train in each, as with `pluralllm run create`; the attribute `note` of the run says what its
        coordinator can read. If they name no embedding model, texts are embedded by all-MiniLM-L6-v2.
        plain_rounds: leaves such rounds plain.
        Raises InvalidSpec, InvalidArgument, or what the coordinator refuses.
        """
        note = ""
        if not isinstance(spec, RunSpec):
            new = with_default_rounds(*values_of(spec), plain=plain_rounds)
            spec, note = new.spec, in_python(new.note)
        self._connection.create_run(name, spec.canonical_json())
        if start:
            self._connection.start_run(name)
        return Run(self._connection, name, note)

    def watch(self, run: str = NEWEST, after: int = 0) -> Iterator[Event]:
        """Yields the events of a run, as Run.watch does."""
        return self.run(run).watch(after)

    def close(self) -> None:
        """Closes the connection."""
        for connection in (self._connection, *self._older):
            connection.close()

    def __enter__(self) -> Self:
        """Returns the federation itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()


@all_name_arguments
class Run:
    """One run of a federation. Its state is read anew at each call."""

    def __init__(self, connection: Remote, name: str, note: str = "") -> None:
        """Names a run. note: what the coordinator can read in its rounds, for a run that was just created."""
        self._connection, self.name, self.note = connection, name, note

    def __repr__(self) -> str:
        return f"Run({self.name!r})"

    def state(self) -> RunState:
        """Returns the run's state: phase, round, participants, newest scores, and what it waits for."""
        return run_state(self._connection.get_run(self.name))

    def start(self) -> RunState:
        """Starts a run that was created."""
        return run_state(self._connection.start_run(self.name))

    def pause(self) -> RunState:
        """Lets no new round open."""
        return run_state(self._connection.pause_run(self.name))

    def resume(self) -> RunState:
        """Resumes a paused run."""
        return run_state(self._connection.resume_run(self.name))

    def cancel(self, reason: str = "") -> RunState:
        """Ends the run for good. reason: text that is stored with the run and reported to the clients."""
        return run_state(self._connection.cancel_run(self.name, reason))

    def archive(self) -> RunState:
        """Archives the run, which must have ended: lists leave it out. Nothing is deleted. Raises RunNotEnded before its end."""
        return run_state(self._connection.archive_run(self.name))

    def unarchive(self) -> RunState:
        """Takes the run out of the archive: lists have it again."""
        return run_state(self._connection.unarchive_run(self.name))

    def watch(self, after: int = 0) -> Iterator[Event]:
        """Yields each event of the run once, and waits for those to come, until the run has ended.

        Also ends when the run stands still for 20 seconds because owners of clients must act: `state().blocked` then says why.
        after: number of the last event to leave out; 0 begins with the first. The coordinator may be away for two minutes.
        Raises an error that no later try can mend, such as RoleForbids.
        """
        return (event_of(self.name, values) for values in events_of(self._connection, self.name, after))

    async def watch_async(self, after: int = 0) -> AsyncIterator[Event]:
        """Yields the events like `watch`, without blocking the event loop."""
        events = self.watch(after)
        while (event := await asyncio.to_thread(next, events, FINISHED)) is not FINISHED:
            assert isinstance(event, Event)
            yield event

    def scores(self) -> tuple[GroupScore, ...]:
        """Returns the scores of all model versions and groups, oldest first."""
        return tuple(map(group_score, self._connection.evaluations(self.name)))

    def frame(self) -> "DataFrame":
        """Returns the scores as a data frame with a row for each group and version. Raises ExtraMissing without pandas."""
        keys = ("version", "group", "role", "alignment_score", "context_gain", "questions")
        return frame_of({key: getattr(score, key) for key in keys} for score in self.scores())

    def rounds(self, limit: int | None = None) -> list[Values]:
        """Returns the newest rounds, newest first, as `pluralllm rounds --json` prints them. limit: their number; None is all."""
        return self._connection.rounds(self.name, limit)

    def models(self) -> list[Model]:
        """Returns the published model versions, oldest first."""
        return models(self.name, self.rounds())

    def download(self, folder: str | Path, version: int | None = None) -> Path:
        """Writes model.safetensors, run_spec.json and provenance.json into a folder, and returns the folder.

        version: None is the current version. A download that broke off goes on. Raises RoleForbids for an observer.
        """
        path = path_of("folder", folder)
        save_model(self._connection, model_name(self.name, version), path, lambda _done, _all: None)
        return path

    def predictor(self, folder: str | Path, version: int | None = None, **options: Any) -> "PreferencePredictor":
        """Exports a model version into a folder, as `pluralllm model export` does, and loads it from there.

        version: None is the current version. options: those of PreferencePredictor.from_pretrained.
        """
        from pluralllm.common.process.extras import need_align  # noqa: PLC0415

        need_align()
        from pluralllm.align.export import export_model  # noqa: PLC0415
        from pluralllm.api.predictor import PreferencePredictor  # noqa: PLC0415 - torch, only here

        path = path_of("folder", folder)
        export_model(self._connection, model_name(self.name, version), path, lambda _done, _all: None)
        return PreferencePredictor.from_pretrained(path, **options)


def _identity(member: str | Path | Identity | Invite | None, folder: str | Path | None) -> Identity:
    if isinstance(member, Identity):
        return member
    usual = identity_of_person("folder", None if folder is None else Path(folder))
    if member is None:
        return load_identity(usual, COMMAND)
    if isinstance(member, Invite):
        return joining.join(member, usual, COMMAND, ROLES, proxies_of(None))[0]
    if str(member).startswith(LINE_PREFIX) or (path := path_of("member", member)).is_file():
        return joining.join(joining.read_invite(str(member)), usual, COMMAND, ROLES, proxies_of(None))[0]
    return load_identity(path, COMMAND)


def _warn_of_renewal(error: Exception) -> None:
    warnings.warn(f"the certificate could not be renewed: {error}", stacklevel=4)
