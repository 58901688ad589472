"""What somebody who helps needs to see of a process, in one archive, without keys, tokens and passwords.

A part is made of facts, never copied from a file of the state directory; the ends of logs that are given are the exception.
Everything goes through a `Redaction`; a partner's has the texts of its private file too (client/data/private_texts.py).
"""

import datetime
import http.client
import importlib.metadata
import io
import json
import os
import platform
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.configuration import ProcessConfig, origins_of
from pluralllm.common.process.console import Check
from pluralllm.common.process.files import write_durably

REMOVED = "[removed]"
LOG_TAIL_BYTES = 5_000_000  # of each file
SCRAPE_LIMIT_S = 5.0
MODE = 0o600
PACKAGES = (
    "pluralllm-common", "pluralllm-server", "pluralllm-client", "grpcio", "protobuf", "pydantic", "cryptography", "numpy",
    "sqlalchemy", "torch", "transformers",
)  # fmt: skip
README = """What this is: facts about one process of a PluralLLM federation, for whoever helps. Look through it before you
send it.

What is in it: versions, the configuration, the doctor's checks, metrics, and the ends of the logs that were given; of a
coordinator also runs, their newest rounds and events, and members with their standing; of a client its policy, the number
of its questions and the names and sizes of the files of its state. Names of members, groups, hosts and folders stay.

What is not: keys, tokens, passwords, weights. Whatever looked like one is "[removed]". A client's logs are here as far as
they are JSON lines, without those that hold a question or an answer of its private file; answers of less than ten letters
cannot be told from other words, and are not looked for.
"""
PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
INVITE = re.compile(r"pluralllm-invite:\S+")
USER_OF_URL = re.compile(r"(?<=://)[^\s/@\"]+@")  # with or without a password
QUERY_OF_URL = re.compile(r"(://[^\s?\"]+)\?[^\s\"]+")
BASE64 = re.compile(r"[A-Za-z0-9+/_=-]{40,}")  # tokens have 43 characters, keys more
MOST_OF_A_NAME = 16  # characters of a folder's or file's name that has everything a token has

Part = Callable[[], object]  # JSON-ready facts, or a text
Redaction = Callable[[str], str]


def without_secrets(text: str, known: Collection[str] = ()) -> str:
    """`known`: what must not stand anywhere, as it is or as JSON writes it."""
    for secret in known:
        for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]} - {""}:
            text = text.replace(form, REMOVED)
    text = INVITE.sub(REMOVED, PEM.sub(REMOVED, text))
    text = QUERY_OF_URL.sub(rf"\1?{REMOVED}", USER_OF_URL.sub(f"{REMOVED}@", text))
    return BASE64.sub(_unless_harmless, text)


def _unless_harmless(match: re.Match[str]) -> str:
    """Digests have small letters only, and so have names of things; a token of 43 characters has both kinds."""
    if not match[0].startswith("/"):
        return REMOVED if _has_both(match[0]) else match[0]
    return "/".join(
        REMOVED if len(name) >= MOST_OF_A_NAME and _has_both(name) else name for name in match[0].split("/")
    )


def _has_both(text: str) -> bool:
    return any(c.isupper() for c in text) and any(c.islower() for c in text)


def bundle_name(command: str) -> str:
    return f"{command}-support-{datetime.datetime.now(tz=datetime.UTC):%Y%m%d-%H%M%S}.zip"


def parts_of(
    config: ProcessConfig, file: Path | None, state_dir: Path, checks: Callable[[], list[Check]]
) -> dict[str, Part]:
    """What is told of any process; `file` is what its configuration was read from."""
    return {
        "about.json": about,
        "config.json": lambda: {"values": config.model_dump(mode="json"), "origins": origins_of(type(config), file)},
        "doctor.json": lambda: [asdict(check) for check in checks()],
        "metrics.txt": lambda: metrics_of(state_dir),
    }


def write_bundle(
    path: Path, parts: Mapping[str, Part], logs: Sequence[Path], redacted: Redaction, redacted_log: Redaction
) -> None:
    """A new zip file, for its owner only. What cannot be told is said in its place. Raises InvalidArgument, StorageFull."""
    if path.exists():
        raise InvalidArgument(field="FILE", problem=f"{path} is there already")
    if missing := [log for log in logs if not log.is_file()]:
        raise InvalidArgument(field="--log", problem=f"{missing[0]} is no file")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("README.txt", README)
        for name, part in parts.items():
            bundle.writestr(name, redacted(_told(part)))
        for number, log in enumerate(logs):
            bundle.writestr(f"logs/{number}-{log.name}", redacted_log(_tail(log)))
    write_durably(path, archive.getvalue(), MODE)


def _told(part: Part) -> str:
    try:
        found = part()
    except Exception as error:  # noqa: BLE001 - whatever keeps one part from being told, the others are needed
        return f"could not be told: {type(error).__name__}: {error}\n"
    return found if isinstance(found, str) else json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n"


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return text if size <= LOG_TAIL_BYTES else text.partition("\n")[2]  # the first line is cut


def about() -> dict[str, object]:
    """Versions and machine."""
    return {
        "made": datetime.datetime.now(tz=datetime.UTC).isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def metrics_of(state_dir: Path) -> str:
    """What Prometheus would read of the running process."""
    written = state_dir / "metrics-address"
    if not written.is_file():
        return "metrics_listen is not set, or the process has not run yet\n"
    connection = http.client.HTTPConnection(written.read_text().strip(), timeout=SCRAPE_LIMIT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
