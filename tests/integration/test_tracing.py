"""The trace of a round: the processes of a coordinator and two daemons send it to one collector."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import get_current_span
from support.process_harness import federation, free_port, process_spec, tiny_embedding_model, until
from support.span_collector import span_collector

from pluralllm.client.data.sample_survey import sample_groups
from pluralllm.common.process.tracing import context_of, round_context, span, traceparent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200), pytest.mark.usefixtures("forked_starts")]
SPEC = process_spec(rounds=2, round={"evaluate_every": 2}, predictor={"d_model": 16})
SURVEY = dict(zip(("ann", "ben"), sample_groups(2, 60, 0).values(), strict=True))


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    kept = tmp_path / "spans.jsonl"
    with span_collector(kept) as endpoint:
        yield endpoint, kept


def test_a_rounds_spans_of_coordinator_and_clients_are_one_trace_without_private_text(
    tmp_path: Path, collector: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, kept = collector
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # which nobody needs: all is on this machine
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    tiny = tiny_embedding_model(tmp_path / "tiny")
    settings = {"PLURALLLM_SERVER_TRACES_ENDPOINT": endpoint}
    with federation(tmp_path / "federation", tiny, free_port(), **settings) as running:
        remote = running.start_coordinator()
        for name, questions in SURVEY.items():
            running.start_client(name, questions, more={"traces_endpoint": endpoint})
        remote.create_run("r", SPEC.canonical_json())
        remote.start_run("r")
        until(lambda: remote.get_run("r")["phase"] == "ended", "the run ends", running, 120)
        remote.close()
        for client in running.clients.values():
            client.stop()  # a process exports its last spans when it ends
        running.coordinator.stop()
    spans: list[dict[str, Any]] = [json.loads(line) for line in kept.read_text().splitlines()]
    rounds = [span for span in spans if span["name"] == "round"]
    assert len(rounds) == 2
    for first in rounds:
        trace = [span for span in spans if span["trace"] == first["trace"]]
        names = {(span["service"].removeprefix("pluralllm-"), span["name"]) for span in trace}
        assert {("server", name) for name in ("round", "delivery", "average", "publish")} <= names
        assert {("client", name) for name in ("train", "fetch", "work", "hand in")} <= names
        assert first["parent"] == ""
        span_ids = {span["span"] for span in trace}
        assert all(span["parent"] in span_ids for span in trace if span is not first)
        trained = [span for span in trace if span["name"] == "train"]
        assert len(trained) == 2
        assert all(span["parent"] == first["span"] and 0 < span["seconds"] < 120 for span in trained)
    everything = kept.read_text()
    for questions in SURVEY.values():
        assert not [question.text for question in questions if question.text in everything]
    assert str(tmp_path) not in "".join(json.dumps(span["facts"]) for span in spans)


def test_a_rounds_context_is_the_same_wherever_it_is_made_and_rubbish_has_none() -> None:
    assert traceparent("r/1") == traceparent("r/1") != traceparent("r/2")
    carried, computed = context_of(traceparent("r/1")), round_context("r/1")
    assert get_current_span(carried).get_span_context() == get_current_span(computed).get_span_context()
    for rubbish in ("", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000):
        assert not context_of(rubbish)


def test_without_an_endpoint_a_span_is_nothing_and_errors_pass() -> None:
    with pytest.raises(ValueError, match="as it is"), span("work", round_context("r/1"), number=1):
        raise ValueError("as it is")
