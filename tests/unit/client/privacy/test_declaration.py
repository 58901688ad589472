"""A client declares the loss in its ledger, and takes part only where the run's demand is met."""

import math
import os
from pathlib import Path

import pytest

from pluralllm.client.privacy.accountant import epsilon_of, rho_of
from pluralllm.client.privacy.declaration import Account, Declaration, check_demand
from pluralllm.client.privacy.entries import Charge, Released, question_name
from pluralllm.client.privacy.ledger import FILE, Ledger
from pluralllm.common.errors.tree import LedgerDiverged, NoiseDemanded
from pluralllm.common.words.ids import RunId
from pluralllm.common.words.noise import NoiseStatement
from pluralllm.common.words.privacy_demand import PrivacyDemand
from pluralllm.common.words.questions import Question

R, DELTA = RunId("r"), 1e-6
NAMES = tuple(sorted(question_name(Question(f"Question {n}?", ("Yes", "No"), (0.5, 0.5))) for n in range(4)))


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (tmp_path / "privacy").mkdir()
    return Account(tmp_path / "privacy", tmp_path / "town.jsonl", DELTA)


def charge(account: Account, rho: float, names: tuple[str, ...] = NAMES) -> None:
    """Charges each of the questions, as another process does that releases answers."""
    ledger = Ledger(account.folder, account.data)
    facts = {"time": "t", "population": "p", "data": str(account.data), "sigma": 1.0, "previous": ledger.head}
    ledger.append(Charge(sequence=len(ledger.entries), questions=names, rho_of_question=rho, **facts))


def release(account: Account, rho: float, names: tuple[str, ...] = NAMES) -> None:
    charge(account, rho, names)
    ledger, number = Ledger(account.folder, account.data), len(Ledger(account.folder, account.data).entries)
    facts = {"time": "t", "data": str(account.data), "data_sha256": "a" * 64, "file": "f", "sha256": "a" * 64}
    ledger.append(Released(sequence=number, charge=number - 1, previous=ledger.head, **facts))


def demand(epsilon: float, delta: float = DELTA) -> PrivacyDemand:
    return PrivacyDemand(respondents_epsilon=epsilon, delta=delta, unit="respondent")


def test_the_statement_is_the_loss_of_all_releases_for_one_respondent(account: Account) -> None:
    release(account, 0.01)
    release(account, 0.02, NAMES[:1])
    everything = account.statement()
    assert everything == NoiseStatement(True, epsilon_of(0.06, DELTA), DELTA, "respondent")
    one = Account(account.folder, account.data, DELTA, questions_per_respondent=1)
    assert one.statement().epsilon == pytest.approx(epsilon_of(0.03, DELTA))


def test_a_demand_is_met_by_a_loss_up_to_its_bound(account: Account) -> None:
    release(account, rho_of(4.0, DELTA) / 4)
    check_demand(None, R, account)
    check_demand(demand(4.0), R, account)
    with pytest.raises(NoiseDemanded, match=r"have told 4; run r takes noised answers only, with epsilon 3.99 "):
        check_demand(demand(3.99), R, account)


def test_a_loss_is_compared_at_the_demands_own_delta(account: Account) -> None:
    release(account, rho_of(4.0, DELTA) / 4)
    at = epsilon_of(rho_of(4.0, DELTA), 1e-9)
    assert at > 4.5
    check_demand(demand(at + 0.01, 1e-9), R, account)
    with pytest.raises(NoiseDemanded, match=f"have told {at:.4g}"):
        check_demand(demand(4.0, 1e-9), R, account)


def test_a_file_of_which_nothing_was_released_has_true_answers_whatever_was_charged(account: Account) -> None:
    for rho in (None, 0.01):
        if rho is not None:
            charge(account, rho)
        assert account.statement() == NoiseStatement(noised=False)
        with pytest.raises(NoiseDemanded, match="uses the true answers"):
            check_demand(demand(1000.0), R, account)
    other = Account(account.folder, account.folder / "other.jsonl", DELTA)
    release(other, 0.01)
    assert other.statement().epsilon == pytest.approx(epsilon_of(0.08, DELTA)), "the charge of the population counts"
    assert account.statement() == NoiseStatement(noised=False)


def test_true_answers_meet_no_demand(account: Account) -> None:
    check_demand(None, R, None)
    with pytest.raises(NoiseDemanded, match="uses the true answers"):
        check_demand(demand(1000.0, 0.1), R, None)


def test_the_largest_and_the_smallest_demand_can_be_compared(account: Account) -> None:
    release(account, 1e-3)
    check_demand(demand(1000.0, 0.1), R, account)
    with pytest.raises(NoiseDemanded):
        check_demand(demand(math.ulp(0.0), math.ulp(0.0)), R, account)


def test_a_declaration_is_news_after_another_release_until_hello_has_said_it(account: Account) -> None:
    release(account, 0.01)
    declaration = Declaration(account)
    assert not declaration.look(), "the first Hello says it in any case"
    assert declaration.say() == account.statement()
    assert not declaration.look()
    release(account, 0.01)
    assert declaration.look()
    assert declaration.say() == account.statement()
    assert not declaration.look()


def test_a_client_with_true_answers_says_so(account: Account) -> None:
    declaration = Declaration(None)
    assert declaration.say() == NoiseStatement(noised=False)
    assert not declaration.look()
    with pytest.raises(NoiseDemanded):
        declaration.check(demand(4.0), R)


def test_a_broken_ledger_states_nothing_and_meets_no_demand(account: Account) -> None:
    release(account, 0.01)
    declaration = Declaration(account)
    declaration.say()
    (account.folder / FILE).write_bytes(b"{}\n")
    assert declaration.look()
    assert declaration.say() is None
    with pytest.raises(LedgerDiverged):
        declaration.check(demand(1000.0), R)
    declaration.check(None, R)
