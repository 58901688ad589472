"""Reads a file into a pydantic model. What a person got wrong in the file becomes one error, with a line for each problem."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pluralllm.common.errors.tree import InvalidConfig, InvalidSpec
from pluralllm.common.text.reading import Unreadable, read_toml
from pluralllm.common.words.problems import explain

Model = TypeVar("Model", bound=BaseModel)


def load_model(
    path: Path,
    model: type[Model],
    refusal: type[InvalidConfig] | type[InvalidSpec],
    read: Callable[[Path], Any] = read_toml,
) -> Model:
    """Returns the model that a file describes. read: reads the file's format.

    Raises `refusal` if the file cannot be read, or if a key or a value is not allowed.
    """
    try:
        return model.model_validate(read(path))
    except Unreadable as error:
        raise refusal(file=str(path), problems=f"  {error.problem}") from error
    except ValidationError as error:
        raise refusal(file=str(path), problems=explain(error)) from error
