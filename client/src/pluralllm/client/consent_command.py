"""The command `pluralllm-client consent`: shows what a run asks for, and stores the owner's answer for the daemon."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pluralllm.client.disclosure.consents import Consents, Question
from pluralllm.client.disclosure.differences import REWARDS_FIELD, json_text
from pluralllm.client.process.config import JoinConfig
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import say
from pluralllm.common.words.ids import RunId


def consent(
    run: Annotated[str, typer.Argument(help="The name of the run that the daemon has refused.")],
    config: Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The daemon's state directory.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Consent without a question on the terminal.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take back the consent to this run's settings.")] = False,
) -> None:
    """Consent to a run that departs from what policy.toml allows. The command shows every difference, then asks."""
    paths = load_config(JoinConfig, config, {"state_dir": state_dir})
    consents = Consents(paths.state_dir)
    if withdraw:
        say(_withdrawn(run, consents.withdraw(RunId(run))))
        return
    question = consents.question(RunId(run))
    if question is None:
        raise InvalidArgument(field="RUN", problem=_not_asked(consents, run, paths.state_dir))
    say(question_text(question))
    if not yes and not _agreed(question):
        say("No consent. The daemon goes on refusing this run.")
        raise typer.Exit(1)
    consents.give(question)
    say("Consent stored. The daemon takes part in the run from its next poll on, at most half a minute from now.")


def question_text(question: Question) -> str:
    """Returns what the owner must know before consenting: one line for each difference, all texts printable."""
    title = f" ({json_text(question.title)})" if question.title else ""
    asks_rewards = any(difference.field == REWARDS_FIELD for difference in question.differences)
    runs = f"the run {question.run}" if asks_rewards else "every run"
    lines = [
        f"Run {question.run}{title} asks for what policy.toml does not allow without your consent:",
        *(f"  {difference.text}" for difference in question.differences),
        *dict.fromkeys(difference.danger for difference in question.differences),
        f"The consent counts for {runs} with exactly this run spec (SHA-256 {question.spec_sha256}).",
    ]
    return "\n".join(lines)


def _agreed(question: Question) -> bool:
    """Asks on the terminal. Raises InvalidArgument if there is no terminal to ask on."""
    if not _is_terminal():
        raise InvalidArgument(field="--yes", problem="is needed where no terminal can ask; read the lines above first")
    return typer.confirm(f"Consent to run {question.run}?", default=False)


def _not_asked(consents: Consents, run: str, state_dir: Path) -> str:
    names = ", ".join(question.run for question in consents.questions()) or "none"
    return (
        f"the daemon of {state_dir} has not refused a run {json_text(run)} for want of consent; refused runs: {names}"
    )


def _withdrawn(run: str, number: int) -> str:
    if number == 0:
        return f"There is no consent to a run {json_text(run)}."
    return f"{number} consent{'s' if number > 1 else ''} withdrawn. The daemon refuses the next task of the run."


def _is_terminal() -> bool:
    return sys.stdin.isatty()
