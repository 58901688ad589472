"""Tables as pandas data frames. pandas is an extra, because only people who want such tables need it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pluralllm.common.process.extras import need_frames

if TYPE_CHECKING:
    from pandas import DataFrame


def frame_of(rows: Iterable[Mapping[str, Any]]) -> "DataFrame":
    """Returns rows as a data frame, whose columns are the rows' keys. Raises ExtraMissing if pandas is not installed."""
    need_frames()
    import pandas as pd  # noqa: PLC0415 - of the extra

    return pd.DataFrame([dict(row) for row in rows])
