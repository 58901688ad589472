"""Releases a group's answers with noise, in four steps that survive a kill between any two of them.

1. The charge is in the ledger and its copies, durable.
2. The noise is drawn, and the noised answers are in a file of their own, durable, which no other process opens yet.
3. The ledger says that the file is released, with the hash of its content, durable.
4. Other processes use the file. Each of them checks the hash.

After a kill between 1 and 3 nothing was seen by anybody: the next release of the same questions draws anew under the same charge.
After 3 nothing is taken back, also if the file is lost. A release is an act of the partner: it noises every question that the
partner names, changed or not, because whether an answer has changed is private, too.
Design: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010); zero-concentrated differential privacy for each respondent.
"""

import datetime
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pluralllm.client.data.answers import sha256_of
from pluralllm.client.data.codebook import kept_codebook
from pluralllm.client.data.counted_question import CountedQuestion
from pluralllm.client.data.private_data import jsonl_of, read_counted, read_group
from pluralllm.client.privacy.accountant import epsilon_of, rho_of, rho_of_question, rho_used
from pluralllm.client.privacy.entries import (
    Charge,
    Entry,
    Released,
    latest_release,
    open_charge,
    population_of,
    question_name,
    totals_of,
)
from pluralllm.client.privacy.estimate import likely_shares
from pluralllm.client.privacy.ledger import Ledger
from pluralllm.client.privacy.mechanism import LARGEST_COUNT, Draw, noise_on_counts, noised_counts, opendp_draw
from pluralllm.common.errors.tree import InvalidArgument, InvalidData, NoisedFileLost, PrivacyBudgetSpent
from pluralllm.common.process.files import why_not_writable, write_durably
from pluralllm.common.process.lock import DirectoryLock, locked_file
from pluralllm.common.words.questions import Question, folded

Now = Callable[[], str]
# A release with less than this part of an even share of the budget would be noise alone.
LEAST_PART = 1e-3
ROUNDING = 1e-9  # of a sum of losses that is the whole budget
DELTA_TIMES_RESPONDENTS = (
    0.1  # delta must be below the chance to pick one person: a loss of delta could be one person's answers
)


def utc_now() -> str:
    """Returns the time in UTC, in seconds."""
    return datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Terms:
    """The partner's statements about its respondents, and the privacy loss that it allows."""

    population: str  # all private files whose respondents may be the same people
    epsilon: float  # the most that all releases together may tell about one respondent
    delta: float
    questions_per_respondent: int = 0  # 0: one person may have answered every question that was ever released
    respondents: int = 0  # number of people in the population; 0: the largest number of a question
    max_weight: float | None = None  # the most that one person adds to a question; None: 1 for counts, and no shares

    @property
    def most_added(self) -> float:
        """The most that one respondent adds to the counts of one question."""
        return 1.0 if self.max_weight is None else self.max_weight


@dataclass(frozen=True, slots=True)
class Plan:
    """A release before anything is spent."""

    names: tuple[str, ...]  # of the questions, sorted
    rho_of_question: float
    sigma: float  # standard deviation of the noise on the count of one option; the largest of all questions
    epsilon_before: float
    epsilon_after: float
    respondents: int  # the median number of a question


def release(
    data: Path,
    folder: Path,
    codebook: Sequence[Question],
    terms: Terms,
    named: frozenset[str] | None = None,
    draw: Draw = opendp_draw,
    now: Now = utc_now,
) -> Released:
    """Releases the answers of a private file, and returns the ledger's entry about it.

    folder: of the ledger. codebook: every question of the survey with its options in order, whether answered or not; their shares
    are not used. named: names of the questions to noise; None: all. The answers of other questions stay as they were released.
    Raises InvalidData if the file does not fit the codebook or the terms; PrivacyBudgetSpent, LedgerBroken, LedgerDiverged;
    NoisedFileLost if not all questions are named and the last noised file is lost; InUse if another process releases answers
    of the file, or into the ledger.
    """
    data = data.resolve()
    _check_can_be_written(data)
    with DirectoryLock(folder), locked_file(data):
        ledger = Ledger(folder, data)
        questions, data_sha256 = _answers(data, codebook, terms)
        plan = plan_release(ledger, data, questions, terms, named)
        kept = {} if len(plan.names) == len(questions) else _released_before(ledger, data, folder)
        charge = open_charge(ledger.entries, str(data))
        if charge is None or charge.questions != plan.names:
            charge = Charge(
                sequence=len(ledger.entries),
                time=now(),
                population=terms.population,
                data=str(data),
                questions=plan.names,
                rho_of_question=plan.rho_of_question,
                sigma=plan.sigma,
                previous=ledger.head,
            )
            ledger.append(charge)
        else:
            ledger.bring_up()  # a full disk may have kept the charge from a copy
        file = folder / f"noised-{charge.sequence}.jsonl"
        file.unlink(missing_ok=True)  # a draw that was never released
        content = jsonl_of(_noised(questions, charge, terms, kept, draw))
        write_durably(file, content, mode=0o600)
        released = Released(
            sequence=len(ledger.entries),
            time=now(),
            charge=charge.sequence,
            data=str(data),
            data_sha256=data_sha256,
            file=file.name,
            sha256=hashlib.sha256(content).hexdigest(),
            previous=ledger.head,
        )
        ledger.append(released)
        return released


def plan_of(
    data: Path, folder: Path, codebook: Sequence[Question], terms: Terms, named: frozenset[str] | None = None
) -> Plan:
    """Returns what `release` would cost with the same arguments. Nothing is changed. Raises what `release` raises."""
    data = data.resolve()
    return plan_release(Ledger(folder, data), data, _answers(data, codebook, terms)[0], terms, named)


def plan_release(
    ledger: Ledger, data: Path, questions: Mapping[str, CountedQuestion], terms: Terms, named: frozenset[str] | None
) -> Plan:
    """Returns what a release would cost and which noise it would have. Nothing is changed.

    questions: those of the codebook with their counts, by name. Raises InvalidArgument for an unknown name or a wrong statement;
    PrivacyBudgetSpent if nothing is left.
    """
    entries = ledger.entries
    names = tuple(sorted(questions if named is None else named))
    if unknown := [name for name in names if name not in questions]:
        raise InvalidArgument(field="--questions", problem=f"{unknown[0][:12]} is no question of the list of options")
    if not names:
        raise InvalidArgument(field="--questions", problem="names no question")
    if population_of(entries) not in (None, terms.population):
        problem = f"is {terms.population}, the ledger is about {population_of(entries)}"
        raise InvalidArgument(field="[privacy] population", problem=problem)
    _check_statements(questions, terms, kept_codebook(data).most_answered)
    totals = totals_of(entries)
    _check_nothing_is_told_twice(entries, data, questions, len(totals.keys() | names), terms)
    kappa = terms.questions_per_respondent or len(totals.keys() | names)
    budget = rho_of(terms.epsilon, terms.delta)
    spent = rho_used(totals.values(), kappa)
    pending = open_charge(entries, str(data))
    if pending is not None and pending.questions == names and spent <= budget * (1 + ROUNDING):
        rho, after = pending.rho_of_question, spent
    else:
        rho = rho_of_question(totals, names, kappa, budget)
        if rho < LEAST_PART * budget / kappa:
            epsilon = epsilon_of(spent, terms.delta)
            raise PrivacyBudgetSpent(population=terms.population, spent=epsilon, allowed=terms.epsilon)
        after = rho_used((totals | {name: totals.get(name, 0.0) + rho for name in names}).values(), kappa)
    most_options = max(len(questions[name].options) for name in names)
    counted = sorted(_respondents_of(questions[name]) for name in names)
    return Plan(
        names,
        rho,
        noise_on_counts(most_options, rho, terms.most_added),
        epsilon_of(spent, terms.delta),
        epsilon_of(after, terms.delta),
        counted[len(counted) // 2],
    )


def with_codebook(
    file: str, codebook: Sequence[Question], answered: Sequence[CountedQuestion], terms: Terms
) -> dict[str, CountedQuestion]:
    """Returns the questions of a codebook, in its order and with its order of options, with their counts, by name.

    A private file must have exactly these questions, those that nobody has answered included: which questions have answers is
    private. Raises InvalidData otherwise; also for a question whose counts are unknown, and for a question with a weight.
    """
    of_name = {question_name(question): question for question in answered}
    listed = {question_name(question): question for question in codebook}
    problems = []
    if len(of_name) < len(answered) or len(listed) < len(codebook):
        problems.append("  two questions differ only in white space or in the order of their options; keep one")
    problems += [
        f"  {q.text[:60]!r} has two options that differ only in white space or in the form of a letter; merge them"
        for q in (*codebook, *answered)
        if len({folded(option) for option in q.options}) < len(q.options)
    ]
    problems += [
        f"  {listed[name].text[:60]!r} has no row; import the answers with --options, which keeps unanswered questions"
        for name in listed
        if name not in of_name
    ]
    problems += [
        f"  {q.text[:60]!r} is not in the list of options" for name, q in of_name.items() if name not in listed
    ]
    problems += [f"  {q.text[:60]!r} has a weight, which may tell of its answers" for q in answered if q.weight != 1.0]
    problems += [
        f"  {q.text[:60]!r} has shares and no respondents; give counts, or respondents"
        for q in answered
        if not q.counts and q.respondents is None
    ]
    problems += [
        f"  {q.text[:60]!r} has more than {LARGEST_COUNT} people; mend the numbers"
        for q in answered
        if max((*q.counts, q.respondents or 0)) > LARGEST_COUNT
    ]
    if terms.max_weight is None and (bare := [q for q in answered if not q.counts]):
        problems.append(f"  {bare[0].text[:60]!r} has shares: state [privacy] max_weight, 1.0 if all weighed the same")
    if problems:
        raise InvalidData(file=file, problems="\n".join(problems[:20]))
    return {name: _in_order(of_name[name], question.options, terms) for name, question in listed.items()}


def _in_order(question: CountedQuestion, options: tuple[str, ...], terms: Terms) -> CountedQuestion:
    """Returns a question with its counts and its scale in another order of the options.

    A person with the weight w (mean 1) changes shares twice: by w in the option's sum, and by w - 1 in the sum of all weights,
    which is nearly 2 w of the number of respondents. So numbers that come from weighted shares are halved.
    """
    present = [folded(option) for option in question.options]
    order = [present.index(folded(option)) for option in options]
    people = (question.respondents or 0) * (0.5 if terms.most_added > 1 else 1.0)
    numbers = question.counts or tuple(share * people for share in question.shares)
    scale = None if question.scale is None else tuple(question.scale[number] for number in order)
    counts, shares = (tuple(column[number] for number in order) for column in (numbers, question.shares))
    return replace(question, options=options, scale=scale, counts=counts, shares=shares)


def _answers(data: Path, codebook: Sequence[Question], terms: Terms) -> tuple[dict[str, CountedQuestion], str]:
    """Returns the questions of a private file by name, and the hash of the file's content."""
    sha256 = sha256_of(data)
    questions = with_codebook(str(data), codebook, read_counted(data), terms)
    if sha256_of(data) != sha256:
        raise InvalidData(file=str(data), problems="  it changes while it is read; try again")
    return questions, sha256


def _check_can_be_written(data: Path) -> None:
    """Checks that the ledger can hold the path of a private file, and that its copy can be written beside the file.

    Raises InvalidArgument otherwise, before a charge.
    """
    try:
        str(data).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            field="--data", problem=f"{str(data)!a} is no UTF-8; rename the file or folder"
        ) from error
    if problem := why_not_writable(data.parent):
        raise InvalidArgument(field="--data", problem=f"needs a copy of the ledger beside it, but {problem}")


def _check_statements(questions: Mapping[str, CountedQuestion], terms: Terms, most_answered: int) -> None:
    """Checks the partner's statements against the file, as far as the file can show that they are wrong.

    most_answered: the most questions that the importer has seen one respondent answer; 0: unknown.
    Raises InvalidArgument with the statement that cannot be true.
    """
    numbers = [_respondents_of(question) for question in questions.values()]
    respondents, answers = terms.respondents or max(numbers), math.fsum(numbers)
    if max(numbers) > respondents:
        problem = f"is {respondents}, but {max(numbers)} people have answered one question"
        raise InvalidArgument(field="[privacy] respondents", problem=problem)
    kappa = terms.questions_per_respondent
    if 0 < kappa < most_answered:
        problem = f"is {kappa}, but one respondent has answered {most_answered} questions of the file"
        raise InvalidArgument(field="[privacy] questions_per_respondent", problem=problem)
    if 0 < kappa < len(questions) and answers > kappa * respondents:
        problem = (
            f"is {kappa}, but {answers:.0f} answers of {respondents} respondents are more. Give a larger number, 0 for all"
            " questions, or [privacy] respondents if not everybody was asked everything"
        )
        raise InvalidArgument(field="[privacy] questions_per_respondent", problem=problem)
    if terms.delta * max(respondents, 1) > DELTA_TIMES_RESPONDENTS:
        most = DELTA_TIMES_RESPONDENTS / respondents
        problem = f"is {terms.delta:g}; for {respondents} respondents it must be at most {most:.1g}"
        raise InvalidArgument(field="[privacy] delta", problem=problem)


def _check_nothing_is_told_twice(
    entries: Sequence[Entry], data: Path, questions: Mapping[str, CountedQuestion], all_released: int, terms: Terms
) -> None:
    """Checks that the stated number of questions includes those that were released and have left the list since.

    A question with new words has a new name, and the same answers would be told under both names. Nobody can see that a new
    question is an old one, so a partner who states how many questions one person has answered must count both.
    all_released: number of questions with a release, this one included. Raises InvalidArgument.
    """
    kappa = terms.questions_per_respondent
    gone = {
        name
        for entry in entries
        if isinstance(entry, Charge) and (entry.data == str(data) or not Path(entry.data).exists())
        for name in entry.questions
    } - questions.keys()
    if gone and 0 < kappa < all_released:
        problem = (
            f"is {kappa}, but {len(gone)} questions that were released are not in the list any more. With other words or options"
            f" a question counts anew: put them back into the list and the file, or state 0 or at least {all_released}"
        )
        raise InvalidArgument(field="[privacy] questions_per_respondent", problem=problem)


def _respondents_of(question: CountedQuestion) -> int:
    """Returns the number of people who answered a question, or the least number that its counts need."""
    return math.ceil(math.fsum(question.counts)) if question.respondents is None else question.respondents


def _noised(
    questions: Mapping[str, CountedQuestion],
    charge: Charge,
    terms: Terms,
    kept: Mapping[str, Question],
    draw: Draw,
) -> list[Question]:
    """Returns the noised questions of a charge, and those that were released before, in the order of the codebook."""
    answers: list[Question] = []
    charged = frozenset(charge.questions)
    for name, question in questions.items():
        if name in charged:
            noised = noised_counts(question.counts, charge.rho_of_question, terms.most_added, draw)
            sigma = noise_on_counts(len(noised), charge.rho_of_question, terms.most_added)
            shares, key = likely_shares(noised, sigma), question.stated_key
            answers.append(Question(question.text, question.options, shares, question.scale, stated_key=key))
        elif name in kept:
            answers.append(kept[name])
    return answers


def _released_before(ledger: Ledger, data: Path, folder: Path) -> dict[str, Question]:
    """Returns the noised answers of a private file's newest release, by the questions' names; none if there is no release."""
    before = latest_release(ledger.entries, str(data))
    if before is None:
        return {}
    return {question_name(question): question for question in read_group(noised_file(before, folder))}


def noised_file(released: Released, folder: Path) -> Path:
    """Returns the path of the noised answers of a release. Raises NoisedFileLost if the file is missing or has other content."""
    path = folder / released.file
    if not path.is_file() or sha256_of(path) != released.sha256:
        raise NoisedFileLost(file=str(path), sha256=released.sha256)
    return path
