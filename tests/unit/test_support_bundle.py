"""What a support bundle leaves out, and what it keeps."""

import json
import secrets
import stat
import zipfile
from pathlib import Path

import pytest

from pluralllm.common.certificates import key_to_pem, new_key
from pluralllm.common.errors import InvalidArgument, StoreFailed
from pluralllm.common.support_bundle import (
    LOG_TAIL_BYTES,
    REMOVED,
    Redaction,
    metrics_of,
    write_bundle,
)

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
QUESTION = "Do you trust your neighbours?"


def test_a_private_key_is_removed_whole_or_broken_off() -> None:
    pem = key_to_pem(new_key()).decode()
    body = "".join(pem.splitlines()[1:-1])
    for text in (pem, pem[: len(pem) // 2], body, json.dumps({"key": pem})):
        told = Redaction()(f"before {text} after")
        assert pem.splitlines()[1] not in told
        assert told.startswith("before ")


@pytest.mark.parametrize("length", [32, 48])
def test_a_token_is_removed_wherever_it_stands(length: int) -> None:
    for _ in range(200):
        token = secrets.token_urlsafe(length)
        if any(c.isdigit() for c in token) and any(c.isupper() for c in token):
            assert token not in Redaction()(json.dumps({"event": "x", "token": token}))


def test_an_invites_line_and_a_password_in_a_url_are_removed() -> None:
    assert Redaction()("take pluralllm-invite:abc.def and") == f"take {REMOVED} and"
    url = "postgresql://someone:s3cr3t@db.example.org/pluralllm"
    assert Redaction()(url) == f"postgresql://someone:{REMOVED}@db.example.org/pluralllm"


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
    assert Redaction()(text) == text


def test_a_line_with_a_private_text_goes_whole_also_as_json_writes_it() -> None:
    redacted = Redaction(private=[QUESTION, 'She said "no" to it'])
    log = "\n".join(["first", f"error: {QUESTION} is odd", json.dumps({"e": 'She said "no" to it'}), "last"])
    told = redacted(log)
    assert told.splitlines()[0] == "first"
    assert told.splitlines()[-1] == "last"
    assert "neighbours" not in told
    assert "She said" not in told


def test_what_cannot_be_told_is_said_in_its_place_and_the_rest_is_there(tmp_path: Path) -> None:
    def broken() -> object:
        raise StoreFailed(problem="somebody:s3cr3t pulled the plug")

    log = tmp_path / "server.log"
    log.write_text("x" * LOG_TAIL_BYTES + "\nthe end\n")
    path = tmp_path / "bundle.zip"
    parts = {"broken.json": broken, "facts.json": lambda: {"a": [1]}, "metrics.txt": lambda: metrics_of(tmp_path)}
    write_bundle(path, parts, [log], Redaction(secrets=["s3cr3t"]))
    with zipfile.ZipFile(path) as bundle:
        told = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert set(told) == {"README.txt", "broken.json", "facts.json", "metrics.txt", "logs/0-server.log"}
    assert "pulled the plug" in told["broken.json"]
    assert "s3cr3t" not in told["broken.json"]
    assert json.loads(told["facts.json"]) == {"a": [1]}
    assert "metrics_listen is not set" in told["metrics.txt"]
    assert told["logs/0-server.log"] == "the end\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_written_over_and_a_log_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="is no file"):
        write_bundle(tmp_path / "new.zip", {}, [tmp_path / "nowhere.log"], Redaction())
    (tmp_path / "old.zip").write_text("kept")
    with pytest.raises(InvalidArgument, match="is there already"):
        write_bundle(tmp_path / "old.zip", {}, [], Redaction())
    assert (tmp_path / "old.zip").read_text() == "kept"
