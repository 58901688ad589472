"""The command `pluralllm-client support-bundle`: collects facts about a daemon for support, without private data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pluralllm.client.data.codebook import codebook_beside
from pluralllm.client.data.private_data import check_file
from pluralllm.client.data.private_texts import PrivateTexts
from pluralllm.client.disclosure.policy import load_policy
from pluralllm.client.doctor import checks_of
from pluralllm.client.process.config import ClientConfig
from pluralllm.common.errors.tree import InvalidArgument, InvalidData
from pluralllm.common.process.configuration import load_config
from pluralllm.common.process.console import say
from pluralllm.common.process.support_bundle import bundle_name, parts_of, write_bundle
from pluralllm.common.words.questions import Question

CHANGED = "data.not_released"  # the event in the daemon's log


def support_bundle(
    file: Annotated[Path | None, typer.Argument(help="The zip file to write; default: a name with the time.")] = None,
    log: Annotated[list[Path] | None, typer.Option(help="A log whose end is included as well; repeatable.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The daemon's TOML file.")] = None,
) -> None:
    """Gather versions, configuration, checks, metrics and the state's file names in one zip file, without keys or answers."""
    settings = load_config(ClientConfig, config, {})
    path = file or Path(bundle_name("pluralllm-client"))
    parts = {
        **parts_of(settings, config, settings.state_dir, lambda: checks_of(settings)),
        "policy.json": lambda: load_policy(settings.policy_file).model_dump(
            mode="json", exclude={"privacy": {"respondents"}}
        ),
        "data.json": lambda: _counts(settings.data),
        "state.json": lambda: list(_files(settings.state_dir, settings.data)),
    }
    private = PrivateTexts(_questions(settings.data, whole=bool(log)))
    write_bundle(path, parts, log or [], private.redacted, lambda text: private.redacted_log(_without_changes(text)))
    say(f"{path}: look through it before you send it")


def _counts(data: Path) -> dict[str, int]:
    """Returns the number of lines, questions and problems of the private file; not how many of the questions have answers."""
    checked = check_file(data)
    asked = len(checked.questions) + checked.unanswered
    return {"lines": checked.lines, "questions": asked, "problems": len(checked.problems)}


def _files(state: Path, data: Path) -> Iterator[dict[str, Any]]:
    """Yields name, size and time of the last change for each file in the state directory.

    data: the private file, which is left out like its codebook: a new size or time tells that an answer may have changed.
    """
    private = {data.resolve(), codebook_beside(data)}
    for path in sorted(state.rglob("*")):
        if path.is_file() and path.resolve() not in private:
            facts = path.stat()
            yield {"file": str(path.relative_to(state)), "bytes": facts.st_size, "changed_s": facts.st_mtime}


def _without_changes(text: str) -> str:
    """Returns a log without the lines that tell whether the private file has changed since the release of noised answers."""
    return "".join(line for line in text.splitlines(keepends=True) if CHANGED not in line)


def _questions(data: Path, *, whole: bool) -> tuple[Question, ...]:
    """Returns the questions of the private file, which must not appear in the bundle.

    whole: whether every question must be readable, because the bundle includes a log. If true, an unreadable question raises
    InvalidArgument. If false, unreadable questions are left out.
    """
    try:
        checked = check_file(data)
        problem = "" if not checked.problems else f"{data} has problems (pluralllm-client data check {data})"
    except InvalidData as error:
        checked, problem = None, str(error)
    if problem and whole:
        reason = f"cannot be looked through for private texts: {problem}. Mend that, or leave the logs out"
        raise InvalidArgument(field="--log", problem=reason)
    return () if checked is None else checked.questions + checked.not_answered
