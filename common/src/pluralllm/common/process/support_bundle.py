"""Writes a support bundle: a zip file with facts about a process, for people who help to find a problem.

A bundle contains no keys, tokens or passwords. The program makes the parts of a bundle itself and copies no file of the state
directory. Only the ends of log files that the user names are copied. Every part goes through a `Redaction`, a function that
removes secrets. A client's redaction also removes the texts of its private file (client/data/private_texts.py).
"""

import datetime
import http.client
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
from pluralllm.common.process.plugins import installed_version
from pluralllm.common.text.printable import printable
from pluralllm.common.text.reading import read_text

REMOVED = "[removed]"
LOG_TAIL_BYTES = 5_000_000  # copied from the end of each log
SCRAPE_LIMIT_S = 5.0
MODE = 0o600
PACKAGES = (
    "pluralllm-common", "pluralllm-server", "pluralllm-client", "pluralllm-research", "grpcio", "protobuf", "pydantic",
    "cryptography", "numpy", "sqlalchemy", "torch", "transformers",
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
MOST_OF_A_NAME = 16  # characters; a longer name of a file or folder may be a token if it has letters of both cases

Part = Callable[[], object]  # JSON-ready facts, or a text
Redaction = Callable[[str], str]


def without_secrets(text: str, secrets: Collection[str] = ()) -> str:
    """Returns a copy of the text in which a mark replaces everything that is a secret or looks like a secret.

    secrets: texts to remove, both in plain form and with JSON's escapes. The function also removes private keys, invites,
    long base64 texts, and the user names, passwords and query strings in URLs.
    """
    for secret in secrets:
        for form in {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]} - {""}:
            text = text.replace(form, REMOVED)
    text = INVITE.sub(REMOVED, PEM.sub(REMOVED, text))
    text = QUERY_OF_URL.sub(rf"\1?{REMOVED}", USER_OF_URL.sub(f"{REMOVED}@", text))
    return BASE64.sub(_unless_harmless, text)


def _unless_harmless(match: re.Match[str]) -> str:
    """Returns the matched base64 text if it cannot be a token, otherwise the mark REMOVED.

    Text with letters of one case only is harmless, for example digests and names. A token of 43 characters has letters of
    both cases. A path is split, and each name in the path is checked separately.
    """
    if not match[0].startswith("/"):
        return REMOVED if _has_both(match[0]) else match[0]
    return "/".join(
        REMOVED if len(name) >= MOST_OF_A_NAME and _has_both(name) else name for name in match[0].split("/")
    )


def _has_both(text: str) -> bool:
    """Returns whether the text has both upper-case and lower-case letters."""
    return any(c.isupper() for c in text) and any(c.islower() for c in text)


def bundle_name(command: str) -> str:
    """Returns the default file name of a bundle: the command's name and the time in UTC."""
    return f"{command}-support-{datetime.datetime.now(tz=datetime.UTC):%Y%m%d-%H%M%S}.zip"


def parts_of(
    config: ProcessConfig, file: Path | None, state_dir: Path, checks: Callable[[], list[Check]]
) -> dict[str, Part]:
    """Returns the parts that every process's bundle has: for each file name, a function that makes the content.

    file: the file that the configuration was read from, or None. checks: a function that runs the checks of the `doctor` command.
    """
    return {
        "about.json": about,
        "config.json": lambda: {"values": config.model_dump(mode="json"), "origins": origins_of(type(config), file)},
        "doctor.json": lambda: [asdict(check) for check in checks()],
        "metrics.txt": lambda: metrics_of(state_dir),
    }


def write_bundle(
    path: Path, parts: Mapping[str, Part], logs: Sequence[Path], redacted: Redaction, redacted_log: Redaction
) -> None:
    """Writes a bundle as a new zip file that only its owner can read.

    parts: for each file name in the bundle, a function that makes the content; if the function fails, the content is the error.
    logs: log files whose ends are copied. redacted, redacted_log: functions that remove secrets from a part, and from a log.
    Raises InvalidArgument if `path` exists or a log file does not exist; StorageFull if the disk is full.
    """
    if path.exists():
        raise InvalidArgument(field="FILE", problem=f"{path} is there already")
    if missing := [log for log in logs if not log.is_file()]:
        raise InvalidArgument(field="--log", problem=f"{missing[0]} is no file")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("README.txt", README)
        for name, part in parts.items():
            bundle.writestr(name, _encoded(redacted(_text_of(part))))
        for number, log in enumerate(logs):
            bundle.writestr(f"logs/{number}-{printable(log.name)}", _encoded(redacted_log(_tail(log))))
    write_durably(path, archive.getvalue(), MODE)


def _encoded(text: str) -> bytes:
    """Returns the bytes of a text. The name of a file may have bytes that are no UTF-8; they are written as escapes."""
    return text.encode("utf-8", "backslashreplace")


def _text_of(make_part: Part) -> str:
    """Makes the content of a part and returns the content as text.

    Content that is not a text becomes JSON. If `make_part` raises an error, the text names the error.
    """
    try:
        content = make_part()
    except Exception as error:  # noqa: BLE001 - the other parts are needed even if this one fails for any reason
        return f"could not be told: {type(error).__name__}: {error}\n"
    return (
        content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    )


def _tail(log: Path) -> str:
    """Returns the last bytes of a log file, at most LOG_TAIL_BYTES.

    If the file is longer, the incomplete first line is left out.
    """
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return text if size <= LOG_TAIL_BYTES else text.partition("\n")[2]


def about() -> dict[str, object]:
    """Returns the present time, the machine's platform and number of cores, and the versions of Python and of packages."""
    return {
        "made": datetime.datetime.now(tz=datetime.UTC).isoformat(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: installed_version(name) for name in PACKAGES},
    }


def metrics_of(state_dir: Path) -> str:
    """Returns the metrics of the process that uses a state directory, in Prometheus's text format.

    The text is read from the running process. If the process has no port for metrics, the result is a sentence that says so.
    """
    address_file = state_dir / "metrics-address"
    if not address_file.is_file():
        return "metrics_listen is not set, or the process has not run yet\n"
    connection = http.client.HTTPConnection(read_text(address_file).strip(), timeout=SCRAPE_LIMIT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
