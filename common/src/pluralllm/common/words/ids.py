"""Distinct types for ids and numbers, so that mypy reports a round number where a model version is expected."""

import re
from typing import NewType

RunId = NewType("RunId", str)
ClientId = NewType("ClientId", str)
GroupName = NewType("GroupName", str)
RoundNumber = NewType("RoundNumber", int)
ModelVersion = NewType("ModelVersion", int)
# The text of a TaskName (names.py). A client keeps this text as it is and never takes it apart.
TaskId = NewType("TaskId", str)
# A SHA-256 in lower-case hex. The digest of a blob is computed over the concatenated hashes of its chunks.
Digest = NewType("Digest", str)

# Ids become file names and resource names (aip.dev/122), so their alphabet is small.
ID = "[a-z][a-z0-9-]{0,39}"
ID_PATTERN = f"^{ID}$"
ID_HELP = "1 to 40 of a-z, 0-9 and '-', the first a letter"


def is_id(text: str) -> bool:
    """Returns whether a text has the form of a run's or client's id.

    An id has 1 to 40 characters. Each character is a-z, 0-9 or '-'; the first character is a letter.
    """
    return re.fullmatch(ID_PATTERN, text) is not None
