"""The notebook of a private round: a step that is done is never done otherwise, whatever kills the client in between."""

import hashlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kill_points import stopping_at

from pluralllm.client.keeping.history import History
from pluralllm.client.private_rounds.lines import (
    BoxesLine,
    ComplaintLine,
    ConfirmLine,
    KeysLine,
    Line,
    RevealLine,
    SharesLine,
    UpdateLine,
    parsed,
    why_not,
)
from pluralllm.client.private_rounds.notebook import LaterLine, Notebook
from pluralllm.client.private_rounds.notebooks import NO_BACKUP_FILE, Notebooks
from pluralllm.common.errors.private_rounds import RoundSecretsLost, WrongStep
from pluralllm.common.errors.tree import InvalidConfig, RoundClosed, StorageFull
from pluralllm.common.private_rounds.messages import Confirmation
from pluralllm.common.words.ids import RoundNumber, RunId

RUN, ROUND = RunId("r"), RoundNumber(3)
TERMS, SECRET = b"t" * 32, b"s" * 32


def sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def message_of(line: Line) -> bytes:
    return f"a message of {line.step}".encode()


SHARES = SharesLine(members=sha(b"R1"), own_self="01" * 33, own_mask="02" * 33, message=sha(b"a message of shares"))
BOXES = BoxesLine(dealers=sha(b"R2"), message=sha(b"a message of boxes"))
COMPLAINT = ComplaintLine(dealers=sha(b"R2"), message=sha(b"a message of complaint"))
UPDATE = UpdateLine(dealers=sha(b"R2"), digest=sha(b"masked"), statement="30" * 70)
CONFIRM = ConfirmLine(sum=sha(b"R3"), message=sha(b"a message of confirm"))
REVEAL = RevealLine(sum=sha(b"R3"), message=sha(b"a message of reveal"))
WHOLE: tuple[LaterLine, ...] = (SHARES, BOXES, UPDATE, CONFIRM, REVEAL)


def at(folder: Path) -> Notebook:
    return Notebook(folder, RUN, ROUND)


def filled(folder: Path, *lines: LaterLine) -> Notebook:
    notebook = at(folder)
    notebook.write_keys(TERMS, SECRET, b"keys")
    for line in lines:
        notebook.write(line, None if isinstance(line, UpdateLine) else message_of(line))
    return notebook


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "private" / "r.3"


def test_a_notebook_gives_back_what_was_written_and_only_its_owner_reads_it(folder: Path) -> None:
    filled(folder, *WHOLE)
    read = at(folder)
    assert read.steps == ("keys", "shares", "boxes", "update", "confirm", "reveal")
    assert [read.needed(type(line)) for line in WHOLE] == list(WHOLE)
    assert read.begin(TERMS) == SECRET
    assert read.message(SHARES) == b"a message of shares"
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("notebook", "keys", "shares", "boxes", "confirm", "reveal"), 0o600
    )


def test_a_round_draws_one_secret_and_keeps_it_for_its_own_terms(folder: Path) -> None:
    assert len({at(folder).begin(TERMS) for _ in range(9)}) == 9, "nothing is written, so nothing is fixed"
    assert not folder.exists()
    filled(folder)
    with pytest.raises(WrongStep, match="other terms"):
        at(folder).begin(b"u" * 32)
    with pytest.raises(WrongStep, match="other content"):
        at(folder).write_keys(TERMS, b"x" * 32, b"keys")
    at(folder).write_keys(TERMS, SECRET, b"keys")
    assert at(folder).begin(TERMS) == SECRET


@pytest.mark.parametrize(
    ("before", "new"),
    [
        ((), BOXES),
        ((SHARES,), UPDATE),
        ((SHARES,), CONFIRM),
        ((SHARES,), COMPLAINT),
        ((SHARES, BOXES), REVEAL),
        ((SHARES, BOXES, COMPLAINT), UPDATE),
        ((SHARES, BOXES, UPDATE), COMPLAINT),
        ((SHARES, BOXES, CONFIRM), UPDATE),
        ((SHARES, BOXES, CONFIRM), COMPLAINT),
        ((SHARES, BOXES), UPDATE.model_copy(update={"dealers": sha(b"other R2")})),
        ((SHARES, BOXES), COMPLAINT.model_copy(update={"dealers": sha(b"other R2")})),
        ((SHARES, BOXES, CONFIRM), REVEAL.model_copy(update={"sum": sha(b"other R3")})),
        ((SHARES,), SHARES.model_copy(update={"members": sha(b"other R1")})),
        ((SHARES, BOXES), BOXES.model_copy(update={"dealers": sha(b"other R2")})),
        ((SHARES, BOXES, UPDATE), UPDATE.model_copy(update={"digest": sha(b"other mask")})),
        ((SHARES, BOXES, CONFIRM), CONFIRM.model_copy(update={"sum": sha(b"other R3")})),
    ],
)
def test_a_line_out_of_order_or_with_other_content_is_refused_and_nothing_is_written(
    folder: Path, before: tuple[LaterLine, ...], new: LaterLine
) -> None:
    notebook = filled(folder, *before)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(WrongStep):
        notebook.write(new, message_of(new))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert notebook.steps == at(folder).steps


def test_the_same_line_again_writes_nothing(folder: Path) -> None:
    notebook = filled(folder, *WHOLE)
    content = (folder / "notebook").read_bytes()
    for line in WHOLE:
        notebook.write(line, message_of(line))
    assert (folder / "notebook").read_bytes() == content


LINES = st.sampled_from(
    [line.model_copy(update={key: sha(value)}) for line in (UPDATE, CONFIRM, BOXES, COMPLAINT) for value in (b"1", b"2")
     for key in ({"dealers", "sum", "digest"} & set(type(line).model_fields))]
)  # fmt: skip


@given(st.lists(LINES, max_size=12))
def test_no_sequence_of_attempts_gives_two_updates_or_two_sums(attempts: list[Line]) -> None:
    lines: dict[str, Line] = {
        "keys": KeysLine(terms=sha(b""), secret=sha(b""), file="", message=sha(b"")),
        "shares": SHARES,
    }
    accepted = []
    for line in attempts:
        if not why_not(lines, line):
            lines[line.step] = line
            accepted.append(line)
    assert len({line for line in accepted if isinstance(line, UpdateLine)}) <= 1
    assert len({line for line in accepted if isinstance(line, ConfirmLine)}) <= 1
    steps = [line.step for line in accepted]
    if "confirm" in steps and "update" in steps:
        assert steps.index("update") < steps.index("confirm")
    assert not {"update", "complaint"} <= set(steps)


class Killed(BaseException):
    """The error by which a test ends the client at a point: no code of the client catches it."""


def test_a_client_killed_anywhere_while_it_writes_a_line_has_the_line_or_has_it_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill() -> None:
        raise Killed

    outcomes = set()
    for number in range(1, 60):
        folder, passed = tmp_path / str(number) / "r.3", list[str]()
        notebook = filled(folder, SHARES)
        with monkeypatch.context() as patched:
            for owner, name, replacement in stopping_at(number, kill, passed):
                patched.setattr(owner, name, replacement)
            try:
                notebook.write(BOXES, message_of(BOXES))
            except Killed:
                ended = False
            else:
                ended = True
        if ended:
            break
        after = at(folder)
        outcomes.add(after.steps)
        if after.line(BoxesLine):
            assert after.message(BOXES) == message_of(BOXES)
        after.write(BOXES, message_of(BOXES))
        assert at(folder).steps == ("keys", "shares", "boxes")
    assert number > 8, "points of one line"
    assert outcomes == {("keys", "shares"), ("keys", "shares", "boxes")}


def test_half_a_line_counts_as_none_and_is_cut_off_by_the_next_one(folder: Path) -> None:
    filled(folder, SHARES)
    with (folder / "notebook").open("ab") as file:
        file.write(b'{"step":"boxes","dealers":"')
    assert at(folder).steps == ("keys", "shares")
    at(folder).write(BOXES, message_of(BOXES))
    assert at(folder).steps == ("keys", "shares", "boxes")


@pytest.mark.parametrize("damage", [b"{}\n", b'{"step":"update"}\n', b"\xff\n"])
def test_a_damaged_notebook_ends_the_round_for_this_client_and_quotes_no_secret(folder: Path, damage: bytes) -> None:
    filled(folder, SHARES)
    content = (folder / "notebook").read_bytes()
    for text in (damage + content, content + damage, content.replace(SECRET.hex().encode(), b"0"), content * 2):
        (folder / "notebook").write_bytes(text)
        with pytest.raises(RoundSecretsLost) as refusal:
            at(folder)
        assert SECRET.hex() not in repr(refusal.value.__context__)


def test_a_message_that_is_lost_or_changed_ends_the_round_for_this_client(folder: Path) -> None:
    notebook = filled(folder, SHARES)
    (folder / "shares").write_bytes(b"other")
    with pytest.raises(RoundSecretsLost):
        notebook.message(SHARES)
    (folder / "shares").unlink()
    with pytest.raises(RoundSecretsLost):
        notebook.message(SHARES)
    with pytest.raises(RoundSecretsLost):
        notebook.needed(BoxesLine)


def test_a_secret_is_in_no_repr(folder: Path) -> None:
    notebook = filled(folder, SHARES)
    first = parsed((folder / "notebook").read_bytes().splitlines()[0])
    shown = f"{notebook} {notebook!r} {notebook.needed(KeysLine)!r} {notebook.needed(SharesLine)} {first}"
    assert SECRET.hex() not in shown
    assert SHARES.own_self not in shown
    assert SHARES.own_mask not in shown


def test_a_notebook_from_a_backup_is_never_used_and_its_round_is_closed(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    notebooks = Notebooks(tmp_path / "private", history)
    filled(tmp_path / "private" / "r.3", SHARES)
    shutil.copytree(tmp_path / "private", tmp_path / "backup")
    shutil.rmtree(tmp_path / "private")
    shutil.copytree(tmp_path / "backup", tmp_path / "private")
    with pytest.raises(RoundSecretsLost):
        notebooks.open(RUN, ROUND)
    restarted = Notebooks(tmp_path / "private", History(tmp_path / "history"))
    assert restarted.open_rounds() == []
    with pytest.raises(RoundClosed):
        restarted.open(RUN, ROUND)
    assert (
        (tmp_path / "private" / NO_BACKUP_FILE).read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    )


def test_a_round_is_entered_as_closed_before_its_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebooks = Notebooks(tmp_path / "private", History(tmp_path / "history"))
    filled(tmp_path / "private" / "r.3", SHARES)
    filled(tmp_path / "private" / "r.4")
    filled(tmp_path / "private" / "other.3")

    def killed(folder: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            notebooks.close(RUN, ROUND)
    assert notebooks.open_rounds() == [("other", 3), ("r", 3), ("r", 4)]
    restarted = Notebooks(tmp_path / "private", History(tmp_path / "history"))
    assert restarted.open_rounds() == [("other", 3), ("r", 4)], "the removal is made up for"
    for number in (1, 2, 3):
        with pytest.raises(RoundClosed, match="current round is 4"):
            restarted.open(RUN, RoundNumber(number))
    assert restarted.open(RUN, RoundNumber(4)).begin(TERMS) == SECRET
    restarted.close_run(RUN)
    assert restarted.open_rounds() == [("other", 3)]


def test_the_closed_rounds_of_a_run_only_rise_and_are_no_version_of_it(tmp_path: Path) -> None:
    history = History(tmp_path)
    assert history.closed_private_round(RUN) == 0
    history.close_private_round(RUN, RoundNumber(7))
    history.close_private_round(RUN, RoundNumber(5))
    assert History(tmp_path).closed_private_round(RUN) == 7
    assert history.seen(RUN).versions == {}
    (tmp_path / "r.json").write_text('{"closed_private_round": "8"}')
    with pytest.raises(InvalidConfig, match="damaged"):
        history.closed_private_round(RUN)


def test_a_damaged_history_keeps_the_notebooks_of_its_run(tmp_path: Path) -> None:
    notebooks = Notebooks(tmp_path / "private", History(tmp_path / "history"))
    filled(tmp_path / "private" / "r.3")
    (tmp_path / "history" / "r.json").write_text("{")
    assert Notebooks(tmp_path / "private", History(tmp_path / "history")).open_rounds() == [("r", 3)]
    with pytest.raises(InvalidConfig):
        notebooks.open(RUN, ROUND)


def test_a_full_disk_leaves_the_step_undone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = filled(folder, SHARES)

    def full(handle: int) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageFull):
            notebook.write(BOXES, message_of(BOXES))
    assert notebook.steps == ("keys", "shares")
    notebook.write(BOXES, message_of(BOXES))
    assert at(folder).steps == ("keys", "shares", "boxes")


def test_a_message_is_read_once_in_a_process_and_a_lost_one_is_missed_by_the_next(folder: Path) -> None:
    confirmation = Confirmation(b"3" * 32)
    line = ConfirmLine(sum=sha(b"R3"), message=sha(confirmation.to_json()))
    notebook = filled(folder, SHARES, BOXES)
    notebook.write(line, confirmation.to_json())
    first = notebook.parsed(line, Confirmation)
    assert first == confirmation
    (folder / "confirm").unlink()
    assert notebook.parsed(line, Confirmation) is first
    with pytest.raises(RoundSecretsLost):
        at(folder).parsed(line, Confirmation)
