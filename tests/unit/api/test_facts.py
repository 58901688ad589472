"""The model versions of a run, made from its rounds."""

from typing import Any

from pluralllm.api.facts import Model, model_name, models


def round_of(number: int, version: int | None, *clients: str) -> dict[str, Any]:
    receipts = [{"client": client} for client in clients]
    return {"name": f"runs/r/rounds/{number}", "version": version, "receipts": receipts}


def test_each_round_that_was_not_abandoned_has_made_a_model() -> None:
    rounds = [round_of(3, 2, "bob"), round_of(2, None, "ann"), round_of(1, 1, "ann", "bob")]
    assert models("r", rounds) == [Model("r", 0, 0, ()), Model("r", 1, 1, ("ann", "bob")), Model("r", 2, 3, ("bob",))]


def test_no_version_is_the_current_one() -> None:
    assert (str(model_name("r", None)), str(model_name("r", 0))) == ("runs/r/models/-", "runs/r/models/0")
