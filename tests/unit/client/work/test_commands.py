"""Orders and results on the pipe: one end reads what the other end writes, and refuses anything else."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pluralllm.client.disclosure.measurements import MeasuredTraining
from pluralllm.client.work.command_loop import Action, CommandLoop
from pluralllm.client.work.commands import fields_of
from pluralllm.client.work.orders import EVALUATE, PREPARE, TRAIN, Evaluate, Prepare, Prepared, Train, TrainedUpdate
from pluralllm.common.errors.tree import WorkerDied
from pluralllm.common.words.ids import Digest
from pluralllm.common.words.spec import GroupRole

PREPARE_ORDER = Prepare("{}", Path("/a"), "a" * 64, "G", GroupRole.HELD_OUT, Path("/c"), None, "cpu", None)
TRAIN_ORDER = Train(Digest("5a"), Path("/base"), Path("/out"), 7, 3, Path("/optimizer"), Path("/residual"))


def over_the_pipe(fields: dict[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(fields))
    return read


@pytest.mark.parametrize(("command", "order"), [(PREPARE, PREPARE_ORDER), (TRAIN, TRAIN_ORDER)])
def test_an_order_arrives_as_it_was_given(command: Any, order: Any) -> None:
    assert command.read_order(over_the_pipe(fields_of(order))) == order


def test_a_loss_that_is_no_number_arrives() -> None:
    result = TrainedUpdate(Digest("5a"), 3, MeasuredTraining(math.nan, 0.5, 40, 12), 0)
    assert math.isnan(TRAIN.read_result(over_the_pipe(fields_of(result))).measured.loss)


def test_a_missing_field_is_named() -> None:
    fields = fields_of(TRAIN_ORDER)
    del fields["seed"]
    with pytest.raises(WorkerDied, match="the order 'train' cannot be read: seed: Field required"):
        TRAIN.read_order(fields)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(WorkerDied, match="the result of 'prepare' has the unknown field qestions"):
        PREPARE.read_result({"questions": 3, "device": "cpu", "qestions": 3})


def test_a_number_is_a_number_and_no_text_that_looks_like_one() -> None:
    with pytest.raises(WorkerDied, match="seed: Input should be a valid integer"):
        TRAIN.read_order({**fields_of(TRAIN_ORDER), "seed": "7"})


def test_a_value_of_another_type_is_refused_and_not_quoted() -> None:
    with pytest.raises(WorkerDied, match="seed: Input should be a valid integer") as refused:
        TRAIN.read_order({**fields_of(TRAIN_ORDER), "seed": "a private text"})
    assert "a private text" not in str(refused.value)


def test_a_command_that_a_worker_does_not_answer_is_refused_and_the_next_one_is_answered() -> None:
    answers = io.StringIO()
    loop = CommandLoop(answers, Action(PREPARE, lambda _report, order: Prepared(len(order.group), order.device)))
    loop.answer(1, "evaluate", fields_of(Evaluate(Digest("5a"), Path("/w"), 7)))
    loop.answer(2, "prepare", fields_of(PREPARE_ORDER))
    refusal, result = (json.loads(line) for line in answers.getvalue().splitlines())
    problem = "the command 'evaluate' is unknown; the worker answers prepare"
    assert refusal == {"id": 1, "error": ["WORKER_DIED", {"problem": problem}]}
    assert PREPARE.read_result(result["result"]) == Prepared(1, "cpu")


def test_what_both_ends_import_needs_neither_torch_nor_the_partners_identity() -> None:
    modules = ", ".join(f"pluralllm.client.work.{name}" for name in ("orders", "worker_process", "command_loop"))
    code = f"import sys, {modules}; sys.exit(any(m == 'torch' or '.joining' in m for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    assert EVALUATE.order is Evaluate
