"""Rewards by HTTP, as OpenRLHF asks its remote reward model for them (openrlhf/utils/remote_rm_utils.py: keys and answer)."""

import base64
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pluralllm.align import GroupReward, http_service
from pluralllm.align.http_service import (
    MAX_ROWS,
    completion_of,
    is_allowed,
    label_of,
    read_request,
    read_token,
    serving_rewards,
)
from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.errors.tree import InUse, InvalidArgument
from pluralllm.common.words.questions import Question

SURVEY: dict[str, tuple[Question, ...]] = {str(name): found for name, found in sample_groups(3, 40, 0).items()}
GROUP, OTHER, _ = SURVEY
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def reward(place: Path) -> GroupReward:
    contexts = {name: SURVEY[name][:20] for name in (GROUP, OTHER)}
    settings: dict[str, Any] = {"embedding_model_path": place / "tiny", "cache": place / "cache", "device": "cpu"}
    return GroupReward(place / "model", contexts, group=GROUP, accept_no_context_gain=True, **settings)


@pytest.fixture(scope="module")
def address(reward: GroupReward) -> Iterator[str]:
    with serving_rewards(reward, "127.0.0.1:0", TOKEN) as found:
        yield found


def answered(address: str, body: Any = None, path: str = "/get_reward", **headers: str) -> tuple[int, dict[str, Any]]:
    """Returns status and answer of a call; a call without a body is a GET."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    usual = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}{path}", data, usual | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rewards_by_http_are_those_of_the_reward(address: str, reward: GroupReward) -> None:
    asked = SURVEY[GROUP][20:22]
    labels = [json.dumps({"question": one.text, "options": list(one.options), "group": OTHER}) for one in asked]
    prompts = [f"<|im_start|>user\n{one.text}<|im_end|>\n<|im_start|>assistant\n" for one in asked]
    query = [f"{prompt}{one.options[0]}<|im_end|>\n</s>" for prompt, one in zip(prompts, asked, strict=True)]
    status, answer = answered(address, {"query": query, "prompts": prompts, "labels": labels})
    assert status == 200
    given = [one.options[0] for one in asked]
    columns = {"options": [list(one.options) for one in asked], "scale": [None, None]}
    alone = reward.score([one.text for one in asked], given, of_group=OTHER, **columns)
    assert answer["rewards"] == [one.reward for one in alone if one is not None]
    assert answer["scores"] == answer["rewards"]
    assert answer["unscored"] == 0


def test_completions_of_one_prompt_are_its_candidates_where_no_label_says_more(address: str) -> None:
    status, answer = answered(address, {"query": ["P? Tea", "P? Bus"], "prompts": ["P? ", "P? "], "labels": ["", None]})
    assert status == 200
    assert sum(answer["rewards"]) == pytest.approx(1)


def test_a_completion_that_names_no_option_gets_0_and_is_counted(address: str) -> None:
    label = json.dumps({"options": ["Yes", "No"]})
    body = {"query": ["P?Yes", "P?maybe so"], "prompts": ["P?", "P?"], "labels": [label, label]}
    answer = answered(address, body)[1]
    assert answer["rewards"][1] == 0
    assert answer["rewards"][0] > 0
    assert answer["unscored"] == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"query": ["ab"], "prompts": ["x"]}, "query[0] .* does not begin with its prompt"),
        ({"query": ["ab"], "prompts": []}, "one entry for each row"),
        ({"query": "ab", "prompts": ["a"]}, "query .* valid array"),
        ({"query": ["ab"], "prompts": ["a"], "labels": ["42"]}, "labels[0] .* no JSON object"),
        ({"query": ["ab"], "prompts": ["a"], "labels": ['{"group": "nobody"}']}, "'nobody' has no context"),
        (b"{", "the body .* JSON"),
    ],
)
def test_a_call_that_cannot_be_answered_says_why(address: str, body: Any, problem: str) -> None:
    status, answer = answered(address, body)
    assert status == 422
    assert all(part in answer["error"] for part in problem.split(" .* ")), answer
    assert answer["reason"] == "INVALID_ARGUMENT"


def test_calls_need_the_token_and_say_what_they_send(address: str) -> None:
    body = {"query": ["ab"], "prompts": ["a"]}
    assert answered(address, body, Authorization="Bearer wrong")[0] == 401
    assert answered(address, path="/health", Authorization="")[0] == 401
    assert answered(address, body, **{"Content-Type": "text/plain"})[0] == 415
    status, facts = answered(address, path="/health")
    assert (status, facts["groups"]) == (200, [GROUP, OTHER])


def test_without_a_token_only_this_machines_own_names_are_answered(reward: GroupReward) -> None:
    with serving_rewards(reward, "127.0.0.1:0", None) as address:
        assert answered(address, path="/health", Authorization="")[0] == 200
        assert answered(address, path="/health", Host="rebound.example")[0] == 403
        with pytest.raises(InUse), serving_rewards(reward, address, None):
            pass
    with pytest.raises(InvalidArgument, match="--token-file"), serving_rewards(reward, "0.0.0.0:0", None):
        pass


def test_the_token_is_shown_as_bearer_or_as_the_password_of_a_url() -> None:
    basic = base64.b64encode(f"trainer:{TOKEN}".encode()).decode()
    assert is_allowed(f"Bearer {TOKEN}", TOKEN)
    assert is_allowed(f"Basic {basic}", TOKEN)
    assert is_allowed("", None)
    for shown in ("", TOKEN, "Bearer ", f"Bearer {TOKEN}x", f"Digest {TOKEN}", "Basic !", f"Basic {basic[:-8]}"):
        assert not is_allowed(shown, TOKEN), shown


def test_a_token_is_one_long_word(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    for bad in ("a" * 15, "", "two words that are long", "\u00e9" * 20):
        file.write_text(bad)
        with pytest.raises(InvalidArgument, match="openssl rand"):
            read_token(file)
    file.write_text("a" * 16)
    assert read_token(file) == "a" * 16
    with pytest.raises(InvalidArgument, match="--token-file"):
        read_token(tmp_path / "none")


def test_a_completion_loses_the_marks_of_a_template_and_nothing_else() -> None:
    assert completion_of(0, "P <|assistant|> B < C <|im_end|></s>", "P") == "B < C"
    assert completion_of(0, "P <b> |x| </b>", "P") == "<b> |x| </b>"


def test_a_call_has_at_most_so_many_rows() -> None:
    rows = ["a"] * MAX_ROWS
    assert len(read_request(json.dumps({"query": rows, "prompts": rows}).encode()).query) == MAX_ROWS
    with pytest.raises(InvalidArgument, match="query"):
        read_request(json.dumps({"query": [*rows, "a"], "prompts": rows}).encode())


def test_a_label_has_known_keys_only() -> None:
    assert label_of(0, '{"scale": [1, null]}').scale == [1, None]
    assert label_of(0, " ").question is None
    with pytest.raises(InvalidArgument, match=r"labels\[3\]"):
        label_of(3, '{"choices": []}')


def test_a_connection_that_sends_no_whole_head_is_closed(reward: GroupReward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "HEAD_S", 0.3)
    with serving_rewards(reward, "127.0.0.1:0", None) as address:
        host, port = address.split(":")
        begin_s = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=10) as silent:
            silent.sendall(b"POST /get_reward HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
            assert silent.recv(1) == b""
        assert 0.2 < time.monotonic() - begin_s < 8
        with socket.create_connection((host, int(port)), timeout=10) as kept:
            kept.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b"".join(iter(lambda: kept.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()


def test_an_address_that_is_none_is_named_with_its_option(reward: GroupReward) -> None:
    with pytest.raises(InvalidArgument, match="--http"), serving_rewards(reward, "here", TOKEN):
        pass
