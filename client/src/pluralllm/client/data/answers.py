"""The one function that gives a group's answers to all other code: to training, scoring, rewards and exports.

Answers that were released with noise are protected for ever: from then on this function refuses the true ones. The package
privacy makes the noised file; it reads the true answers by itself, and a test says that nobody else does.
"""

import hashlib
from pathlib import Path

from pluralllm.client.data.counted_question import is_countable
from pluralllm.client.data.private_data import read_counted, read_group
from pluralllm.common.errors.tree import AnswersProtected, DataChanged, InvalidData
from pluralllm.common.text.reading import not_opened
from pluralllm.common.words.questions import Question

LEDGER_SUFFIX = ".ledger"  # added to the name of a private file: the copy of the ledger of its releases


def read_answers(path: Path | str, sha256: str | None = None) -> tuple[Question, ...]:
    """Returns the questions of a file with a group's answers.

    sha256: the content that the file must have; None: any content, but no file whose answers were released with noise.
    Raises InvalidData if the file has problems; DataChanged if it has other content; AnswersProtected for a file whose noised
    answers must be used.
    """
    path = Path(path)  # Python programs may give a text
    ledger = ledger_beside(path)
    if ledger.exists():
        raise AnswersProtected(file=str(path), ledger=str(ledger))
    questions = read_group(path)
    if sha256 is not None and sha256_of(path) != sha256:
        raise DataChanged(file=str(path))
    return questions


def shows_respondents(path: Path) -> bool:
    """Returns whether a private file tells of how many people any of its answers are: only then can noise be added to them.

    Raises InvalidData if the file has problems.
    """
    return any(is_countable(question) for question in read_counted(path))


def ledger_beside(data: Path) -> Path:
    """Returns the path of the ledger's copy beside a private file. The copy exists once answers were released with noise.

    Beside a link to a private file there is no copy: the link is followed first.
    """
    file = data.resolve()
    return file.with_name(file.name + LEDGER_SUFFIX)


def sha256_of(path: Path) -> str:
    """Returns the hash of a file. Raises InvalidData if the file cannot be read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        problem = "  it is a pipe or a device; give a file, because the client reads it again before each task"
        raise InvalidData(file=str(path), problems=problem)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidData(file=str(path), problems=f"  {not_opened(path, error).problem}") from error
