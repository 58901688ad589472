"""A group's answers as a caller gives them: questions, or the path of a private file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pluralllm.client.data.answers import read_answers
from pluralllm.common.errors.tree import InvalidArgument
from pluralllm.common.process.environment import with_home
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec, load_spec_values
from pluralllm.common.words.usual_embedding import with_usual_embedding

Answers = Sequence[Question] | str | Path
Asked = Question | tuple[str, Sequence[str]]  # a question, or its text and its options
Spec = RunSpec | Mapping[str, Any] | str | Path


def answers_of(answers: Answers) -> tuple[Question, ...]:
    """Returns the questions with a group's answers. Raises InvalidData or AnswersProtected for a file, as read_answers does."""
    return read_answers(path_of("answers", answers)) if isinstance(answers, str | Path) else tuple(answers)


def path_of(argument: str, path: str | Path) -> Path:
    """Returns a path, with the home folder in place of ~. argument: its name, for the error.

    Raises InvalidArgument if the path begins with ~ and no home folder is known.
    """
    try:
        return with_home(Path(path))
    except ValueError as error:
        raise InvalidArgument(field=argument, problem=f"{path} {error}") from error


def question_of(asked: Asked) -> Question:
    """Returns a question that may be asked; without answers of its own, its shares are even and mean nothing.

    Raises InvalidArgument for a question with fewer than two options.
    """
    if isinstance(asked, Question):
        return asked
    text, options = asked[0], tuple(asked[1])
    if isinstance(asked[1], str) or len(options) < 2:
        raise InvalidArgument(field="questions", problem=f"{text!r} needs a list of at least 2 options")
    return Question(text, options, (1 / len(options),) * len(options))


def values_of(spec: Mapping[str, Any] | str | Path) -> tuple[dict[str, Any], str]:
    """Returns what a spec says, without the values of its preset, and its name for errors.

    A spec that names no embedding model gets the usual one, as with `pluralllm run create`.
    spec: values as in a spec file, or the path of the file. Raises InvalidSpec if the file cannot be read.
    """
    if isinstance(spec, Mapping):
        return with_usual_embedding(spec), "(values)"
    return with_usual_embedding(load_spec_values(path_of("spec", spec))), str(spec)
