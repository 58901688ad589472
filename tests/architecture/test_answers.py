"""A group's true answers have one way out: client/data/answers.py. Counts of answers stay where noise is added to them."""

import ast
from collections.abc import Iterable

import pytest
from architecture.source_trees import MODULES, imports, nodes_of, within

PRIVATE_FILE = "pluralllm.client.data.private_data"
# Function or class -> the modules outside the package client.data that may use it, with the reason.
MAY_USE = {
    f"{PRIVATE_FILE}.read_group": {"client.privacy.release"},  # of noised files only
    f"{PRIVATE_FILE}.read_counted": {
        "client.privacy.release",
        "client.data_commands",  # `data check --epsilon`, whose results stay on the terminal
        "client.plugin_command",  # an import, whose file is read once to refuse a wrong one
        "client.survey_commands",  # the noise that a release would add, shown after an import
        "client.doctor",  # whether numbers of respondents are there
    },
    f"{PRIVATE_FILE}.check_file": {
        "client.data_commands",
        "client.doctor",  # the number of problems
        "client.support_command",  # the texts, to take them out of logs
    },
    "pluralllm.client.data.counted_question.CountedQuestion": {"client.privacy.release", "client.privacy.forecast"},
}
# Objects of another kind that have an attribute of this name: candidates of a batch, and tallies of scores.
OTHER_COUNTS = {"common.rewards.rollout_batch", "experiment.summary"}


def reads_counts(nodes: Iterable[ast.AST]) -> bool:
    """True if the code reads an attribute `counts` of anything."""
    return any(isinstance(node, ast.Attribute) and node.attr == "counts" for node in nodes)


@pytest.mark.parametrize("name", MAY_USE)
def test_true_answers_are_read_by_nobody_else(name: str) -> None:
    users = {module for module in MODULES if name in imports(module) and not within(module, "client.data")}
    assert users <= MAY_USE[name]
    whole = {module for module in MODULES if name.rpartition(".")[0] in imports(module)}
    assert whole == set(), "import the functions by their names, so that this test sees which are used"


def test_counts_are_read_only_where_noise_is_added_to_them() -> None:
    readers = {module for module in MODULES if reads_counts(nodes_of(module))} - OTHER_COUNTS
    assert [
        module for module in readers if not within(module, "client.data") and not within(module, "client.privacy")
    ] == []
    assert reads_counts(ast.walk(ast.parse("total = sum(question.counts)")))
