"""The check of a masked update's file. The numbers of the file look random, so only its form can be seen."""

from pathlib import Path

from pluralllm.common.weights.layout import check_header
from pluralllm.common.weights.update_format import UpdateFormat


def check_masked(path: Path, form: UpdateFormat) -> None:
    """Checks names, shapes, dtypes and size of a masked update's file. Its numbers look random, so nothing else can be checked.

    form: the format that the file must have. Raises WrongLayout if the file has another format.
    """
    check_header(path, form.header, form.size_bytes)
