"""A partner joins and trains by six documented commands; every wrong attempt gets its reason."""

import base64
import contextlib
import hashlib
import json
import math
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.commands import CLI, CLIENT, SERVER, typed
from support.documented import of_section
from support.process_harness import WIDTH, Process, free_port, tiny_embedding_model
from support.session_folder import embeddings
from support.span_collector import span_collector

from pluralllm.cli.new_spec import new_spec
from pluralllm.client.data.codebook import keep_codebook
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import read_counted, write_group
from pluralllm.client.data.sample_survey import USUAL_QUESTIONS, sample_groups
from pluralllm.common.trust.certificates import key_from_pem, spoken
from pluralllm.common.trust.identity import load_identity
from pluralllm.common.trust.invite import load_invite
from pluralllm.common.trust.record_signatures import RecordSigner
from pluralllm.common.words.questions import Question
from pluralllm.server.members.record_key import RECORD_KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.usefixtures("forked_starts")]
LIMIT_S = 60.0
PARTNERS = ("org-a", "org-b", "org-c", "org-d", "org-e")
MODULES = {"pluralllm-server": SERVER, "pluralllm-client": CLIENT, "pluralllm": CLI}
# The commands of docs/joining.md, unchanged and in their order.
SIX = [
    line
    for section in (
        "The operator, on the coordinator's machine",
        "The partner, beside its data",
        "The operator again",
    )
    for block in of_section("joining.md", section)
    for line in block.commands
]


assert len(SIX) == 6, SIX
[PEERS, PIN] = [line for block in of_section("joining.md", "The partners together, once") for line in block.commands]
DIGEST = re.compile(r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}")


def of_page(number: int, *changes: tuple[str, str]) -> tuple[str, ...]:
    """Returns the module of a command on the page, and its arguments."""
    line = SIX[number - 1]
    for usual, mine in changes:
        assert usual in line, line
        line = line.replace(usual, mine)
    command, *words = shlex.split(line)
    return MODULES[command], *words


@dataclass
class Town:
    """A coordinator's host and its partners, each in a folder of its own; the output of all commands is kept."""

    folder: Path
    outputs: list[str] = field(default_factory=list)
    address: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PLURALLLM_")}
        own = {"XDG_CONFIG_HOME": str(home / "config"), "HOME": str(home), "NO_COLOR": "1", "COLUMNS": "250"}
        return {**kept, **own, "PLURALLLM_CLIENT_CACHE_DIR": str(embeddings())}

    def types(
        self, home: str, module: str, *arguments: str, standard_input: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Runs one command in a member's folder."""
        folder = self.folder / home
        folder.mkdir(exist_ok=True)
        done = typed(
            module, *arguments, environment=self.environment(folder), folder=folder, standard_input=standard_input
        )
        self.outputs += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def does(self, home: str, module: str, *arguments: str) -> str:
        """Runs a command that must succeed, and returns its output."""
        done = self.types(home, module, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def invited(self, name: str, *more: str) -> Path:
        """Creates an invite, and returns its file in the partner's folder."""
        self.does("host", CLI, "invite", name, *(more or ("--role", "client")))
        return self.brought(name)

    def brought(self, name: str) -> Path:
        """Moves the invite from the operator's folder to the partner's."""
        (self.folder / name).mkdir(exist_ok=True)
        return (self.folder / "host" / f"{name}.invite").rename(self.folder / name / f"{name}.invite")

    def starts(self, home: str, module: str, *arguments: str) -> Process:
        place = self.folder / home
        command = [sys.executable, "-m", module, *arguments]
        log = self.folder / f"{home}.log"
        with contextlib.chdir(place):
            return Process(command, log, {**self.environment(place), "OMP_NUM_THREADS": "1"}).start()

    def audit(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.does("host", CLI, "audit", "--json"))["entries"]
        return found


def until(holds: Any, what: str, town: Town) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not holds():
        logs = "\n".join(log.read_text()[-2000:] for log in town.folder.glob("*.log"))
        assert time.monotonic() < end_s, f"not within {LIMIT_S} s: {what}\n{logs}"
        time.sleep(0.05)


def start_coordinator(town: Town, more: str = "") -> Process:
    main, gate = free_port(), free_port()
    town.address = f"127.0.0.1:{main}"
    settings = f'listen = "{town.address}"\nenrolment_listen = "127.0.0.1:{gate}"\n{more}'
    config = ("--config", write(town.folder / "server.toml", settings))
    town.does("host", *of_page(1, ("fl.example.org", "127.0.0.1")), *config)
    server = town.starts("host", *of_page(2), *config)
    until((town.folder / "host/pluralllm-state/enrolment-address").exists, "the coordinator serves", town)
    until(lambda: town.types("host", CLI, "runs").returncode == 0, "the coordinator answers", town)
    return server


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    built = Town(tmp_path_factory.mktemp("town"))
    server = start_coordinator(built)
    try:
        yield built
    finally:
        server.stop()


def test_six_commands_make_a_training_partner_and_no_secret_is_said(tmp_path: Path) -> None:
    """The commands are init, serve, invite, join, run and run create --start; four more partners repeat three of them.

    The rounds are private, so all partners pin each other's keys before the last command. Each partner keeps the policy that
    `join` wrote. The logs, traces, metrics and support bundles of this run are complete.
    The first partner knows its counts, so its answers are released with noise; the others have shares alone.
    """
    pytest.importorskip("opendp", reason="the extra `noise` is not installed")
    town = Town(tmp_path / "town")
    town.folder.mkdir()
    model = tiny_embedding_model(tmp_path / "model")
    spec = write(tmp_path / "run.toml", ordinary_spec())
    with span_collector(town.folder / "spans.log") as endpoint:
        settings = f'traces_endpoint = "{endpoint}"\nmetrics_listen = "127.0.0.1:0"\nlog_level = "DEBUG"\n'
        run_with_five_partners(town, model, spec, settings)
    assert_no_secret_anywhere(town)
    assert_no_true_number_anywhere(town)


def run_with_five_partners(town: Town, model: Path, spec: str, more: str) -> None:
    running = [start_coordinator(town, more)]
    try:
        for name, questions in zip(PARTNERS, sample_groups(5, USUAL_QUESTIONS, 0).values(), strict=True):
            town.does("host", *of_page(3, ("org-a", name), ("Northmark", f"'group of {name}'")))
            data = town.brought(name).with_name("answers.jsonl")
            counted = with_odd_counts(questions) if name == PARTNERS[0] else questions
            write_group(data, counted)
            keep_codebook(data, counted)
            output = town.does(name, *of_page(4, ("org-a", name)))
            assert ("Epsilon 0 -> 4 of 4" in output) == (name == PARTNERS[0])
            assert ("Without noise" in output) == (name != PARTNERS[0])
            assert f"{name} is client of federation 127.0.0.1, group group of {name} (trains)" in output
            (town.folder / name / "client.toml").write_text(
                f'embedding_model_path = "{model}"\nthreads = 1\ndata = "{data.name}"\n{more}'
            )
            running.append(town.starts(name, *of_page(5), "--config", "client.toml", "--exit-when-run-over"))
        pin_each_other(town)
        town.does("host", *of_page(6, ("run.toml", spec)))
        until(
            lambda: not any(process.running for process in running[1:]), "the partners hear that the run is over", town
        )
        status = json.loads(town.does("host", CLI, "status", "--json"))
        assert (status["phase"], status["outcome"], status["version"]) == ("ended", "completed", 2)
        kept = {one["client"]: one["not_reported"] for one in status["evaluations"]}
        assert kept == {name: "unspecified" if name == PARTNERS[0] else "kept_back" for name in PARTNERS}, (
            "scores of true answers stay with the partner"
        )
        make_bundles(town)
    finally:
        codes = [process.stop() for process in running]
    assert codes == [0] * (1 + len(PARTNERS))
    assert_bundles_help(town)


def pin_each_other(town: Town) -> None:
    """Types the lines of the call for one partner. The others get its pins, because each would type the same line."""
    logs = [town.folder / f"{name}.log" for name in PARTNERS]
    until(lambda: all('"client.connected"' in log.read_text() for log in logs), "all partners are connected", town)
    module, *words = shlex.split(PEERS)
    shown = town.does(PARTNERS[0], MODULES[module], *words)
    [digest] = DIGEST.findall(shown)
    module, *words = shlex.split(PIN.replace("DIGEST", f"'{digest}'"))
    assert "5 members are pinned" in town.does(PARTNERS[0], MODULES[module], *words)
    pins = town.folder / PARTNERS[0] / "pluralllm-client-state/peers.toml"
    for name in PARTNERS[1:]:
        shutil.copy(pins, town.folder / name / "pluralllm-client-state")
    keys = [re.sub(" ", "", key) for key in re.findall(r"((?:[0-9a-f]{4} ){4})\.\.\.", shown)]
    members = town.does("host", CLI, "members")
    assert [key in members for key in keys] == [True] * len(PARTNERS)


def test_partners_consent_to_a_run_that_asks_for_more_and_take_part_in_it(tmp_path: Path) -> None:
    """The log names what to type, as the page does; nothing has to be started again."""
    town, three = Town(tmp_path / "town"), PARTNERS[:3]
    town.folder.mkdir()
    model = tiny_embedding_model(tmp_path / "model")
    spec = write(tmp_path / "run.toml", ordinary_spec(clients=3) + "[training]\nlocal_steps = 7\n")
    section = of_section("joining.md", "When a run asks for more than the policy allows")
    [command] = [line for block in section for line in block.commands]
    module, *words = shlex.split(command)
    running = [start_coordinator(town)]
    logs = [town.folder / f"{name}.log" for name in three]
    try:
        for name, questions in zip(three, sample_groups(3, USUAL_QUESTIONS, 0).values(), strict=True):
            town.does(name, CLIENT, "join", town.invited(name).name)
            write_group(town.folder / name / "answers.jsonl", questions)
            write(town.folder / name / "client.toml", f'embedding_model_path = "{model}"\nthreads = 1\n')
            running.append(town.starts(name, *of_page(5), "--config", "client.toml", "--exit-when-run-over"))
        town.does("host", CLI, "run", "create", "second", spec, "--start")
        until(lambda: all('"consent.needed"' in log.read_text() for log in logs), "the logs ask for consent", town)
        for name, log in zip(three, logs, strict=True):
            assert command in log.read_text()
            asked = town.types(name, MODULES[module], *words)
            assert asked.returncode == 3, "no terminal can answer here"
            assert "training.local_steps" in asked.stdout
            assert "private_rounds is absent, allowed is private rounds" in asked.stdout, "three clients: plain rounds"
            assert '"update.committed"' not in log.read_text()
            assert "Consent stored" in town.does(name, MODULES[module], *words, "--yes")
        until(lambda: not any(process.running for process in running[1:]), "the partners take part to the end", town)
        assert all('"update.committed"' in log.read_text() for log in logs)
    finally:
        codes = [process.stop() for process in running]
    assert codes == [0, 0, 0, 0]


def ordinary_spec(clients: int = len(PARTNERS)) -> str:
    """Returns the spec that a new run has, with fewer rounds and a tiny embedding model."""
    text = new_spec("sentence-transformers/tiny", WIDTH, clients=clients)
    return text.replace("rounds = 30", "rounds = 2") + "\n"


def make_bundles(town: Town) -> None:
    """Makes support bundles while the logs contain secrets, to test how a bundle treats its logs."""
    for home in ("host", "org-a"):  # each knows the texts of its own private file
        slips = [secret for name, secret in secrets_of(town).items() if "answers" not in name or home in name]
        said = [json.dumps({"event": "slip", "said": secret.decode()}) for secret in slips]
        log = (town.folder / f"{home}.log").read_text()
        (town.folder / home / "copy.log").write_text(log + "".join(f"{line}\n" for line in said))
    server = ["--config", str(town.folder / "server.toml"), "--log", "copy.log"]
    town.does("host", SERVER, "support-bundle", "bundle.zip", *server)
    town.does("org-a", CLIENT, "support-bundle", "bundle.zip", "--config", "client.toml", "--log", "copy.log")


def assert_bundles_help(town: Town) -> None:
    of_server, of_client = (bundled(town.folder / home / "bundle.zip") for home in ("host", "org-a"))
    assert '"kind": "ModelAveraged"' in of_server["database.json"]
    assert 'pluralllm_runs{phase="ended"' in of_server["metrics.txt"]
    assert '"questions": 240' in of_client["data.json"]
    assert '"min_cohort": 3' in of_client["policy.json"]
    for bundle in (of_server, of_client):
        assert all(check["ok"] for check in json.loads(bundle["doctor.json"])), bundle["doctor.json"]
        assert '"log_level": "DEBUG"' in bundle["config.json"]
        [log] = [text for name, text in bundle.items() if name.startswith("logs/")]
        assert len(log.splitlines()) > 10


def bundled(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name).decode() for name in bundle.namelist()}


def with_odd_counts(questions: Sequence[Question]) -> list[CountedQuestion]:
    """Returns questions of 1,000 people whose counts have nine decimals, so that each is found wherever it is written."""
    chance = random.Random(20_261_129)
    odd = []
    for question in questions:
        counts = tuple(round(900 * share + chance.uniform(0.1, 0.9), 9) for share in question.shares)
        odd.append(
            CountedQuestion(
                question.text, question.options, question.shares, question.scale, counts=counts, respondents=1000
            )
        )
    return odd


def written_forms(question: CountedQuestion) -> Iterator[bytes]:
    """Yields the forms in which the counts and shares of a question would be found in a file or a message."""
    shares = [count / math.fsum(question.counts) for count in question.counts]
    for number in (*question.counts, *shares):
        decimals = 7 if number > 1 else 10
        yield f"{number:.{decimals + 1}f}"[:-1].encode()
        yield struct.pack("<d", number)
        yield struct.pack(">d", number)
    for numbers in (question.counts, shares):
        yield struct.pack("<2f", *numbers[:2])


def assert_no_true_number_anywhere(town: Town) -> None:
    """Checks that no count and no true share of the partner with noise is in any file but its private one, or in any output.

    A coordinator keeps every message that it got: updates, scores, logs, audit entries, spans and metrics.
    """
    own = town.folder / PARTNERS[0] / "answers.jsonl"
    forms = [form for question in read_counted(own)[::24] for form in written_forms(question)]
    assert any(form in own.read_bytes() for form in forms), "the forms are those of the file"
    assert len(forms) > 100
    places = {path: path.read_bytes() for path in town.folder.rglob("*") if path.is_file() and path != own}
    assert {"coordinator.sqlite3", "noised-0.jsonl", "answers.jsonl.ledger", "spans.log"} <= {
        one.name for one in places
    }
    for home in ("host", "org-a"):
        places[town.folder / home / "unpacked"] = "".join(bundled(town.folder / home / "bundle.zip").values()).encode()
    places[Path("outputs")] = "".join(town.outputs).encode()
    told = [str(path) for path, content in places.items() if any(form in content for form in forms)]
    assert told == []


def secrets_of(town: Town) -> dict[str, bytes]:
    secrets: dict[str, bytes] = {}
    for path in town.folder.rglob("*.pem"):
        for body in re.findall(rb"BEGIN PRIVATE KEY-----\n(.+?)\n-----END", path.read_bytes(), re.DOTALL):
            secrets[str(path)] = body.split(b"\n")[1]  # most of the secret number, without the fixed header
    for path in town.folder.rglob("*.invite"):
        secrets[str(path)] = load_invite(str(path)).token.encode()
    for path in town.folder.rglob("answers.jsonl"):
        for number, line in enumerate(path.read_text().splitlines()):
            row = json.loads(line)
            for place, text in enumerate([row["question"], *row["options"]]):
                if len(text) > 12:  # shorter texts are words of any log
                    secrets[f"{path}:{number}:{place}"] = text.encode()
    return secrets


def assert_no_secret_anywhere(town: Town) -> None:
    """Checks that no key, token or private answer is in a log, an output, a database or a bundle."""
    secrets = secrets_of(town)
    assert len(secrets) > 20, "root, issuer, server, administrator, two partners, two tokens, many questions"
    published = [log.read_bytes() for log in town.folder.glob("*.log")]
    assert all(len(log) > 100 for log in published)
    # The command prints an invite once, on standard output, because that is its purpose.
    published += [re.sub(r"pluralllm-invite:\S+", "", text).encode() for text in town.outputs]
    published.append((town.folder / "host/pluralllm-state/coordinator.sqlite3").read_bytes())
    published += [
        text.encode() for home in ("host", "org-a") for text in bundled(town.folder / home / "bundle.zip").values()
    ]
    spans = [json.loads(line)["service"] for line in (town.folder / "spans.log").read_text().splitlines()]
    assert set(spans) == {"pluralllm-server", "pluralllm-client"}
    for name, secret in secrets.items():
        assert not any(secret in text or base64.b64encode(secret) in text for text in published), f"{name} is told"


def test_joining_twice_changes_nothing(town: Town) -> None:
    invite = town.invited("again")
    first = town.does("again", CLIENT, "join", invite.name)
    before = (town.folder / "again/pluralllm-client-state/identity/credentials.pem").read_bytes()
    assert town.does("again", CLIENT, "join", invite.name) == first
    assert (town.folder / "again/pluralllm-client-state/identity/credentials.pem").read_bytes() == before
    assert [entry["action"] for entry in town.audit() if entry["object"] == "members/again"] == ["CreateInvite", "Join"]


def test_a_member_that_was_revoked_and_invited_again_joins_into_the_same_folder(town: Town) -> None:
    town.does("back", CLIENT, "join", town.invited("back").name)
    first = (town.folder / "back/pluralllm-client-state/identity/credentials.pem").read_bytes()
    town.does("host", CLI, "revoke", "back")
    (town.folder / "back/back.invite").unlink()
    town.does("back", CLIENT, "join", town.invited("back", "--role", "client", "--max-examples", "77").name)
    assert (town.folder / "back/pluralllm-client-state/identity/credentials.pem").read_bytes() != first
    members = json.loads(town.does("host", CLI, "members", "--json"))["members"]
    (back,) = (member for member in members if member["name"] == "members/back")
    assert (back["state"], back["max_examples"]) == ("active", 77)


def test_a_partner_knows_the_record_key_from_its_invite_and_checks_the_coordinator_with_it(town: Town) -> None:
    town.does("keyed", CLIENT, "join", town.invited("keyed").name)
    key_file = town.folder / "host/pluralllm-state/authority" / RECORD_KEY
    public_der = RecordSigner("", key_from_pem(key_file.read_bytes())).public_der
    for folder in ("keyed/pluralllm-client-state/identity", "host/config/pluralllm"):
        identity = json.loads((town.folder / folder / "identity.json").read_text())
        assert base64.b64decode(identity["record_key"]) == public_der
    shown = town.does("keyed", CLIENT, "audit")
    assert "members/keyed" in shown
    assert "MakeAdmin" not in shown, "it concerns others"
    assert "the hash chain is unbroken" in shown
    doctor = json.loads(town.types("host", SERVER, "doctor", "--json").stdout)["checks"]
    fingerprint = spoken(hashlib.sha256(public_der).hexdigest())
    assert [check["result"] for check in doctor if check["name"] == "record key"] == [f"fingerprint {fingerprint}"]


def test_an_invite_works_as_one_line_and_from_standard_input(town: Town) -> None:
    line = load_invite(str(town.invited("liner"))).to_line()
    town.does("liner", CLIENT, "join", line)
    line = load_invite(str(town.invited("piped"))).to_line()
    done = town.types("piped", CLIENT, "join", "-", standard_input=line + "\n")
    assert done.returncode == 0, done.stderr


def test_two_machines_that_join_at_once_with_one_invite_get_one_certificate(town: Town) -> None:
    invite = str(town.invited("twice"))
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda home: town.types(home, CLIENT, "join", invite), ("thief-1", "thief-2")))
    assert sorted(each.returncode for each in done) == [0, 3]
    loser = next(each for each in done if each.returncode == 3)
    assert loser.stderr.startswith("error: The invite for twice has been used with another key.")
    entries = [(entry["action"], entry["result"]) for entry in town.audit() if entry["object"] == "members/twice"]
    assert entries == [("CreateInvite", "ACCEPTED"), ("Join", "ACCEPTED"), ("Join", "INVITE_USED")]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"token": "A" * 43}, "There is no open invite for wrong with this token."),
        ({"name": "another"}, "This invite is not for another."),
        (
            {"role": "admin"},
            "This invite makes wrong admin; another command joins with it. Run: pluralllm join INVITE.",
        ),
    ],
)
def test_a_changed_invite_is_refused_with_its_reason(town: Town, changes: dict[str, Any], refusal: str) -> None:
    town.types("host", CLI, "revoke", "wrong")
    invite = town.invited("wrong")
    values = {**json.loads(invite.read_text()), **changes}
    invite.write_text(json.dumps(values))
    done = town.types("wrong", CLIENT, "join", invite.name)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {refusal}"), done.stderr
    assert values["token"] not in done.stderr


def test_a_clients_invite_given_to_the_operators_command_names_the_other_one(town: Town) -> None:
    done = town.types("mistaken", CLI, "join", str(town.invited("mistaken")))
    assert done.returncode == 3
    assert "Run: pluralllm-client join INVITE." in done.stderr


def test_an_invite_of_another_authority_is_found_out_before_the_token_leaves(town: Town, tmp_path: Path) -> None:
    invite = town.invited("careful")
    other = town.types("elsewhere", SERVER, "init", "--host", "x", "--admin-identity", str(tmp_path / "admin"))
    assert other.returncode == 0
    foreign = load_identity(tmp_path / "admin", "").authority_pem
    body = b"".join(foreign.splitlines()[1:-1]).decode()
    invite.write_text(json.dumps({**json.loads(invite.read_text()), "authority": body}))
    done = town.types("careful", CLIENT, "join", invite.name)
    assert done.returncode == 3
    assert "is not the coordinator this member was invited by" in done.stderr
    assert not [entry for entry in town.audit() if entry["object"] == "members/careful" and entry["action"] == "Join"]


def test_an_observer_joins_and_sees_no_members(town: Town) -> None:
    town.invited("eve", "--role", "observer", "--run", "first", "--run", "second")
    output = town.does("eve", CLI, "join", "eve.invite")
    assert "eve is observer of federation 127.0.0.1" in output
    assert town.does("eve", CLI, "runs")
    done = town.types("eve", CLI, "members")
    assert done.returncode == 3
    assert done.stderr.startswith("error: eve is observer; ListMembers is for admin.")


def test_approval_is_asked_for_and_given(town: Town) -> None:
    invite = town.invited("slow", "--role", "observer", "--run", "*", "--approve")
    output = town.does("slow", CLI, "join", invite.name)
    fingerprints = [line.partition(": ")[2] for line in output.splitlines() if line.startswith("fingerprint")]
    assert len(fingerprints) == 2, "the key's and the authority's"
    assert "Until the administrator runs `pluralllm approve slow`" in output
    assert "slow has joined and waits for approval" in town.types("slow", CLI, "runs").stderr
    shown = town.does("host", CLI, "members", "--keys")
    assert all(fingerprint in shown for fingerprint in fingerprints)
    town.does("host", CLI, "approve", "slow")
    town.does("slow", CLI, "runs")


def test_a_revoked_member_is_told_so(town: Town) -> None:
    town.invited("gone", "--role", "observer", "--run", "*")
    town.does("gone", CLI, "join", "gone.invite")
    town.does("host", CLI, "revoke", "gone", "--reason", "left")
    done = town.types("gone", CLI, "runs")
    assert done.returncode == 3
    assert done.stderr.startswith("error: The membership of gone was revoked on ")
    members = {
        member["name"]: member["state"] for member in json.loads(town.does("host", CLI, "members", "--json"))["members"]
    }
    assert members["members/gone"] == "revoked"


def test_the_doctors_find_nothing_wrong_where_nothing_is(town: Town) -> None:
    town.does("host", SERVER, "doctor", "--config", str(town.folder / "server.toml"))
    checks = json.loads(town.does("host", CLI, "doctor", "--json"))["checks"]
    assert [check["name"] for check in checks if check["ok"]] == [
        "certificate",
        "proxy",
        "name resolution",
        "main port, TLS",
        "enrolment port, TLS",
        "clock",
        "standing",
        "protocol",
    ]


def test_an_administrator_looks_where_init_was_told_that_serve_will_listen(tmp_path: Path) -> None:
    town = Town(tmp_path)
    main, gate = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    flags = ["--listen", main, "--enrolment-listen", gate]
    town.does("host", SERVER, "init", "--host", "127.0.0.1", *flags)
    town.does("host", SERVER, "admin", "second", "--admin-identity", "second", *flags)
    server = town.starts("host", SERVER, "serve", *flags)
    try:
        until(lambda: town.types("host", CLI, "runs").returncode == 0, "the coordinator answers", town)
        town.does("host", CLI, "--identity", "second", "runs")
        invite = load_invite(str(town.invited("org-a")))
        assert (invite.coordinator, invite.enrolment) == (main, gate)
    finally:
        server.stop()


def test_the_doctor_finds_a_key_that_others_may_read(town: Town) -> None:
    key = town.folder / "host/config/pluralllm/credentials.pem"
    key.chmod(0o640)
    try:
        done = town.types("host", CLI, "doctor", "--json")
    finally:
        key.chmod(0o600)
    assert done.returncode == 3
    [wrong] = [check for check in json.loads(done.stdout)["checks"] if not check["ok"]]
    assert (wrong["name"], wrong["fix"]) == ("certificate", f"chmod 600 {key}")


def test_joining_takes_the_folders_of_the_daemons_configuration(town: Town) -> None:
    invite = town.invited("configured")
    write(town.folder / "configured" / "client.toml", 'data = "not there yet"\nstate_dir = "daemon"\n')
    town.does("configured", CLIENT, "join", invite.name, "--config", "client.toml")
    assert (town.folder / "configured/daemon/identity/credentials.pem").exists()
    assert (town.folder / "configured/daemon/policy.toml").exists()


def test_the_clients_doctor_says_what_is_missing(town: Town) -> None:
    (town.folder / "nobody").mkdir()
    (town.folder / "nobody" / "client.toml").write_text('data = "none.jsonl"\n')
    done = town.types("nobody", CLIENT, "doctor", "--config", "client.toml")
    assert done.returncode == 3
    assert "pluralllm-client join INVITE" in done.stdout


def test_the_servers_doctor_finds_a_key_that_others_may_read(town: Town) -> None:
    key = town.folder / "host/pluralllm-state/authority/issuer.pem"
    key.chmod(0o644)
    try:
        done = town.types("host", SERVER, "doctor", "--config", str(town.folder / "server.toml"))
    finally:
        key.chmod(0o600)
    assert done.returncode == 3
    assert "chmod 600" in done.stdout


@pytest.mark.parametrize(
    ("host", "fix"),
    [
        ("other.example", "pluralllm-server renew-issuer --host 127.0.0.1 --host nobody.invalid --host other.example"),
        ("nobody.invalid", "enter the name in DNS, or set advertise and advertise_enrolment to another one"),
    ],
)
def test_the_servers_doctor_finds_an_advertised_name_that_leads_nowhere(town: Town, host: str, fix: str) -> None:
    home = f"at-{host}"
    town.does(home, SERVER, "init", "--host", "127.0.0.1", "--host", "nobody.invalid")
    config = write(town.folder / home / "server.toml", f'advertise = "{host}:7443"\n')
    done = town.types(home, SERVER, "doctor", "--config", config, "--json")
    assert done.returncode == 3
    assert [check["fix"] for check in json.loads(done.stdout)["checks"] if check["name"] == "advertised"] == [fix]


def test_a_rewritten_audit_log_is_found_out_by_whoever_has_seen_the_old_one(town: Town) -> None:
    town.audit()
    memory = town.folder / "host/config/pluralllm/audit-head.json"
    seen = json.loads(memory.read_text())
    memory.write_text(json.dumps({**seen, "sha256": "0" * 64}))
    done = town.types("host", CLI, "audit")
    memory.write_text(json.dumps(seen))
    assert done.returncode == 3
    assert f"entry {seen['sequence']} is not the one this machine saw" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["invite", "Org A", "--role", "client"], "name: is 'Org A', allowed: 1 to 40 of a-z"),
        (["invite", "x", "--role", "client", "--ttl", "48h"], "ttl: is 172800 s, must be above 0 and at most 24 h"),
        (["invite", "x", "--role", "client", "--ttl", "soon"], "--ttl: is 'soon'"),
        (["invite", "x", "--role", "observer", "--run", "*", "--group", "G"], "group: is for clients"),
        (["invite", "x", "--role", "observer"], "runs: must name the runs that the observer may read"),
        (["invite", "x", "--role", "client", "--run", "r"], "runs: are for observers"),
        (["invite", "admin", "--role", "client"], "There is a member admin already (active)."),
        (["revoke", "nobody-of-that-name"], "There is no member nobody-of-that-name."),
        (["revoke", "admin"], "admin is the last administrator."),
        (["join", "none.invite"], "The invite cannot be read: none.invite: there is no such file"),
    ],
)
def test_what_is_asked_wrongly_is_one_clear_line_and_changes_nothing(
    town: Town, arguments: list[str], refusal: str
) -> None:
    before = len(town.audit())
    done = town.types("host", CLI, *arguments)
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: {refusal}"), done.stderr
    assert [entry for entry in town.audit()[before:] if entry["result"] == "ACCEPTED"] == []
    assert not list((town.folder / "host").glob("*.invite"))


def test_an_administrators_folder_that_cannot_be_written_is_found_out_before_there_is_an_authority(town: Town) -> None:
    flags = ["--host", "x", "--state-dir", "unwritable-state", "--admin-identity"]
    done = town.types("host", SERVER, "init", *flags, "/proc/nope")
    assert done.returncode == 3
    assert done.stderr.startswith("error: The configuration /proc/nope is not valid:\n  it cannot be written"), (
        done.stderr
    )
    assert not (town.folder / "host" / "unwritable-state").exists()
    town.does("host", SERVER, "init", *flags, "unwritable-admin")


def test_a_second_init_and_a_taken_identity_are_refused(town: Town) -> None:
    done = town.types("host", SERVER, "init", "--host", "x", "--admin-identity", "elsewhere")
    assert done.returncode == 3
    assert "is in use by process" in done.stderr, "the coordinator runs"
    done = town.types("host", SERVER, "init", "--host", "x", "--state-dir", "another-state")
    assert done.returncode == 3
    assert "holds the certificate of" in done.stderr
    assert not (town.folder / "host" / "another-state").exists()
