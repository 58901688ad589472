"""The types that the tables of the run spec are made of: the class of a table, and the bounds of its values."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pluralllm.common.text.printable import check_group_name

YEAR_S = 366 * 86_400.0  # a later deadline has no use, and one far enough in the future is no valid date


def _without_nul(text: str) -> str:
    """Returns a text unchanged. Raises ValueError if the text has a NUL character, because PostgreSQL cannot store NUL."""
    if "\0" in text:
        raise ValueError("has a NUL character (U+0000); leave it out")
    return text


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=YEAR_S)]
Count = Annotated[int, Field(ge=1, le=10**9)]
# With every bound of a spec at its upper end, a model's chunk list still fits into one message.
Width = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NoNul = AfterValidator(_without_nul)
Name = Annotated[str, Field(min_length=1, max_length=200), NoNul]
GroupLabel = Annotated[str, AfterValidator(check_group_name)]


class SpecPart(BaseModel):
    """Base class for the tables of the run spec. An object cannot be changed, and an unknown key in a spec file is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
