"""The operator's calls to the coordinator. The calls return plain values (dict, list, str, int, float) instead of protobuf.

An enum value becomes the last words of its name in lower case. A time becomes text in the form of RFC 3339.
"""

import base64
import datetime
import itertools
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
from google.protobuf.message import Message

from pluralllm.client.joining.cached_diagnosis import CachedDiagnosis
from pluralllm.client.link.link_speed import measured
from pluralllm.client.link.rests import rest_s
from pluralllm.common.errors.membership import TooManyCalls
from pluralllm.common.errors.tree import InvalidArgument, NoAnswer, OverLimit, PluralError, Unreachable
from pluralllm.common.process.files import make_folder, storage_errors
from pluralllm.common.trust.identity import Identity, next_key, save_renewal
from pluralllm.common.weights.chunks import Manifest
from pluralllm.common.weights.pieces import PIECE_BYTES, transfer_s
from pluralllm.common.wire.channels import blocking_channel, blocking_plain_channel
from pluralllm.common.wire.messages import (
    MAX_MESSAGE_BYTES,
    MEMBER_ROLES,
    MEMBER_ROLES_BACK,
    ROLES,
    ROLES_BACK,
    addresses_in,
    manifest_from,
)
from pluralllm.common.words.addresses import check_address
from pluralllm.common.words.ids import ClientId, RunId
from pluralllm.common.words.names import NEWEST, MemberName, ModelName, RunName
from pluralllm.common.words.roles import GroupRole, MemberRole
from pluralllm.operator.plain_values import Values, plain
from pluralllm.v1 import enrolment_pb2, enrolment_pb2_grpc, federation_pb2, federation_pb2_grpc, operations_pb2_grpc
from pluralllm.v1 import operations_pb2 as pb
from pluralllm.v1.resources_pb2 import ModelVersion

if TYPE_CHECKING:
    from pluralllm.client.link.model_download import ModelDownload
    from pluralllm.common.trust.invite import Invite

# What only one call needs is imported by that call, because `pluralllm status` must start at once.
CALL_DEADLINE_S = 15.0
REWARDS_HOLD_S = 10.0
WATCH_DEADLINE_S = 5.0  # no event reports progress and ages, so they are read again after this time
PAGE_SIZE = 200
AUDIT_PAGE_SIZE = 500
MAX_PAGES = 1_000
MAX_RESTS = 5  # for one call
DIAGNOSE_EVERY_S = 5.0  # --watch tries each second, and the coordinator counts calls on its enrolment port


class Remote:
    """A connection to one coordinator, with a method for each call.

    A call raises the typed error that the coordinator answered with. If there is no answer, a diagnosis looks for the cause;
    the call raises the error that the diagnosis finds, or a subclass of NoAnswer. In every method that takes a run's name, `-`
    means the newest run that is neither archived nor cancelled; `archive_run` and `unarchive_run` need the name itself.
    """

    def __init__(self, address: str, channel: grpc.Channel, identity: Identity | None) -> None:
        self.address = address
        self._channel = channel
        self._identity = identity
        self._diagnosis = CachedDiagnosis(DIAGNOSE_EVERY_S)
        self._operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        self._federation: Any = federation_pb2_grpc.FederationServiceStub(channel)
        self._enrolment: Any = enrolment_pb2_grpc.EnrolmentServiceStub(channel)

    @classmethod
    def of_member(cls, identity: Identity) -> Self:
        """Opens a connection with mutual TLS. Raises InvalidArgument if the coordinator's address in the identity is invalid."""
        address = checked_address(identity.membership.coordinator)
        return cls(address, blocking_channel(identity), identity)

    @classmethod
    def in_plain_text(cls, address: str) -> Self:
        """Opens a connection without certificates.

        Raises NotLoopback if the address is not on the loopback interface; InvalidArgument if the address is invalid.
        """
        return cls(checked_address(address), blocking_plain_channel(address), None)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def create_run(self, run: str, spec_json: bytes) -> Values:
        """Creates a run from a run spec in canonical JSON, and returns the run."""
        return self._run("CreateRun", pb.CreateRunRequest(run_id=run, spec_json=spec_json))

    def start_run(self, run: str) -> Values:
        """Starts a run that was created, and returns the run."""
        return self._run("StartRun", pb.StartRunRequest(name=self._exact_name(run)))

    def pause_run(self, run: str) -> Values:
        """Pauses a run, so that no new round opens, and returns the run."""
        return self._run("PauseRun", pb.PauseRunRequest(name=self._exact_name(run)))

    def resume_run(self, run: str) -> Values:
        """Resumes a paused run, and returns the run."""
        return self._run("ResumeRun", pb.ResumeRunRequest(name=self._exact_name(run)))

    def cancel_run(self, run: str, reason: str) -> Values:
        """Ends a run for good, and returns the run. reason: text that is stored with the run and reported to the clients."""
        return self._run("CancelRun", pb.CancelRunRequest(name=self._exact_name(run), reason=reason))

    def archive_run(self, run: str) -> Values:
        """Archives a run that has ended, so that lists leave it out, and returns the run. Raises RunNotEnded for another run."""
        return self._run("ArchiveRun", pb.ArchiveRunRequest(name=_run_name(run)))

    def unarchive_run(self, run: str) -> Values:
        """Takes a run out of the archive, so that lists have it again, and returns the run."""
        return self._run("UnarchiveRun", pb.UnarchiveRunRequest(name=_run_name(run)))

    def ask_rewards(self, run: str, rollouts_json: bytes) -> str:
        """Sends a batch of rollouts to be scored with rewards. Returns the name of the round that scores the batch.

        Raises WrongPhase while another batch is being scored.
        """
        response: pb.AskRewardsResponse = self._call(
            "AskRewards", pb.AskRewardsRequest(name=self._exact_name(run), rollouts_json=rollouts_json)
        )
        return response.round

    def rewards(self, name: str) -> Values:
        """Waits some seconds for a round to end, and returns its rewards. The outcome is "open" if the round has not ended.

        name: the name of the round, as `ask_rewards` returns it.
        """
        request = pb.GetRewardsRequest(name=name)
        request.hold.FromMilliseconds(round(REWARDS_HOLD_S * 1000))
        return plain(self._call("GetRewards", request, MAX_MESSAGE_BYTES))

    def get_run(self, run: str) -> Values:
        """Returns a run with its participants and its newest evaluations."""
        request = pb.GetRunRequest(name=_run_name(run), participants_page_size=PAGE_SIZE)
        answer = self._call("GetRun", request, MAX_MESSAGE_BYTES)
        state, token = plain(answer.run), answer.next_participants_page_token
        for _ in range(MAX_PAGES):
            if not token:
                return state
            following = pb.GetRunRequest(
                name=state["name"], participants_page_size=PAGE_SIZE, participants_page_token=token
            )
            answer = self._call("GetRun", following, MAX_MESSAGE_BYTES)
            state["participants"] += plain(answer.run)["participants"]
            token = answer.next_participants_page_token
        raise OverLimit(what="pages of GetRun", got=MAX_PAGES + 1, limit=MAX_PAGES)

    def runs(self, *, summary: bool = False, archived: bool = False) -> list[Values]:
        """Returns the runs, newest first.

        summary: whether their participants, evaluations and refusals are left out.
        archived: whether archived runs are listed, too.
        """
        return self._pages(
            "ListRuns",
            lambda token: pb.ListRunsRequest(
                page_size=PAGE_SIZE, page_token=token, summary=summary, show_archived=archived
            ),
            "runs",
        )

    def rounds(self, run: str, limit: int | None = None, *, summary: bool = False) -> list[Values]:
        """Returns the newest rounds of a run, newest first. limit: largest number of rounds to return; None returns all.

        summary: whether cohorts and receipts are left out; `cohort_size` and `updates` are their numbers.
        """
        size = PAGE_SIZE if limit is None else min(limit, PAGE_SIZE)
        rounds = self._pages(
            "ListRounds",
            lambda token: pb.ListRoundsRequest(
                parent=_run_name(run), page_size=size, page_token=token, summary=summary
            ),
            "rounds",
            limit,
        )
        for one in rounds:  # an earlier release's coordinator gives the lists and no numbers
            one["cohort_size"] = one["cohort_size"] or len(one["cohort"])
            one["updates"] = one["updates"] or len(one["receipts"])
        return rounds

    def evaluations(self, run: str) -> list[Values]:
        """Returns all evaluations of a run, oldest first."""
        return self._pages(
            "ListEvaluations",
            lambda token: pb.ListEvaluationsRequest(parent=_run_name(run), page_size=PAGE_SIZE, page_token=token),
            "evaluations",
        )

    def members(self) -> list[Values]:
        """Returns all members, including those that have an invite and have not joined yet."""
        return self._pages(
            "ListMembers", lambda token: pb.ListMembersRequest(page_size=PAGE_SIZE, page_token=token), "members"
        )

    def invite(
        self,
        name: str,
        role: MemberRole,
        group: str,
        group_role: GroupRole | None,
        ttl_s: float,
        *,
        needs_approval: bool,
        runs: Sequence[str] = (),
        max_examples: int = 0,
    ) -> "Invite":
        """Invites a member, and returns the invite, which is secret.

        ttl_s: time for which the invite is valid, in seconds. group_role: train or held_out (evaluated, never trained); None
        means train. needs_approval: whether an administrator must approve the member after the member has joined. runs: ids of
        the runs that an observer may read; * is every run. max_examples: largest number of questions that a client may state; 0
        for the coordinator's default.
        """
        from pluralllm.common.trust.invite import Invite  # noqa: PLC0415 - brings pydantic

        request = pb.CreateInviteRequest(
            name=name, role=MEMBER_ROLES[role], group=group, needs_approval=needs_approval, runs=runs
        )
        request.max_examples = max_examples
        if group_role is not None:
            request.group_role = ROLES[group_role]
        request.ttl.FromMilliseconds(round(ttl_s * 1000))
        response: pb.CreateInviteResponse = self._call("CreateInvite", request)
        return Invite(
            federation=response.federation,
            name=response.name,
            role=MEMBER_ROLES_BACK[response.role],
            group=response.group,
            group_role=ROLES_BACK.get(response.group_role),
            coordinator=response.coordinator,
            enrolment=response.enrolment,
            authority=base64.b64encode(response.authority_der).decode(),
            record_key=base64.b64encode(response.record_key_der).decode() or None,
            token=response.token,
            expires=response.expire_time.ToDatetime(tzinfo=datetime.UTC),
        )

    def approve(self, name: str) -> Values:
        """Approves a member that has joined and waits for approval, and returns the member."""
        return plain(self._call("ApproveMember", pb.ApproveMemberRequest(name=_member_name(name))).member)

    def revoke(self, name: str, reason: str) -> Values:
        """Ends a membership and revokes the member's certificates, and returns the member. reason: text for the audit log."""
        return plain(self._call("RevokeMember", pb.RevokeMemberRequest(name=_member_name(name), reason=reason)).member)

    def reset_peer_key(self, name: str) -> None:
        """Removes a client's peer key, so that the client may register another one. The call may be repeated."""
        self._call("ResetPeerKey", pb.ResetPeerKeyRequest(name=_member_name(name)))

    def page_link(self) -> str:
        """Returns a link to the coordinator's web page, which works once, within a minute. The token stands behind the #."""
        from pluralllm.common.wire.checked_answers import checked_answer  # noqa: PLC0415

        request = pb.CreatePageLinkRequest()
        response: pb.CreatePageLinkResponse = self._call("CreatePageLink", request)
        checked_answer("CreatePageLink", request, response, None)
        return f"https://{response.address}/enter#{response.token}"

    def audit_events(self) -> tuple[list[Values], bool]:
        """Returns the audit entries, oldest first, and whether they are the whole log.

        At most MAX_PAGES pages are read, so the newest entries of a very long log may be missing.
        """
        return self._read(
            "ListAuditEvents",
            lambda token: pb.ListAuditEventsRequest(page_size=AUDIT_PAGE_SIZE, page_token=token),
            "events",
        )

    def renewed(self) -> "Remote":
        """Renews the member's certificate, and returns a new connection that uses the new certificate.

        Raises a subclass of NoAnswer, StorageFull, AnswerInvalid if the answer breaks the protocol, or an error that the proto
        file lists for EnrolmentService.Renew.
        """
        from pluralllm.client.joining.present_addresses import keep_addresses  # noqa: PLC0415
        from pluralllm.common.trust.certificates import make_request  # noqa: PLC0415
        from pluralllm.common.wire.checked_answers import checked_answer  # noqa: PLC0415

        assert self._identity is not None  # nothing to renew in plain text
        key = next_key(self._identity.folder)
        request_der = make_request(key, self._identity.membership.name)
        request = enrolment_pb2.RenewRequest(certificate_request_der=request_der)
        try:
            response = self._enrolment.Renew(request, timeout=CALL_DEADLINE_S)
        except grpc.RpcError as error:
            raise self._failure(error) from error
        checked_answer("Renew", request, response, None)
        renewed = save_renewal(self._identity, key, response.certificate_chain_pem)
        told = addresses_in(response)
        return Remote.of_member(renewed if told is None else keep_addresses(renewed, told))

    def wait_for_event(self, run: str, after: int) -> None:
        """Waits for a new event of the run. Returns after WATCH_DEADLINE_S seconds in any case.

        after: the sequence number of the last event that the caller knows; an event with a higher number is new.
        """
        events = self.events(run, after)
        next(events, None)
        events.close()

    def events(self, run: str, after: int) -> Generator[Values, None, None]:
        """Yields the run's events as they happen, for WATCH_DEADLINE_S seconds or until the run is over.

        after: the sequence number of the last event that the caller knows; an event with a higher number is new.
        """
        request = pb.WatchRunRequest(name=_run_name(run), after_sequence=after)
        stream = self._operations.WatchRun(request, timeout=WATCH_DEADLINE_S)
        try:
            for answer in stream:
                yield plain(answer.event)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._failure(error) from error
        finally:
            stream.cancel()

    def model_record(self, model: ModelName) -> tuple[Values, int, bytes]:
        """Returns a model version's record (how it was made), the size of its weights in bytes, and the run spec as JSON.

        Raises RoleForbids if the caller is an observer.
        """
        answer: pb.GetModelResponse = self._call("GetModel", pb.GetModelRequest(name=str(model)), MAX_MESSAGE_BYTES)
        return plain(answer.model), answer.manifest.size_bytes, answer.spec_json

    def pull_model(self, model: ModelName, folder: Path, on_bytes: Callable[[int, int], None]) -> tuple[Values, bytes]:
        """Downloads a model version, and returns the version's record and the run spec as JSON.

        folder: the weights go to the file model.safetensors in this folder. on_bytes: callback (bytes done, bytes in all).
        A download that breaks off leaves a partial file in the folder, and the next call continues from this file. Raises
        Corrupt if a chunk is wrong; StorageFull if the disk is full.
        """
        from pluralllm.client.link.model_download import MAX_MODEL_BYTES, ModelDownload  # noqa: PLC0415

        answer: pb.GetModelResponse = self._call("GetModel", pb.GetModelRequest(name=str(model)), MAX_MESSAGE_BYTES)
        manifest = manifest_from(answer.manifest, MAX_MODEL_BYTES)
        with storage_errors("the model"):
            make_folder(folder, 0o755)
        download = ModelDownload("the model", manifest, folder / f".{manifest.digest[:16]}.part")
        if not download.is_complete:
            self._fetch_chunks(answer.model, manifest, download, on_bytes)
        download.publish(folder / "model.safetensors")
        return plain(answer.model), answer.spec_json

    def _fetch_chunks(
        self, model: ModelVersion, manifest: Manifest, download: "ModelDownload", on_bytes: Callable[[int, int], None]
    ) -> None:
        from pluralllm.client.link.model_download import stream_deadline_s  # noqa: PLC0415

        request = federation_pb2.GetChunksRequest(
            run=ModelName.parse(model.name).run,
            version=model.version,
            first_chunk=download.next_chunk,
            piece_bytes=PIECE_BYTES,
        )
        with download.writing(), measured(self.address, "from") as speed:
            try:
                for message in self._federation.GetChunks(request, timeout=stream_deadline_s(manifest)):
                    download.write(message.index, message.data, more=message.more)
                    speed.moved(len(message.data))
                    on_bytes(download.size_bytes, manifest.size_bytes)
            except grpc.RpcError as error:
                raise self._failure(error) from error
        if not download.is_complete:
            raise Unreachable(address=self.address, problem="the stream ended too early; pull again")

    def _run(self, method: str, request: Message) -> Values:
        return plain(self._call(method, request, MAX_MESSAGE_BYTES).run)  # with all its participants

    def _exact_name(self, run: str) -> str:
        """Returns the resource name of a run; for `-`, that of the run that it stands for now.

        A call that changes a run needs the run's own name.
        """
        return str(self.get_run(run)["name"]) if run == NEWEST else _run_name(run)

    def _pages(
        self, method: str, request: Callable[[str], Message], field: str, limit: int | None = None
    ) -> list[Values]:
        """Returns the items of all pages of a list. limit: largest number of items to return; None returns all.

        method: name of the RPC. request: makes a request from a page token. field: the field of the response that holds the
        items.
        Raises OverLimit if the list has more than MAX_PAGES pages.
        """
        items, is_all = self._read(method, request, field, limit)
        if not is_all:
            raise OverLimit(what=f"{field} on the coordinator", got=len(items) + 1, limit=len(items))
        return items

    def _read(
        self, method: str, request: Callable[[str], Message], field: str, limit: int | None = None
    ) -> tuple[list[Values], bool]:
        """Returns the items of at most MAX_PAGES pages, and whether the items are complete.

        The items are complete if they are all items of the list, or as many as `limit` allows.
        method: name of the RPC. request: makes a request from a page token. field: the field of the response that holds the
        items. limit: largest number of items to return; None returns all.
        """
        items: list[Values] = []
        token = ""
        for _ in range(MAX_PAGES):
            answer = self._call(method, request(token), MAX_MESSAGE_BYTES)
            items += [plain(message) for message in getattr(answer, field)]
            token = answer.next_page_token
            if not token or (limit is not None and len(items) >= limit):
                return items[:limit], True
        return items[:limit], False

    def _call(self, method: str, request: Message, answer_bytes: int = 0) -> Any:
        """Makes a call. If this member calls too often, the method waits and calls again, for MAX_RESTS times.

        answer_bytes: the size of the largest answer, if it may be large: it has time to come on the slowest supported link.
        """
        deadline_s = CALL_DEADLINE_S + transfer_s(request.ByteSize() + answer_bytes)
        for rests in itertools.count():
            try:
                return getattr(self._operations, method)(request, timeout=deadline_s)
            except grpc.RpcError as error:
                failure = self._failure(error)
                if not isinstance(failure, TooManyCalls) or rests >= MAX_RESTS:
                    raise failure from error
            time.sleep(rest_s(failure.retry_s))
        raise AssertionError

    def _failure(self, error: grpc.RpcError) -> PluralError:
        """Returns the typed error of a failed call.

        A refused TLS handshake looks like a dead coordinator. If there was no answer, a diagnosis therefore finds out why.
        """
        from pluralllm.common.errors.grpc_status import from_rpc_error  # noqa: PLC0415 - most calls are answered

        failure = from_rpc_error(error, self.address)
        if self._identity is None or not isinstance(failure, NoAnswer):
            return failure
        from pluralllm.client.joining.diagnosis import explained  # noqa: PLC0415 - most calls are answered

        explanation = explained(failure, self._diagnosis.cause(self._identity))
        return self._identity.proxies.explained(failure) if explanation is failure else explanation


def checked_address(address: str) -> str:
    """Returns an address as host:port. Raises InvalidArgument if the address has another form."""
    try:
        return check_address(address)
    except ValueError as error:
        raise InvalidArgument(field="coordinator", problem=str(error)) from error


def _run_name(run: str) -> str:
    """Returns the resource name of a run, which the coordinator checks, and in which it reads what `-` stands for."""
    return str(RunName(RunId(run)))


def _member_name(name: str) -> str:
    return str(MemberName(ClientId(name)))
