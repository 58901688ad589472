"""Serves predicted shares to other programs on this machine: the gRPC ScoringService, on the loopback interface only."""

import signal
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog

from pluralllm.align.group_reward import GroupReward
from pluralllm.client.data.preferences.rows import candidates_of
from pluralllm.common.errors.grpc_status import to_status
from pluralllm.common.errors.tree import Internal, InvalidArgument, NotFound, OverLimit, PluralError
from pluralllm.common.process.listening import checked_listen, why_not_open
from pluralllm.common.words.addresses import check_loopback, join_address, split_address
from pluralllm.common.words.questions import Question
from pluralllm.v1 import scoring_pb2 as pb
from pluralllm.v1 import scoring_pb2_grpc as pb_grpc

log = structlog.get_logger()

MAX_OPTIONS = 10_000  # in one call, over all its questions
STOP_GRACE_S = 5.0
MAX_CONNECTIONS = 64
OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 5_000),
)


class Scoring(pb_grpc.ScoringServiceServicer):
    """Answers the RPCs of ScoringService; computes one prediction at a time, because one prediction uses all cores."""

    def __init__(self, reward: GroupReward) -> None:
        self._reward = reward
        self._one_at_a_time = threading.Lock()

    def GetScorer(self, request: pb.GetScorerRequest, context: Any) -> pb.GetScorerResponse:
        config = self._reward.config
        return pb.GetScorerResponse(
            run=config.run, version=config.version, weights_digest=config.weights_sha256, groups=self._reward.groups
        )

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        try:
            return self._score(request)
        except PluralError as error:
            context.abort_with_status(to_status(error))
        except Exception:
            incident = uuid.uuid4().hex[:12]
            log.exception("score.broken", incident=incident)
            context.abort_with_status(to_status(Internal(incident=incident)))
        raise AssertionError("abort_with_status raises")

    def _score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Returns the predicted shares for each question of the request.

        Raises NotFound for a group that has no context; OverLimit for too many options; InvalidArgument for a question that is
        not valid; the embedding model's error if the texts cannot be embedded.
        """
        options = sum(len(question.options) for question in request.questions)
        if options > MAX_OPTIONS:
            raise OverLimit(what="number of options", got=options, limit=MAX_OPTIONS)
        group = request.group or self._reward.only_group
        if group not in self._reward.groups:
            raise NotFound(what="context of group", name=group)
        questions = [_question(number, candidates) for number, candidates in enumerate(request.questions)]
        with self._one_at_a_time:
            predicted = self._reward.predict([(group, question) for question in questions])
        answers = [predicted[group, question] for question in questions]
        return pb.ScoreResponse(
            answers=[pb.PredictedShares(shares=one.shares.tolist(), spreads=one.spreads.tolist()) for one in answers]
        )


def bind_scores(scoring: Scoring, listen: str) -> tuple[grpc.Server, str]:
    """Creates the server of ScoringService but does not start it. Returns the server and its bound address (host:port).

    Raises NotLoopback if the address can be reached from other machines; InUse or InvalidArgument if the port cannot be opened.
    """
    check_loopback(checked_listen("--listen", listen))
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    pb_grpc.add_ScoringServiceServicer_to_server(scoring, server)
    try:
        port = server.add_insecure_port(listen)  # loopback only, by the check above: no other machine can call
    except RuntimeError as error:
        raise why_not_open(listen) from error
    return server, join_address(split_address(listen)[0], port)


def serve_scores(reward: GroupReward, listen: str, tell: Callable[[str], None]) -> None:
    """Serves predicted shares on the address `listen` until the process gets SIGINT or SIGTERM.

    tell: is called with the address when the server accepts calls.
    Raises NotLoopback if the address can be reached from other machines; InUse or InvalidArgument if the port cannot be opened.
    """
    server, address = bind_scores(Scoring(reward), listen)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    server.start()
    tell(address)
    stop.wait()
    server.stop(STOP_GRACE_S).wait()


def _question(number: int, candidates: pb.Candidates) -> Question:
    try:
        question, _ = candidates_of({"prompt": candidates.prompt, "options": list(candidates.options)})
    except ValueError as error:
        raise InvalidArgument(field=f"questions[{number}]", problem=str(error)) from error
    return question
