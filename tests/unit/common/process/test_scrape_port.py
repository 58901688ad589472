"""The port of metrics outlives a failure of its thread."""

import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from pluralllm.common.process import scrape_port as module
from pluralllm.common.process.scrape_port import scrape_port


def test_a_port_whose_thread_has_failed_serves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    failures: list[int] = []
    Counter("lines", "Lines of a file.", registry=registry).inc()

    def fail_once(_: object) -> None:
        if not failures:
            failures.append(1)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    monkeypatch.setattr(module._Server, "service_actions", fail_once)
    with scrape_port("127.0.0.1:0", registry) as address:
        for _ in range(2):  # the thread fails after the first answer
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                assert b"lines_total 1.0" in answer.read()
    assert failures
