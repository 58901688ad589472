"""A run spec from keyword arguments: a preset's values, with the caller's over them."""

from typing import Any

from pluralllm.api.arguments import names_arguments
from pluralllm.api.surveys import values_of
from pluralllm.common.words.spec import RunSpec
from pluralllm.operator.default_rounds import with_default_rounds


@names_arguments
def run_spec(preset: str = "default", *, plain_rounds: bool = False, **values: Any) -> RunSpec:
    """Returns a checked run spec with a preset's values, and the given ones over them.

    preset: default, attention, paper, fourier or sums. values: the keys of a spec file, such as rounds=5 or
    round={"min_clients": 4, "target_clients": 5}; a table has only the keys that differ from the preset. Without a model
    in the table `embedding`, texts are embedded by all-MiniLM-L6-v2. The run has private rounds if at least four clients are to
    train in each, as with `pluralllm run create`. plain_rounds: leaves such rounds plain.
    Raises InvalidSpec, which names key and allowed values, or InvalidArgument.
    """
    return with_default_rounds(*values_of({"preset": preset, **values}), plain=plain_rounds).spec
