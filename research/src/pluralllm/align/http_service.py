"""Serves rewards by HTTP in the form of OpenRLHF's remote reward model, to trainers that do not speak gRPC.

`POST /get_reward` takes {"query": [...], "prompts": [...], "labels": [...]}: the whole texts, their prompts, and their labels.
It answers {"rewards": [...], "scores": [...], "unscored": n}. A label is a JSON object, as text, with `question`, `options`,
`scale` and `group`, each of them optional. `GET /health` says which model answers.
"""

import asyncio
import base64
import binascii
import hmac
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from pluralllm.align.group_reward import GroupReward
from pluralllm.common.errors.tree import Internal, InvalidArgument, PluralError
from pluralllm.common.process.listening import bound_socket, checked_listen, why_not_open
from pluralllm.common.text.reading import Unreadable, read_text
from pluralllm.common.words.addresses import is_loopback, join_address, split_address

log = structlog.get_logger()

MAX_ROWS = 4_096  # in one call
MAX_BODY_BYTES = 32 << 20
MIN_TOKEN_CHARACTERS = 16
HEAD_S, BODY_S = 5.0, 30.0  # for the head and the body of a request to arrive
MAX_VISITORS = 64
NAME_END = ":"  # between name and password (RFC 7617, section 2)
START_S, STOP_S = 10, 5
# What chat templates and tokenizers leave around a completion, such as <|im_end|>, </s> or <pad>.
MARKS = re.compile(
    r"^(?:\s*<\|[^|>]{1,40}\|>)+|(?:\s*(?:<\|[^|>]{1,40}\|>|</?(?:s|eos|pad|end_of_turn)>|\[PAD\]))+\s*$"
)
UNSCORED_REWARD = 0.0  # OpenRLHF takes numbers only


class Label(BaseModel):
    """A row's label: its question, if that is not the prompt, and how the answer is to be read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str | None = None  # None: the prompt
    options: list[str] | None = None  # None: the candidates are the completions of the same prompt in this call
    scale: list[float | None] | None = None
    group: str | None = None


class RewardRequest(BaseModel):
    """The body of a call. The three lists have one length."""

    model_config = ConfigDict(strict=True)

    query: list[str] = Field(max_length=MAX_ROWS)
    prompts: list[str] = Field(max_length=MAX_ROWS)
    labels: list[str | None] | None = Field(default=None, max_length=MAX_ROWS)

    @model_validator(mode="after")
    def _one_length(self) -> "RewardRequest":
        lengths = {len(self.query), len(self.prompts), len(self.query if self.labels is None else self.labels)}
        if len(lengths) > 1:
            raise ValueError("query, prompts and labels must have one entry for each row")
        return self


def read_request(body: bytes) -> RewardRequest:
    """Returns the call in a body. Raises InvalidArgument, which names the field, if it is none."""
    try:
        return RewardRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidArgument(field=field, problem=str(first["msg"])) from error


def label_of(number: int, text: str | None) -> Label:
    """Returns the label of a row; an empty text is a label that says nothing. Raises InvalidArgument for any other text."""
    if text is None or not text.strip():
        return Label()
    try:
        return Label.model_validate_json(text)
    except ValidationError as error:
        problem = (
            "is no JSON object with question, options, scale and group. Leave it empty if the completions of a prompt are its"
            " candidates"
        )
        raise InvalidArgument(field=f"labels[{number}]", problem=problem) from error


def completion_of(number: int, query: str, prompt: str) -> str:
    """Returns what follows the prompt in a whole text, without the marks of a chat template at its ends.

    Raises InvalidArgument if the text does not begin with the prompt.
    """
    if not query.startswith(prompt):
        raise InvalidArgument(field=f"query[{number}]", problem="does not begin with its prompt")
    return MARKS.sub("", query[len(prompt) :]).strip()


def rewards_of(reward: GroupReward, request: RewardRequest) -> dict[str, Any]:
    """Returns the answer to a call: a reward for each row, 0 for one that cannot be scored, and the number of such rows.

    Raises InvalidArgument for a row that has no completion, or whose label or group cannot be used.
    """
    labels = [label_of(number, text) for number, text in enumerate(request.labels or [None] * len(request.query))]
    rows = list(zip(request.query, request.prompts, strict=True))
    completions = [completion_of(number, query, prompt) for number, (query, prompt) in enumerate(rows)]
    questions = [label.question or prompt for label, (_, prompt) in zip(labels, rows, strict=True)]
    columns: dict[str, Any] = {
        "options": [label.options for label in labels],
        "scale": [label.scale for label in labels],
    }
    if any(label.group is not None for label in labels):
        columns["group"] = [reward.only_group if label.group is None else label.group for label in labels]
        unknown = [name for name in columns["group"] if name not in reward.groups]
        if unknown:
            raise InvalidArgument(
                field="group", problem=f"{unknown[0]!r} has no context; one of {', '.join(reward.groups)}"
            )
    rewards = _by_group(reward, questions, completions, columns)
    numbers = [UNSCORED_REWARD if one is None else one for one in rewards]
    return {"rewards": numbers, "scores": numbers, "unscored": sum(one is None for one in rewards)}


def _by_group(
    reward: GroupReward, questions: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[float | None]:
    """Returns the rewards of all rows, scored group by group: a label's group counts, whatever the reward's own one is."""
    groups = list(columns["group"]) if "group" in columns else [reward.only_group] * len(questions)
    rewards: list[float | None] = [None] * len(questions)
    for group in dict.fromkeys(groups):
        own = [number for number, name in enumerate(groups) if name == group]
        shown = {name: [columns[name][number] for number in own] for name in ("options", "scale")}
        asked, given = [questions[number] for number in own], [completions[number] for number in own]
        for number, scored in zip(own, reward.score(asked, given, of_group=group, **shown), strict=True):
            rewards[number] = None if scored is None else scored.reward
    return rewards


def read_token(path: Path) -> str:
    """Returns the token in a file. Raises InvalidArgument if the file cannot be read or the token is short."""
    try:
        token = read_text(path).strip()
    except Unreadable as error:
        raise InvalidArgument(field="--token-file", problem=f"{path}: {error.problem}") from error
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or len(token.split()) != 1:
        problem = f"{path} must hold one word of at least {MIN_TOKEN_CHARACTERS} ASCII characters"
        raise InvalidArgument(field="--token-file", problem=f"{problem}; for example: openssl rand -hex 32 > {path}")
    return token


def is_allowed(authorization: str, token: str | None) -> bool:
    """Returns whether the header of a call shows the token: Bearer TOKEN, or Basic with the token as its password (RFC 7617).

    OpenRLHF sends no header of its own, but sends the Basic form if its URL is http://trainer:TOKEN@host:port/get_reward.
    """
    if token is None:
        return True
    scheme, _, shown = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            _, _, shown = base64.b64decode(shown.strip(), validate=True).decode().partition(NAME_END)
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.strip().encode(), token.encode())


class _Connection(H11Protocol):
    """A connection of one request, which is closed if the request's head does not arrive in time."""

    def connection_made(self, transport: Any) -> None:
        """Accepts the connection and begins to wait for the head."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


def application(reward: GroupReward, token: str | None) -> Starlette:
    """Returns the web application. token: what every call must show; None for calls from this machine only."""

    async def get_reward(request: Request) -> JSONResponse:
        if (refused := _refused(request, token)) is not None:
            return refused
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _error(415, "UNSUPPORTED", "the content type is not application/json; OpenRLHF sends this one")
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(request)
        except TimeoutError:
            return _error(408, "TOO_SLOW", f"the body did not arrive within {BODY_S:g} s")
        if body is None:
            return _error(
                413, "OVER_LIMIT", f"the body has more than {MAX_BODY_BYTES} bytes; send fewer rows in a call"
            )
        try:
            return JSONResponse(await run_in_threadpool(lambda: rewards_of(reward, read_request(body))))
        except PluralError as error:
            return _error(422, error.reason, str(error))
        except Exception:
            incident = uuid.uuid4().hex[:12]
            log.exception("reward.broken", incident=incident)
            broken = Internal(incident=incident)
            return _error(500, broken.reason, str(broken))

    async def health(request: Request) -> JSONResponse:
        if (refused := _refused(request, token)) is not None:
            return refused
        config = reward.config
        return JSONResponse({"run": config.run, "version": config.version, "groups": list(reward.groups)})

    return Starlette(routes=[Route("/get_reward", get_reward, methods=["POST"]), Route("/health", health)])


def _refused(request: Request, token: str | None) -> JSONResponse | None:
    """Returns the answer to a call that does not show the token, or that a page of another site makes; None for others."""
    if not is_allowed(request.headers.get("authorization", ""), token):
        shown = _error(401, "UNIDENTIFIED", "the call does not show the token; send Authorization: Bearer TOKEN")
        shown.headers["WWW-Authenticate"] = "Bearer"
        return shown
    if token is None and not is_loopback(request.url.hostname or ""):
        return _error(403, "NOT_LOOPBACK", f"{request.url.hostname} is not this machine's own name; use 127.0.0.1")
    return None


async def _body(request: Request) -> bytes | None:
    """Returns the body of a request; None if it is too long."""
    parts, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > MAX_BODY_BYTES:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _error(status: int, reason: str, message: str) -> JSONResponse:
    return JSONResponse({"error": message, "reason": reason}, status)


@contextmanager
def serving_rewards(reward: GroupReward, listen: str, token: str | None) -> Iterator[str]:
    """Serves rewards at `listen` (host:port) in a thread until the block ends, and yields the actual address.

    Raises InvalidArgument if the address can be reached from other machines and there is no token, or if the port cannot be
    opened; InUse if another process has it.
    """
    host, port = split_address(checked_listen("--http", listen))
    if token is None and not is_loopback(host):
        problem = f"{listen} can be reached from other machines; give --token-file FILE, or a loopback address"
        raise InvalidArgument(field="--http", problem=problem)
    config = uvicorn.Config(
        application(reward, token),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        http=_Connection,
        headers=[("Connection", "close")],  # a second request could arrive as slowly as it likes
        limit_concurrency=MAX_VISITORS,
        timeout_graceful_shutdown=STOP_S,
    )
    socket = bound_socket(config.bind_socket, listen)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        for _ in range(int(START_S / 0.01)):
            if server.started or not thread.is_alive():
                break
            thread.join(0.01)
        if not server.started:
            raise why_not_open(listen)
        yield join_address(host, socket.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(2 * STOP_S)
        socket.close()
