"""An experiment's groups: read, checked against what the methods need, embedded once."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from pluralllm.client.importers import import_globalopinionqa
from pluralllm.common.data import GroupData, check_enough, group_data
from pluralllm.common.embedding import Embedder
from pluralllm.common.errors import InvalidData, TooFewQuestions
from pluralllm.common.questions import Question
from pluralllm.common.spec import RunSpec
from pluralllm.experiment.spec import Experiment

Groups = dict[str, GroupData]


def read_groups(experiment: Experiment) -> dict[str, tuple[Question, ...]]:
    """Every group's questions. Raises InvalidData: a file that is not there, an unknown group with the near names."""
    if not experiment.data.file.is_file():
        raise InvalidData(file=str(experiment.data.file), problems="  there is no such file")
    return {name: import_globalopinionqa(experiment.data.file, name) for name in experiment.data.groups}


def check_sizes(experiment: Experiment, questions: dict[str, tuple[Question, ...]]) -> None:
    """Before any work: enough questions for the largest context, with the numbers. Raises TooFewQuestions."""
    largest = max(experiment.scoring.contexts)
    for name, mine in questions.items():
        if len(mine) < largest + 1:
            use = f"a context of {largest} questions and at least 1 to predict"
            raise TooFewQuestions(group=name, usable=len(mine), needed=largest + 1, use=use)


def embed_groups(
    spec: RunSpec,
    questions: dict[str, tuple[Question, ...]],
    model_path: Path | None,
    cache: Path,
    device: torch.device,
    on_group: Callable[[str], None],
) -> Groups:
    """Raises ModelUnavailable, and TooFewQuestions where an episode of the method needs more."""
    embedder = Embedder(spec.embedding, model_path, cache, device)
    found: Groups = {}
    for name, mine in questions.items():
        on_group(name)
        found[name] = group_data(name, mine, embedder.embed_questions(mine, lambda _done, _all: None))
    for name in spec.groups.train:
        check_enough(found[name], len(found[name].split(spec.evaluation.holdout_share)[0]), spec.training.episodes)
    return found


def data_digest(questions: dict[str, tuple[Question, ...]]) -> str:
    """Over what was read, not over the file: the same answers give the same digest."""
    digest = hashlib.sha256()
    for name in sorted(questions):
        digest.update(name.encode())
        for question in sorted(questions[name], key=lambda q: q.id):
            digest.update(f"{question.id}{question.shares}".encode())
    return digest.hexdigest()
