"""The commands `pluralllm-client privacy` and `data release`: noised answers, and what they tell about one person."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pluralllm.client.answers_in_use import GIVE_RESPONDENTS, TRUE_SHARES, uses_true_shares
from pluralllm.client.data.codebook import codebook_of
from pluralllm.client.disclosure.policy import RespondentPrivacy, load_policy
from pluralllm.client.privacy.accountant import epsilon_of, rho_used
from pluralllm.client.privacy.declaration import Account
from pluralllm.client.privacy.entries import Entry, latest_release, population_of, question_name, totals_of
from pluralllm.client.privacy.ledger import Ledger
from pluralllm.client.privacy.release import Plan, Terms, plan_of, release
from pluralllm.client.privacy.released_answers import released_answers
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import InvalidArgument, NoisedFileLost, NotReleased
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import Json, print_json, say, terminal
from pluralllm.common.process.extras import need_noise
from pluralllm.common.process.json_forms import PRIVACY
from pluralllm.common.words.noise import declared_text
from pluralllm.common.words.questions import Question

TO_TURN_OFF = "To turn noise off, remove [privacy] from policy.toml and import the answers under another name."
LEAST_ID_DIGITS, SHOWN_ID_DIGITS = 8, 12

Config = Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")]
Data = Annotated[Path | None, typer.Option(help="The private file; default: the one in the configuration.")]
StateDir = Annotated[Path | None, typer.Option(help="The daemon's state directory.")]
Options = Annotated[
    Path | None,
    typer.Option(
        "--options",
        help="A JSON file with every question of the survey: question -> list of options. Default: the codebook that the import"
        " has kept beside the private file.",
    ),
]


def release_answers(
    options: Options = None,
    questions: Annotated[
        str, typer.Option(help="Ids of the questions to noise, with commas between them; default: all questions.")
    ] = "",
    epsilon: Annotated[
        float | None, typer.Option(min=0.001, help="Stop at this total loss; default: all that the policy allows.")
    ] = None,
    list_ids: Annotated[
        bool, typer.Option("--list", help="Print the id of each question, and release nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the noise and the loss, and release nothing.")
    ] = False,
    data: Data = None,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Release the answers with noise, once; the daemon then uses the released answers only. Each release is charged for ever.

    Choose the questions by what was asked, never by what has changed: whether an answer has changed is private, too.
    """
    settings = load_config(ClientConfig, config, {"data": data, "state_dir": state_dir})
    codebook = codebook_of(settings.data, options)
    if list_ids:
        say("\n".join(f"{question_name(question)[:SHOWN_ID_DIGITS]}  {question.text}" for question in codebook))
        return
    privacy = _privacy(settings)
    terms, folder = terms_of(privacy, epsilon), privacy.ledger_folder(settings.state_dir)
    named = _named(questions, codebook)
    plan = plan_of(settings.data, folder, codebook, terms, named)
    say(plan_text(plan, terms, privacy.respondents_epsilon))
    if dry_run:
        return
    need_noise()
    released = release(settings.data, folder, codebook, terms, named)
    say(f"Released: {folder / released.file}. A daemon that runs uses it before its next task.")


def first_release(data: Path, state_dir: Path, policy_file: Path) -> None:
    """Releases the answers of a partner that joins, and says what it has done; or says why nothing is released.

    Nothing happens if the policy asks for no noise, or if answers of the file were released before. Raises what `release` raises.
    """
    privacy = load_policy(policy_file).privacy
    if privacy is None:
        say(
            f"Without noise: updates and scores are computed from the true answers, because {policy_file} has no [privacy]."
        )
        return
    folder = privacy.ledger_folder(state_dir)
    if latest_release(Ledger(folder, data.resolve()).entries, str(data.resolve())) is not None:
        return
    if uses_true_shares(data, privacy, folder):
        say(f"Without noise: {TRUE_SHARES}. To change that: {GIVE_RESPONDENTS}.")
        return
    need_noise()
    codebook, terms = codebook_of(data, None), terms_of(privacy)
    plan = plan_of(data, folder, codebook, terms)
    released = release(data, folder, codebook, terms)
    said = plan_text(plan, terms, privacy.respondents_epsilon)
    say(f"Released with noise, once and for all runs: {folder / released.file}\n{said}")
    say(f"{meaning(plan.epsilon_after, terms.delta)} {TO_TURN_OFF}")


def privacy(config: Config = None, data: Data = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """Show what all releases together tell about one respondent, and what is left."""
    settings = load_config(ClientConfig, config, {"data": data, "state_dir": state_dir})
    facts = privacy_facts(settings, _privacy(settings))
    if as_json:
        print_json(PRIVACY, facts)
        return
    table = Table("what", "value", box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), "none" if value is None else str(value))
    terminal().print(table)
    say(meaning(float(facts["epsilon_spent"]), float(facts["delta"])))


def privacy_facts(settings: ClientConfig, privacy: RespondentPrivacy) -> dict[str, Any]:
    """Returns the facts of the ledger by name. privacy: the policy's table. Raises LedgerBroken or LedgerDiverged."""
    folder = privacy.ledger_folder(settings.state_dir)
    entries = Ledger(folder, settings.data.resolve()).entries
    totals = totals_of(entries)
    kappa = privacy.questions_per_respondent or len(totals)
    epsilon = epsilon_of(rho_used(totals.values(), kappa), privacy.delta)
    account = Account(folder, settings.data, privacy.delta, privacy.questions_per_respondent)
    return {
        "unit": "one respondent, with everything that this person has answered",
        "population": population_of(entries) or privacy.population,
        "epsilon_spent": float(f"{epsilon:.4g}"),
        "epsilon_allowed": privacy.respondents_epsilon,
        "delta": privacy.delta,
        "questions_released": len(totals),
        "questions_per_respondent": kappa,
        "declared_to_coordinator": declared_text(asdict(account.statement())),
        "releases": sum(entry.kind == "released" for entry in entries),
        **_answers_in_use(settings, entries, folder),
    }


def _answers_in_use(settings: ClientConfig, entries: Sequence[Entry], folder: Path) -> dict[str, Any]:
    released = latest_release(entries, str(settings.data.resolve()))
    try:
        answers = released_answers(settings.data, folder)
    except NotReleased:
        return {"noised_file": None, "released": None, "private_file_changed": None}
    except NoisedFileLost as error:
        return {"noised_file": f"LOST: {error.file}", "released": None, "private_file_changed": None}
    assert released is not None
    return {
        "noised_file": str(answers.path),
        "released": released.time,
        "private_file_changed": not answers.is_current,
    }


def meaning(epsilon: float, delta: float) -> str:
    """Returns a sentence that says what a loss means for one person."""
    if epsilon == 0:
        return "Nothing has been released, so nothing is told about anybody."
    odds = f"{min(2.718281828459045**epsilon, 1e6):.3g}"
    return (
        "Whatever anybody computes from the released answers: the odds that a person has taken part, or has given a certain"
        f" answer, change by a factor of at most {odds}, except with a chance of {delta:g}. What the group thinks is not hidden."
    )


def plan_text(plan: Plan, terms: Terms, allowed: float) -> str:
    """Returns what a release costs, and how large its noise is, in the partner's words. allowed: the policy's epsilon."""
    less = f" (--epsilon; the policy allows {allowed:.3g})" if terms.epsilon < allowed else ""
    share = plan.sigma / plan.respondents if plan.respondents else float("inf")
    return (
        f"{len(plan.names)} questions: noise of {plan.sigma:.1f} answers on each count, which is {share:.3f} on a share of"
        f" {plan.respondents} respondents.\nEpsilon {plan.epsilon_before:.3g} -> {plan.epsilon_after:.3g} of"
        f" {terms.epsilon:.3g}{less} at delta {terms.delta:g}, for each person of the population {terms.population!r}."
    )


def terms_of(privacy: RespondentPrivacy, epsilon: float | None = None) -> Terms:
    """Returns the partner's terms. epsilon: a loss below the allowed one. Raises InvalidArgument if it is above."""
    allowed = privacy.respondents_epsilon
    if epsilon is not None and epsilon > allowed:
        raise InvalidArgument(field="--epsilon", problem=f"is {epsilon:g}, policy.toml allows {allowed:g}")
    return Terms(
        population=privacy.population,
        epsilon=allowed if epsilon is None else epsilon,
        delta=privacy.delta,
        questions_per_respondent=privacy.questions_per_respondent,
        respondents=privacy.respondents,
        max_weight=privacy.max_weight,
    )


def _privacy(settings: ClientConfig) -> RespondentPrivacy:
    """Returns the table [privacy] of the policy. Raises InvalidArgument if the policy has none."""
    privacy = load_policy(settings.policy_file).privacy
    if privacy is None:
        problem = (
            "has no table [privacy]; add it with respondents_epsilon = 4.0 and what you can state about the respondents"
        )
        raise InvalidArgument(field="policy.toml", problem=problem)
    return privacy


def _named(ids: str, codebook: Sequence[Question]) -> frozenset[str] | None:
    """Returns the ledger's names of the questions with these ids; None for no ids. Raises InvalidArgument for an unknown id."""
    if not ids.strip():
        return None
    chosen = set()
    for beginning in (part.strip().lower() for part in ids.split(",")):
        matches = [q for q in codebook if len(beginning) >= LEAST_ID_DIGITS and question_name(q).startswith(beginning)]
        if len(matches) != 1:
            problem = f"{beginning!r} is not the beginning of one question's id, of {LEAST_ID_DIGITS} digits or more"
            raise InvalidArgument(field="--questions", problem=f"{problem}; `--list` prints them")
        chosen.add(question_name(matches[0]))
    return frozenset(chosen)
