"""The table [privacy] of a run spec: the bound that the spec demands on what releases tell about one respondent."""

from typing import Annotated, Literal

from pydantic import Field

from pluralllm.common.words.spec_part import SpecPart


class PrivacyDemand(SpecPart):
    """The bound on what may be told about one respondent. A client takes part only if its answers were released within it.

    The client compares the bound with its own ledger. The coordinator cannot check what the client says.
    """

    # The most that all releases of the client together may tell about one respondent.
    respondents_epsilon: Annotated[float, Field(gt=0, le=1000)]
    # The client's loss is computed at this delta.
    delta: Annotated[float, Field(gt=0, le=0.1)]
    # The bound is about one person, with everything that this person has answered.
    unit: Literal["respondent"]
