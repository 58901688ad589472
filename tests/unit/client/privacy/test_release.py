"""A release is charged before noise is drawn and used only afterwards, whenever the process is killed."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.kill_points import stopping_at

from pluralllm.client.data.answers import ledger_beside, read_answers
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import read_group, write_group
from pluralllm.client.privacy import release as release_module
from pluralllm.client.privacy.accountant import epsilon_of, rho_used
from pluralllm.client.privacy.entries import Charge, Released, entries_of, question_name, totals_of
from pluralllm.client.privacy.estimate import likely_shares
from pluralllm.client.privacy.ledger import FILE, Ledger
from pluralllm.client.privacy.mechanism import UNIT
from pluralllm.client.privacy.release import Terms, release
from pluralllm.client.privacy.released_answers import released_answers
from pluralllm.common.errors.tree import (
    AnswersProtected,
    InUse,
    InvalidArgument,
    InvalidData,
    LedgerBroken,
    LedgerDiverged,
    NoisedFileLost,
    NotReleased,
    PrivacyBudgetSpent,
)
from pluralllm.common.process.lock import DirectoryLock
from pluralllm.common.words.questions import Question

CODEBOOK = tuple(Question(f"Question {n}?", ("Yes", "No", "Never"), (1 / 3,) * 3) for n in range(4))
NAMES = tuple(question_name(question) for question in CODEBOOK)
TERMS = Terms(population="town", epsilon=2.0, delta=1e-6)


def answered(counts: Sequence[float] = (70, 20, 10)) -> list[CountedQuestion]:
    return [CountedQuestion(q.text, q.options, q.shares, counts=tuple(counts), respondents=100) for q in CODEBOOK]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "town.jsonl"
    write_group(path, answered())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "privacy"


class Draws:
    """A draw that adds to the first option, more each time, and counts how often it was asked."""

    def __init__(self, check: Callable[[], None] = lambda: None, step: int = 1000) -> None:
        self.number = 0
        self._step = step
        self.sigmas: list[float] = []
        self._check = check

    def __call__(self, numbers: Sequence[int], sigma: float) -> list[int]:
        self._check()
        self.number += 1
        self.sigmas.append(sigma)
        return [numbers[0] + self._step * self.number, *numbers[1:]]


def released(data: Path, folder: Path, draw: Draws | None = None, **change: Any) -> Released:
    values = {"codebook": CODEBOOK, "terms": TERMS, **change}
    return release(data, folder, draw=draw or Draws(), now=lambda: "2026-11-29T12:00:00+00:00", **values)


def spent(data: Path, folder: Path) -> float:
    """Epsilon of all charges, for a respondent who has answered everything."""
    return epsilon_of(rho_used(totals_of(Ledger(folder, data.resolve()).entries).values(), 99), TERMS.delta)


def test_a_release_spends_the_budget_and_gives_noised_answers_in_place_of_the_true_ones(
    data: Path, folder: Path
) -> None:
    with pytest.raises(NotReleased):
        released_answers(data, folder)
    released(data, folder)
    assert spent(data, folder) == pytest.approx(TERMS.epsilon)
    answers = released_answers(data, folder)
    assert answers.is_current
    noised = read_answers(answers.path, answers.sha256)
    assert [q.text for q in noised] == [q.text for q in CODEBOOK]
    assert all(q.shares != (0.7, 0.2, 0.1) for q in noised)
    with pytest.raises(AnswersProtected, match="were released with noise"):
        read_answers(data)


def test_a_link_to_a_protected_file_leads_to_no_true_answer(data: Path, folder: Path) -> None:
    link = data.parent.parent / "link.jsonl"
    link.symlink_to(data)
    released(link, folder)
    for path in (link, data):
        with pytest.raises(AnswersProtected):
            read_answers(path)
        assert released_answers(path, folder).is_current


def test_a_path_that_the_ledger_cannot_hold_is_refused_before_a_charge(data: Path, folder: Path) -> None:
    odd = data.with_name(os.fsdecode(b"t\xff.jsonl"))
    data.rename(odd)
    with pytest.raises(InvalidArgument, match="is no UTF-8"):
        released(odd, folder)
    assert not folder.exists()


def test_a_file_in_a_folder_that_cannot_be_written_is_refused_before_a_charge(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_module, "why_not_writable", lambda path: f"{path.name} cannot be written")
    with pytest.raises(InvalidArgument, match="needs a copy of the ledger beside it, but data cannot be written"):
        released(data, folder)
    assert not folder.exists()


def test_nothing_is_drawn_before_the_charge_is_in_the_ledger_and_beside_the_private_file(
    data: Path, folder: Path
) -> None:
    charged: list[int] = []

    def look() -> None:
        for file in (folder / FILE, ledger_beside(data)):
            (charge,) = entries_of(file.read_bytes(), str(file))
            assert isinstance(charge, Charge)
            charged.append(len(charge.questions))
        assert not [path for path in folder.iterdir() if path.name.startswith("noised")]

    released(data, folder, Draws(look))
    assert charged == [4] * 2 * 4


def test_a_second_release_is_charged_again_and_refused_when_nothing_is_left(data: Path, folder: Path) -> None:
    half = Terms(population="town", epsilon=1.0, delta=1e-6)
    first = released(data, folder, terms=half)
    assert spent(data, folder) == pytest.approx(1)
    second = released(data, folder)
    assert spent(data, folder) == pytest.approx(2)
    assert (first.charge, second.charge) == (0, 2)
    with pytest.raises(PrivacyBudgetSpent, match=r"epsilon 2 of 2 is spent"):
        released(data, folder)
    assert released_answers(data, folder).sha256 == second.sha256
    assert spent(data, folder) == pytest.approx(2)


def test_a_changed_file_is_not_used_and_changes_no_released_answer(data: Path, folder: Path) -> None:
    released(data, folder)
    before = released_answers(data, folder)
    write_group(data, answered((10, 20, 70)))
    after = released_answers(data, folder)
    assert (after.path, after.sha256, after.is_current) == (before.path, before.sha256, False)
    data.unlink()
    assert not released_answers(data, folder).is_current


def test_only_the_named_questions_are_noised_and_all_of_them_whether_changed_or_not(data: Path, folder: Path) -> None:
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    before = read_group(released_answers(data, folder).path)
    rows = answered()
    write_group(data, [*rows[:3], CountedQuestion(rows[3].text, rows[3].options, rows[3].shares, counts=(1, 1, 98))])
    draw = Draws(step=7777)
    released(data, folder, draw, named=frozenset(NAMES[:2]))
    after = read_group(released_answers(data, folder).path)
    assert draw.number == 2
    assert [one.shares == other.shares for one, other in zip(before, after, strict=True)] == [False, False, True, True]
    newest = Ledger(folder, data.resolve()).entries[2]
    assert isinstance(newest, Charge)
    assert set(newest.questions) == set(NAMES[:2])


def test_a_part_of_the_questions_may_be_released_first(data: Path, folder: Path) -> None:
    released(data, folder, named=frozenset(NAMES[2:]))
    assert [q.text for q in read_group(released_answers(data, folder).path)] == ["Question 2?", "Question 3?"]


class Killed(BaseException):
    """The end of the process at one point."""


@contextlib.contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kills at the so many-th call of the system by which a release writes: before the call, or after it, in turn."""

    def kill() -> None:
        raise Killed

    passed: list[str] = []
    with monkeypatch.context() as patch:
        for owner, name, value in stopping_at(number, kill, passed):
            patch.setattr(owner, name, value)
        yield passed


def release_killed_at(number: int, data: Path, folder: Path, draw: Draws, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Releases, with a kill at a point. Returns whether the release ended before the point."""
    with killed_at(number, monkeypatch), contextlib.suppress(Killed):
        released(data, folder, draw)
        return True
    return False


def test_a_kill_at_any_point_leaves_no_uncharged_release_and_no_double_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, opened_at, charged_at = 0, 0, 0
    for number in range(1, 400):
        data, folder = tmp_path / str(number) / "town.jsonl", tmp_path / str(number) / "privacy"
        data.parent.mkdir()
        write_group(data, answered())
        first = Draws()
        if release_killed_at(number, data, folder, first, monkeypatch):
            points = number - 1
            break
        used: set[str] = set()
        with contextlib.suppress(NotReleased):
            used.add(released_answers(data, folder).sha256)  # whoever reads now may use it
            opened_at += 1
        charged_at += spent(data, folder) > 0
        assert not first.number or spent(data, folder) == pytest.approx(TERMS.epsilon)
        again = Draws()
        if used:
            with pytest.raises(PrivacyBudgetSpent):
                released(data, folder, again)
            assert again.number == 0
        else:
            released(data, folder, again)
            assert again.number == 4
        used.add(released_answers(data, folder).sha256)
        assert len(used) == 1
        assert spent(data, folder) == pytest.approx(TERMS.epsilon)
        entries = Ledger(folder, data.resolve()).entries
        assert [entry.kind for entry in entries] == ["charge", "released"]
    assert points > 30
    assert 0 < opened_at < charged_at < points


def test_an_interrupted_release_is_not_repeated_above_a_lower_budget(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        released(data, folder, Draws(killed))
    with pytest.raises(PrivacyBudgetSpent):
        released(data, folder, terms=Terms("town", 1.0, 1e-6))
    released(data, folder)
    assert spent(data, folder) == pytest.approx(2)


def test_an_interrupted_release_of_other_questions_stays_charged(data: Path, folder: Path) -> None:
    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        released(data, folder, Draws(killed), named=frozenset(NAMES[:2]), terms=Terms("town", 1.0, 1e-6))
    released(data, folder)
    assert spent(data, folder) == pytest.approx(2)
    assert [entry.kind for entry in Ledger(folder, data.resolve()).entries] == ["charge", "charge", "released"]


def test_each_step_is_durable_before_the_next_one_begins(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def path_of(handle: int) -> str:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        return "draft" if name.endswith(".tmp") else name

    def rename(path: Path, to: Path) -> Path:
        steps.append(f"rename to {to.name}")
        return real(path, to)

    real = Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(path_of(handle)))
    monkeypatch.setattr(Path, "rename", rename)
    released(data, folder, Draws(lambda: steps.append("draw")))
    written = ["ledger.jsonl", "privacy", "town.jsonl.ledger", "data"]
    published = ["draft", "rename to noised-0.jsonl", "privacy"]
    assert steps == [*written, *["draw"] * 4, *published, *written]


@pytest.mark.parametrize("line", [0, 1])
def test_a_line_that_was_cut_off_at_any_byte_did_not_happen(data: Path, folder: Path, line: int) -> None:
    released(data, folder)
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    for length in range(0, len(lines[line]), 41):
        for file in (folder / FILE, ledger_beside(data)):
            file.write_bytes(b"".join(lines[:line]) + lines[line][:length])
        assert len(Ledger(folder, data.resolve()).entries) == line
        draw = Draws()
        released(data, folder, draw)
        assert draw.number == 4
        assert (folder / FILE).read_bytes() == ledger_beside(data).read_bytes()
        assert len(Ledger(folder, data.resolve()).entries) == 2


@pytest.mark.parametrize("lost", ["state", "copy"])
def test_a_restored_or_lost_ledger_does_not_refund(data: Path, folder: Path, lost: str) -> None:
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    file = folder / FILE if lost == "state" else ledger_beside(data)
    earlier = file.read_bytes()
    released(data, folder)
    for content in (earlier, b""):
        file.write_bytes(content)
        with pytest.raises(PrivacyBudgetSpent):
            released(data, folder)
    file.unlink()
    with pytest.raises(PrivacyBudgetSpent):
        released(data, folder)


def test_a_file_that_lags_behind_is_brought_up_by_the_next_release(data: Path, folder: Path) -> None:
    released(data, folder, terms=Terms("town", 0.5, 1e-6))
    earlier = (folder / FILE).read_bytes()
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    (folder / FILE).write_bytes(earlier + b'{"kind"')
    released(data, folder)
    assert (folder / FILE).read_bytes() == ledger_beside(data).read_bytes()
    assert len(Ledger(folder, data.resolve()).entries) == 6


def test_the_ledger_beside_another_file_of_the_population_counts_as_well(data: Path, folder: Path) -> None:
    other = data.with_name("other.jsonl")
    write_group(other, answered())
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    earlier = {path: path.read_bytes() for path in (folder / FILE, ledger_beside(data))}
    released(other, folder, terms=Terms("town", 1.5, 1e-6))
    released(data, folder)
    for path, content in earlier.items():
        path.write_bytes(content)
    (folder / FILE).write_bytes(ledger_beside(other).read_bytes()[: -len(b"\n")])
    assert len(Ledger(folder, data.resolve()).entries) >= 5
    with pytest.raises(PrivacyBudgetSpent):
        released(data, folder, terms=Terms("town", 1.5, 1e-6))


def test_the_questions_of_two_files_of_one_population_add_up(data: Path, folder: Path) -> None:
    other = data.with_name("other.jsonl")
    write_group(other, answered())
    released(data, folder)
    with pytest.raises(PrivacyBudgetSpent):
        released(other, folder)


def test_two_ledgers_that_tell_different_stories_stop_everything(data: Path, folder: Path) -> None:
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    ledger_beside(data).unlink()
    (folder / FILE).rename(folder / "kept")
    released(data, folder, terms=Terms("town", 1.5, 1e-6))
    (folder / "kept").rename(folder / FILE)
    for act in (released_answers, released):
        with pytest.raises(LedgerDiverged):
            act(data, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("town", "Town", 1),
        lambda text: text.replace('"population":"town"', '"population":"Town"'),  # only the hash chain shows it
        lambda text: text[text.index("\n") + 1 :],
        lambda text: "\n" + text,
        lambda text: text + text,
        lambda text: text + "{}\n",
        lambda text: text.replace('"charge":0', '"charge":1'),
    ],
)
def test_an_edited_ledger_is_broken(data: Path, folder: Path, change: Callable[[str], str]) -> None:
    released(data, folder)
    text = change((folder / FILE).read_text())
    for file in (folder / FILE, ledger_beside(data)):
        file.write_text(text)
    for act in (released_answers, released):
        with pytest.raises(LedgerBroken):
            act(data, folder)


@pytest.mark.parametrize("is_missing", [True, False])
def test_lost_noised_answers_are_restored_or_charged_anew(data: Path, folder: Path, is_missing: bool) -> None:
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    file = released_answers(data, folder).path
    content = file.read_bytes()
    file.unlink() if is_missing else file.write_bytes(content + b"\n")
    with pytest.raises(NoisedFileLost, match=hashlib.sha256(content).hexdigest()):
        released_answers(data, folder)
    with pytest.raises(NoisedFileLost):
        released(data, folder, named=frozenset(NAMES[:2]))
    assert spent(data, folder) == pytest.approx(1)
    released(data, folder)
    assert spent(data, folder) == pytest.approx(2)
    file.write_bytes(content)
    assert released_answers(data, folder).path != file


def test_one_process_at_a_time_releases(data: Path, folder: Path) -> None:
    with DirectoryLock(folder), pytest.raises(InUse):
        released(data, folder)


def test_two_configurations_with_ledgers_of_their_own_do_not_release_one_file_at_once(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    def look() -> None:
        with pytest.raises(InUse, match=r"town\.jsonl"):
            released(data, tmp_path / "elsewhere")

    released(data, folder, Draws(look))
    with pytest.raises(PrivacyBudgetSpent):
        released(data, tmp_path / "elsewhere")


def test_a_ledger_that_another_process_has_continued_is_not_written_over(data: Path, folder: Path) -> None:
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    early = Ledger(folder, data.resolve())
    entry = early.entries[0].model_copy(update={"sequence": 2, "previous": early.head})
    released(data, folder)
    before = (folder / FILE).read_bytes()
    with pytest.raises(LedgerDiverged):
        early.append(entry)
    assert (folder / FILE).read_bytes() == ledger_beside(data).read_bytes() == before


def test_a_charge_that_a_full_disk_has_kept_from_a_copy_is_there_before_noise_is_drawn(
    data: Path, folder: Path
) -> None:
    def full() -> None:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the error of the line above
        released(data, folder, Draws(full))
    ledger_beside(data).write_bytes(b"")
    copies: list[int] = []
    released(data, folder, Draws(lambda: copies.append(ledger_beside(data).read_bytes().count(b"charge"))))
    assert min(copies) > 0


def test_a_question_in_new_words_is_no_free_second_release(data: Path, folder: Path) -> None:
    stated = Terms("town", 2.0, 1e-6, questions_per_respondent=4, respondents=200)
    released(data, folder, terms=stated)
    reworded = tuple(Question(f"{q.text} Please say.", q.options, q.shares) for q in CODEBOOK)
    write_group(data, [CountedQuestion(q.text, q.options, q.shares, counts=(70, 20, 10)) for q in reworded])
    with pytest.raises(InvalidArgument, match=r"is 4, but 4 questions .* not in the list any more.* at least 8"):
        released(data, folder, codebook=reworded, terms=stated)
    moved = data.rename(data.with_name("moved.jsonl"))
    with pytest.raises(InvalidArgument, match="not in the list any more"):
        released(moved, folder, codebook=reworded, terms=stated)
    with pytest.raises(PrivacyBudgetSpent):
        released(moved, folder, codebook=reworded)
    more = (*CODEBOOK, reworded[0])
    write_group(data, [*answered(), CountedQuestion(more[4].text, more[4].options, more[4].shares, counts=(7, 2, 1))])
    released(data, folder, codebook=more, terms=stated, named=frozenset({question_name(more[4])}))


def test_two_files_of_one_population_may_have_different_questions(data: Path, folder: Path) -> None:
    stated = Terms("town", 2.0, 1e-6, questions_per_respondent=4)
    released(data, folder, terms=stated)
    other = tuple(Question(f"More {n}?", ("Yes", "No"), (0.5, 0.5)) for n in range(4))
    file = data.with_name("other.jsonl")
    write_group(file, [CountedQuestion(q.text, q.options, q.shares, counts=(70, 30)) for q in other])
    released(file, folder, codebook=other, terms=stated)


def test_released_answers_stay_in_use_where_the_private_file_cannot_be_read(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(data, folder)

    def shut(path: Path) -> str:
        raise InvalidData(file=str(path), problems="  no permission")

    monkeypatch.setattr("pluralllm.client.privacy.released_answers.sha256_of", shut)
    assert not released_answers(data, folder).is_current


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"population": "other"}, "is other, the ledger is about town"),
        ({"respondents": 50}, "is 50, but 100 people have answered one question"),
        ({"questions_per_respondent": 3}, "is 3, but 400 answers of 100 respondents are more"),
        ({"delta": 0.01}, "for 100 respondents it must be at most 0.001"),
    ],
)
def test_a_statement_that_cannot_be_true_is_refused_before_anything_is_spent(
    data: Path, folder: Path, change: dict[str, Any], problem: str
) -> None:
    released(data, folder, terms=Terms("town", 1.0, 1e-6))
    with pytest.raises(InvalidArgument, match=problem):
        released(data, folder, terms=Terms(**{"population": "town", "epsilon": 2.0, "delta": 1e-6, **change}))
    assert spent(data, folder) == pytest.approx(1)


def test_fewer_questions_of_a_respondent_need_less_noise(data: Path, folder: Path, tmp_path: Path) -> None:
    all_of_them, half = Draws(), Draws()
    released(data, folder, all_of_them)
    stated = Terms("town", 2.0, 1e-6, questions_per_respondent=2, respondents=200)
    ledger_beside(data).unlink()
    released(data, tmp_path / "elsewhere", half, terms=stated)
    assert all_of_them.sigmas[0] / half.sigmas[0] == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (answered()[:3], "'Question 3.' has no row; import the answers with --options"),
        ([*answered(), CountedQuestion("More?", ("a", "b"), (1, 0), counts=(1, 0))], "'More.' is not in the list"),
        ([*answered()[:3], CODEBOOK[3]], "'Question 3.' has shares and no respondents"),
        (
            [*answered(), CountedQuestion("Question  0?", ("No", "Yes", "Never"), (1, 0, 0), counts=(1, 0, 0))],
            "keep one",
        ),
        (
            [
                *answered()[:3],
                CountedQuestion("Question 3?", ("Yes", "No", "Never"), (1, 0, 0), None, 2.0, counts=(1, 0, 0)),
            ],
            "has a weight, which may tell of its answers",
        ),
        (
            [*answered()[:3], CountedQuestion("Question 3?", CODEBOOK[3].options, (1, 0, 0), counts=(1e300, 0, 0))],
            "has more than 1099511627776 people",
        ),
        (
            [*answered()[:3], CountedQuestion("Question 3?", CODEBOOK[3].options, (1, 0, 0), respondents=10**13)],
            "has more than 1099511627776 people",
        ),
    ],
)
def test_a_file_that_does_not_fit_the_list_of_questions_is_refused(
    data: Path, folder: Path, rows: list[Question], problem: str
) -> None:
    write_group(data, rows)
    with pytest.raises(InvalidData, match=problem):
        released(data, folder)
    assert Ledger(folder, data.resolve()).entries == ()


@pytest.mark.parametrize("options", [("a  b", "a b"), ("caf\u00e9", "cafe\u0301")])
def test_two_options_that_are_one_in_the_ledger_are_refused(data: Path, folder: Path, options: tuple[str, str]) -> None:
    """One person would be counted in both of them, so the noise would be too small."""
    codebook = (Question("Which?", options, (0.5, 0.5)),)
    write_group(data, [CountedQuestion("Which?", options, (1, 0), counts=(10, 0))])
    with pytest.raises(InvalidData, match="two options that differ only in white space"):
        released(data, folder, codebook=codebook)


@pytest.mark.parametrize("max_weight", [1.0, 3.0])
def test_the_released_shares_are_estimated_from_the_noised_counts_and_the_size_of_their_noise(
    data: Path, folder: Path, max_weight: float
) -> None:
    write_group(data, answered((90, 0, 10)))
    draw = Draws()
    charge = released(data, folder, draw, terms=Terms("town", 2.0, 1e-6, max_weight=max_weight)).charge
    entry = Ledger(folder, data.resolve()).entries[charge]
    assert isinstance(entry, Charge)
    first = read_group(released_answers(data, folder).path)[0]
    noised = (90 + 1000 / UNIT, 0, 10)
    assert first.shares == pytest.approx(likely_shares(noised, entry.sigma), abs=1e-6)
    assert first.shares != pytest.approx(likely_shares(noised, 2 * entry.sigma), abs=1e-6)
    assert draw.sigmas[0] == pytest.approx(UNIT * entry.sigma)


def test_the_list_decides_the_order_of_questions_and_options(data: Path, folder: Path) -> None:
    rows = [
        CountedQuestion(q.text, ("Never", "No", " Yes "), q.shares, (None, 1.0, 0.0), counts=(10, 20, 70))
        for q in reversed(CODEBOOK)
    ]
    write_group(data, rows)
    released(data, folder)
    first = read_group(released_answers(data, folder).path)[0]
    assert (first.text, first.options, first.scale) == ("Question 0?", ("Yes", "No", "Never"), (0.0, 1.0, None))
    assert first.shares[0] > 0.6


def test_shares_with_a_number_of_respondents_become_counts(data: Path, folder: Path) -> None:
    write_group(data, [CountedQuestion(q.text, q.options, (0.5, 0.25, 0.25), respondents=100) for q in CODEBOOK])
    numbers: list[Sequence[int]] = []

    def draw(whole: Sequence[int], _: float) -> list[int]:
        numbers.append(whole)
        return list(whole)

    with pytest.raises(InvalidData, match=r"has shares: state \[privacy\] max_weight"):
        release(data, folder, CODEBOOK, TERMS, draw=draw)
    release(data, folder, CODEBOOK, Terms("town", 1.0, 1e-6, max_weight=1.0), draw=draw)
    assert numbers[0] == [51200, 25600, 25600]
    release(data, folder, CODEBOOK, Terms("town", 2.0, 1e-6, max_weight=3.0), draw=draw)
    assert numbers[-1] == [25600, 12800, 12800]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_one_weighted_respondent_moves_halved_shares_by_less_than_the_weight(weight: float) -> None:
    weights = [1.0] * 60 + [4.0] * 3  # of the others, who answer the two options in turn

    def numbers(people: Sequence[tuple[int, float]]) -> list[float]:
        total = sum(w for _, w in people)
        return [len(people) / 2 * sum(w for o, w in people if o == option) / total for option in range(2)]

    people = [(number % 2, w) for number, w in enumerate(weights)]
    mean = sum(weights) / len(weights)
    assert math.dist(numbers(people), numbers([*people, (0, weight * mean)])) <= max(1.0, weight)


def test_a_question_has_one_name_however_it_is_written() -> None:
    names = {
        question_name(Question(text, options, (0.5, 0.5)))
        for text, options in [
            ("Caf\u00e9 ou th\u00e9?", ("Caf\u00e9", "Th\u00e9")),
            ("Cafe\u0301  ou the\u0301?", ("The\u0301", " Cafe\u0301")),
        ]
    }
    assert len(names) == 1
    assert question_name(CODEBOOK[0]) != question_name(CODEBOOK[1])


def test_the_ledger_holds_no_answer_and_no_text(data: Path, folder: Path) -> None:
    released(data, folder)
    for line in (folder / FILE).read_text().splitlines():
        values = json.loads(line)
        assert "Question" not in line
        assert not {"counts", "shares", "respondents"} & values.keys()
    assert (folder / FILE).stat().st_mode & 0o077 == 0
    assert released_answers(data, folder).path.stat().st_mode & 0o077 == 0
