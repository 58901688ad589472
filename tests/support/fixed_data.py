"""A private file that never changes and is on no disk, for daemons whose worker reads nothing."""

from pathlib import Path

from pluralllm.client.data.private_file import Answers, Content, PrivateFile


class FixedData(PrivateFile):
    """Announces a number of questions, always the same content."""

    def __init__(self, questions: int, path: Path = Path("answers.jsonl")) -> None:
        self._answers, self._content, self.changed_s = Answers(path), Content("a" * 64, questions), None

    def has_changed(self) -> bool:
        """Returns False: the content never changes."""
        return False

    def check(self) -> None:
        """Accepts the content."""
