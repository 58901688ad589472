"""A support bundle leaves out secrets and private texts, and keeps all else."""

import json
import os
import secrets
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pluralllm.client.data.private_texts import PrivateTexts
from pluralllm.common.errors.tree import InvalidArgument, StoreFailed
from pluralllm.common.process.foreign_output import FOREIGN_EVENTS
from pluralllm.common.process.support_bundle import (
    LOG_TAIL_BYTES,
    REMOVED,
    about,
    metrics_of,
    without_secrets,
    write_bundle,
)
from pluralllm.common.trust.certificates import key_to_pem, new_key
from pluralllm.common.words.questions import Question

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
QUESTION = 'Do you trust\nyour neighbours, as one says "für immer", or don\'t you?'
OPTION = "Not at all trustworthy"
PRIVATE = PrivateTexts([Question(QUESTION, (OPTION, "Agree"), (0.5, 0.5))])


def test_a_private_key_is_removed_whole_or_broken_off() -> None:
    pem = key_to_pem(new_key()).decode()
    body = "".join(pem.splitlines()[1:-1])
    for text in (pem, pem[: len(pem) // 2], body, json.dumps({"key": pem})):
        cleaned = without_secrets(f"before {text} after")
        assert pem.splitlines()[1] not in cleaned
        assert cleaned.startswith("before ")


@pytest.mark.parametrize("length", [32, 48])
def test_a_token_is_removed_wherever_it_stands(length: int) -> None:
    for _ in range(500):
        token = secrets.token_urlsafe(length)
        assert token not in without_secrets(json.dumps({"event": "x", "token": token}))
        assert token not in without_secrets(f"at /var/lib/{token}/x")


def test_an_invites_line_is_removed() -> None:
    assert without_secrets("take pluralllm-invite:abc.def and") == f"take {REMOVED} and"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:s3cr3t@db.example.org/pluralllm",
        "https://s3cr3t@traces.example.org",
        "https://traces.example.org/?key=s3cr3t",
        'postgresql://u:per%2Fcent"s3cr3t@db/x',
    ],
)
def test_what_a_url_says_beside_its_address_is_removed(url: str) -> None:
    cleaned = without_secrets(f"to {url} it goes", secrets=['per/cent"s3cr3t', 'per%2Fcent"s3cr3t'])
    assert "s3cr3t" not in cleaned
    assert cleaned.startswith("to ")
    assert cleaned.endswith(" it goes")


def test_a_known_password_is_removed_as_it_is_and_as_json_writes_it_and_an_empty_one_is_none() -> None:
    text = json.dumps({"said": 'pass"wörd'}) + json.dumps({"said": 'pass"wörd'}, ensure_ascii=False) + 'pass"wörd'
    cleaned = without_secrets(text, secrets=['pass"wörd', ""])
    assert "pass" not in cleaned
    assert cleaned.count(REMOVED) == 3


@pytest.mark.parametrize(
    "text",
    [
        DIGEST,
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "spiffe://fl.example.org/client/org-a",
        "/var/lib/PluralLLM/Federation2/state/blobs/9f/86d081884c7d659a2feaa0c55ad015",
        "https://db.example.org:7443/path",
    ],
)
def test_what_helps_is_kept(text: str) -> None:
    assert without_secrets(text) == text
    assert PRIVATE.redacted(text) == text


@pytest.mark.parametrize("private_text", [QUESTION, QUESTION[:50], OPTION, f"  {OPTION}. "])
def test_a_line_of_a_log_with_a_private_text_goes_whole_however_it_is_written(private_text: str) -> None:
    lines = [
        json.dumps({"event": "e", "problem": private_text}),
        json.dumps({"event": "e", "problem": private_text}, ensure_ascii=False),
        json.dumps({"event": "e", "problem": f"wrong: {private_text!r}"}),
        json.dumps({"MESSAGE": json.dumps({"event": "e", "deep": [{"x": private_text}]})}),
    ]
    for line in lines:
        redacted = PRIVATE.redacted_log(f'{{"event": "first"}}\n{line}\n{{"event": "last"}}\n')
        assert redacted.splitlines()[0] == '{"event": "first"}'
        assert redacted.splitlines()[-1] == '{"event": "last"}'
        assert len(redacted.splitlines()) == 3
        assert "neighbours" not in redacted
        assert "trust" not in redacted


def test_what_is_no_json_line_may_quote_anything_and_is_left_out_of_a_clients_log() -> None:
    redacted = PRIVATE.redacted_log('{"event": "first"}\nTraceback\n  ValueError: some text\n{"event": "last"}\n')
    note = f"{REMOVED}: 2 lines of libraries, or that are no JSON"
    assert redacted.splitlines() == [note, '{"event": "first"}', '{"event": "last"}']


@pytest.mark.parametrize("event", sorted(FOREIGN_EVENTS))
def test_a_librarys_line_is_left_out_also_as_an_event(event: str) -> None:
    redacted = PRIVATE.redacted_log(f'{{"event": "first"}}\n{{"event": "{event}", "text": "some text"}}\n')
    assert redacted.splitlines() == [f"{REMOVED}: 1 lines of libraries, or that are no JSON", '{"event": "first"}']


def test_what_cannot_be_told_is_said_in_its_place_and_the_rest_is_there(tmp_path: Path) -> None:
    def broken() -> object:
        raise StoreFailed(problem="https://s3cr3t@db pulled the plug")

    def broken_by_a_library() -> object:
        return dict[str, object]()["nothing"]

    log = tmp_path / "server.log"
    log.write_text("x" * LOG_TAIL_BYTES + "\nthe end\n")
    path = tmp_path / "bundle.zip"
    parts = {
        "broken.json": broken,
        "more.json": broken_by_a_library,
        "facts.json": lambda: {"a": [1]},
        "metrics.txt": lambda: metrics_of(tmp_path),
    }
    write_bundle(path, parts, [log], without_secrets, without_secrets)
    with zipfile.ZipFile(path) as bundle:
        bundled_files = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert set(bundled_files) == {"README.txt", *parts, "logs/0-server.log"}
    assert "pulled the plug" in bundled_files["broken.json"]
    assert "s3cr3t" not in bundled_files["broken.json"]
    assert bundled_files["more.json"] == "could not be told: KeyError: 'nothing'\n"
    assert json.loads(bundled_files["facts.json"]) == {"a": [1]}
    assert "metrics_listen is not set" in bundled_files["metrics.txt"]
    assert bundled_files["logs/0-server.log"] == "the end\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_versions_of_packages_are_told_and_one_that_is_lacking_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pluralllm.common.process.support_bundle.PACKAGES", ("numpy", "no-such-package"))
    assert about()["packages"] == {"numpy": np.__version__, "no-such-package": None}


def test_nothing_is_written_over_and_a_log_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is no file"):
        write_bundle(tmp_path / "new.zip", {}, [tmp_path / "nowhere.log"], without_secrets, without_secrets)
    (tmp_path / "old.zip").write_text("kept")
    with pytest.raises(InvalidArgument, match="is there already"):
        write_bundle(tmp_path / "old.zip", {}, [], without_secrets, without_secrets)
    assert (tmp_path / "old.zip").read_text() == "kept"


def test_names_that_are_no_utf_8_are_in_the_bundle_as_escapes(tmp_path: Path) -> None:
    log = tmp_path / os.fsdecode(b"log-\xff")
    log.write_text("a line")
    write_bundle(tmp_path / "b.zip", {"state.json": lambda: [str(log)]}, [log], str, str)
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        assert b"\\udcff" in bundle.read("state.json")
        assert bundle.read("logs/0-log-\\udcff") == b"a line"
