"""Texts that members wrote, on their way to a browser."""

import json

from pluralllm.server.observe.page import event_of, json_answer

FACTS = {"next": "waits for \x1b[2J", "groups": [{"name": "gnp.\u202eexe"}], "round": 3, "version": None}
SHOWN = {"next": "waits for \\x1b[2J", "groups": [{"name": "gnp.\\u202eexe"}], "round": 3, "version": None}


def test_texts_in_an_answer_of_the_page_are_printable() -> None:
    answer = json_answer(FACTS, 404)
    assert (json.loads(bytes(answer.body)), answer.status_code) == (SHOWN, 404)
    assert answer.headers["content-security-policy"]


def test_texts_in_an_event_of_the_page_are_printable() -> None:
    assert json.loads(event_of(FACTS).removeprefix("data: ")) == SHOWN
    assert event_of(FACTS).endswith("\n\n")
