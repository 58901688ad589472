"""Checks for problems that prevent the coordinator from serving, or prevent partners from reaching the coordinator.

The command `pluralllm-server doctor` prints the results.
"""

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pluralllm.common.errors.tree import NotFound, StoreFailed, Unreachable
from pluralllm.common.process.console import Check, checked
from pluralllm.common.process.files import why_not_writable
from pluralllm.common.process.proxies import DIRECT
from pluralllm.common.text.reading import read_text
from pluralllm.common.trust.certificates import fingerprint, spoken
from pluralllm.common.trust.handshake import handshake, resolve
from pluralllm.common.words.addresses import from_here, is_loopback, join_address, split_address
from pluralllm.server.members.authority import DAY_S, FOR_OTHER_MACHINES, day, load_authority
from pluralllm.server.members.record_key import RECORD_KEY, read_record_key_file
from pluralllm.server.process.config import ServerConfig
from pluralllm.server.process.open_files import COMFORTABLE, TARGET, ceilings, limit_of, reachable_limit
from pluralllm.server.storage.by_url import database_answers
from pluralllm.server.storage.object_blobs import look_into, open_bucket
from pluralllm.server.storage.state_directory import StateDirectory

MIN_FREE_BYTES = 1024**3
SOON_S = 30 * DAY_S
CONNECT_TIMEOUT_S = 2.0
SECRETS = ("root-key.pem", "issuer.pem", "record-key.pem", "server.pem")


def checks_of(settings: ServerConfig) -> list[Check]:
    """Runs all checks that apply to the configuration and returns their results. The checks change nothing."""
    probes: dict[str, Callable[[ServerConfig], Check]] = {
        "state directory": _state,
        "disk": _disk,
        "open files": _open_files,
    }
    if not settings.plain_text:
        probes |= {
            "secret files": _secrets,
            "record key": _record_key,
            "root": _root,
            "intermediate": _issuer,
            "server certificate": _server,
            "names": _names,
            "advertised": _advertised,
        }
    if settings.database_url is not None:
        probes |= {"database": _database}
    if settings.blob_url is not None:
        probes |= {"bucket": _bucket}
    probes |= {"main port": _main_port}
    if not settings.plain_text:
        probes |= {"enrolment port": _enrolment_port}
    return [checked(name, partial(probe, settings)) for name, probe in probes.items()]


def _state(config: ServerConfig) -> Check:
    path = config.state_dir.absolute()
    if not path.is_dir():
        return Check(
            "state directory", ok=False, result=f"{path} is not there", fix="pluralllm-server init --host NAME"
        )
    if problem := why_not_writable(path):
        return Check("state directory", ok=False, result=problem, fix="let the coordinator's user write there")
    open_to = path.stat().st_mode & 0o077
    fix = f"chmod 700 {path}" if open_to else ""
    return Check("state directory", not open_to, f"{path}, mode {path.stat().st_mode & 0o777:o}", fix)


def _disk(config: ServerConfig) -> Check:
    folder = config.state_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fix = "" if free >= MIN_FREE_BYTES else "free some space: models and updates are kept here"
    return Check("disk", free >= MIN_FREE_BYTES, f"{free / 1e9:.1f} GB free", fix)


def _open_files(config: ServerConfig) -> Check:
    """Checks the limit of open files of the running coordinator, or of a coordinator that this user would start here."""
    running = _running_process(config)
    limit = None if running is None else limit_of(running)
    whose = f"process {running}" if limit is not None else "a coordinator that is started here"
    limit = reachable_limit() if limit is None else limit
    room = ceilings(limit, config.max_connections)
    result = f"{limit} for {whose}: room for {room.main} connections of members and {room.enrolment} that join"
    fix = (
        "" if limit >= COMFORTABLE else f"LimitNOFILE={TARGET} in the systemd unit, or ulimits: nofile in compose.yaml"
    )
    return Check("open files", limit >= COMFORTABLE, result, fix)


def _running_process(config: ServerConfig) -> int | None:
    """Returns the process id of the running coordinator; None if no coordinator runs, or if it is on another machine."""
    with contextlib.suppress(OSError, ValueError):
        process = int(read_text(config.state_dir / "lock"))
        if b"pluralllm" in Path(f"/proc/{process}/cmdline").read_bytes():
            return process
    return None


def _database(config: ServerConfig) -> Check:
    try:
        database = asyncio.run(database_answers(config, StateDirectory(config.state_dir)))
    except StoreFailed as error:
        fix = "is it running, and are host, name, user and password in database_url right?"
        return Check("database", ok=False, result=error.problem.partition("\n")[0], fix=fix)
    return Check("database", ok=True, result=database)


def _bucket(config: ServerConfig) -> Check:
    assert config.blob_url is not None
    try:
        asyncio.run(look_into(open_bucket(config.blob_url, config.blob_endpoint)))
    except (StoreFailed, NotFound) as error:
        fix = "is the endpoint right, is the bucket there, and may these credentials (AWS_*) list, read and write it?"
        return Check("bucket", ok=False, result=f"{config.blob_url}: {error}", fix=fix)
    return Check("bucket", ok=True, result=f"{config.blob_url} answers")


def _secrets(config: ServerConfig) -> Check:
    folder = load_authority(_folder(config)).folder
    wrong = [name for name in SECRETS if (folder / name).exists() and (folder / name).stat().st_mode & 0o077]
    away = "" if (folder / "root-key.pem").exists() else "; the root's key is kept elsewhere"
    fix = f"chmod 600 {' '.join(str(folder / name) for name in wrong)}" if wrong else ""
    return Check("secret files", not wrong, (", ".join(wrong) or "only this user can read them") + away, fix)


def _record_key(config: ServerConfig) -> Check:
    """Shows the fingerprint of the key that signs version records and the audit log's head."""
    path = _folder(config) / RECORD_KEY
    if not path.exists():
        return Check("record key", ok=True, result="serve makes it; copy it to the standby's authority folder then")
    return Check(
        "record key", ok=True, result=f"fingerprint {spoken(fingerprint(read_record_key_file(path).public_key()))}"
    )


def _root(config: ServerConfig) -> Check:
    end_s = load_authority(_folder(config)).root.not_valid_after_utc.timestamp()
    return _dates("root", end_s, "begin a new federation in time: init with another --state-dir")


def _issuer(config: ServerConfig) -> Check:
    return _dates("intermediate", load_authority(_folder(config)).issuer_expires_s, "pluralllm-server renew-issuer")


def _server(config: ServerConfig) -> Check:
    authority = load_authority(_folder(config))
    end_s = authority.server_certificate().not_valid_after_utc.timestamp()
    left_s = end_s - time.time()
    fix = "" if left_s > 0 else "start the coordinator: it renews its certificate by itself"
    return Check("server certificate", left_s > 0, f"for {', '.join(authority.hosts)}, until {day(end_s)}", fix)


def _names(config: ServerConfig) -> Check:
    resolved = {host: resolve(join_address(host, 1)) for host in load_authority(_folder(config)).hosts}
    is_only_here = config.advertise is None and all(is_loopback(host) for host in resolved)
    result = "; ".join(f"{host}: {', '.join(ips)}" for host, ips in resolved.items())
    return Check("names", ok=True, result=result, fix=FOR_OTHER_MACHINES if is_only_here else "")


def _advertised(config: ServerConfig) -> Check:
    """Checks the addresses that invites contain.

    The server certificate must cover the host names, and DNS must resolve the names.
    """
    authority = load_authority(_folder(config))
    addresses = [address for address in (config.advertise, config.advertise_enrolment) if address is not None]
    if wrong := authority.uncovered(addresses):
        problem = f"the server certificate is not for {', '.join(wrong)}"
        return Check("advertised", ok=False, result=problem, fix=authority.covering(wrong))
    try:
        resolved = [f"{address}: {', '.join(resolve(address))}" for address in addresses]
    except Unreachable as error:
        fix = "enter the name in DNS, or set advertise and advertise_enrolment to another one"
        return Check("advertised", ok=False, result=f"{error.address}: {error.problem}", fix=fix)
    return Check("advertised", ok=True, result="; ".join(resolved) or f"{authority.hosts[0]}, the first of the names")


def _main_port(config: ServerConfig) -> Check:
    return _port(config, "main port", "address", config.listen)


def _enrolment_port(config: ServerConfig) -> Check:
    return _port(config, "enrolment port", "enrolment-address", config.enrolment_listen)


def _port(config: ServerConfig, name: str, file: str, configured: str) -> Check:
    """Checks that one port of the running coordinator answers. The result includes the connection's TLS version, if TLS is used.

    name: the name of the check. file: the name of the file in the state directory that holds the port's address. configured: the
    port's address if this file does not exist.
    """
    written = config.state_dir / file
    address = read_text(written) if written.is_file() else configured
    here = from_here(address)
    try:
        socket.create_connection(split_address(here), CONNECT_TIMEOUT_S).close()
    except OSError:
        return Check(name, ok=False, result=f"nothing listens on {address}", fix="pluralllm-server serve")
    if config.plain_text:
        return Check(name, ok=True, result=f"{address} answers (plain text)")
    answer = handshake(here, load_authority(_folder(config)).root_pem, DIRECT)
    return Check(name, ok=True, result=f"{address} answers, {answer.version}")


def _dates(name: str, end_s: float, fix: str) -> Check:
    left_s = end_s - time.time()
    return Check(
        name, left_s > SOON_S, f"until {day(end_s)}, {left_s / DAY_S:.0f} days left", "" if left_s > SOON_S else fix
    )


def _folder(config: ServerConfig) -> Path:
    return config.state_dir.absolute() / "authority"
