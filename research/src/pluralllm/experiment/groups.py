"""An experiment's groups: read, checked against what the methods need, embedded once."""

import hashlib
from pathlib import Path

import torch

from pluralllm.client.data.importers import import_globalopinionqa
from pluralllm.common.errors.tree import InvalidData, TooFewQuestions
from pluralllm.common.predictor.data import GroupData, check_enough, group_data
from pluralllm.common.predictor.embedding import Embedder, Progress
from pluralllm.common.words.questions import Question, is_held_out
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.spec import Experiment

Groups = dict[str, GroupData]


def read_groups(experiment: Experiment) -> dict[str, tuple[Question, ...]]:
    """Every group's questions. Raises InvalidData: a file that is not there, an unknown group with the near names."""
    if not experiment.data.file.is_file():
        raise InvalidData(file=str(experiment.data.file), problems="  there is no such file")
    found = {name: import_globalopinionqa(experiment.data.file, name) for name in experiment.data.groups}
    return {
        name: tuple(sorted(mine, key=lambda q: q.id))[: experiment.data.max_questions] for name, mine in found.items()
    }


def check_sizes(experiment: Experiment, questions: dict[str, tuple[Question, ...]]) -> None:
    """Before any work: enough questions for every context and for an episode of every method, with the numbers.

    Raises TooFewQuestions.
    """
    for method in experiment.methods:
        spec = experiment.run_spec(method, experiment.seeds[0])
        for name, mine in questions.items():
            largest = max(experiment.contexts_of(name))
            held_out = sum(is_held_out(question.id, spec.evaluation.holdout_share) for question in mine)
            if experiment.data.part_of(name) == "train":
                trained = len(mine) - held_out
                check_enough(name, trained, spec.training.episodes)
                _need(name, trained, largest, f"a context of {largest} questions that it trains on")
                _need(name, held_out, 1, "scoring on questions that nobody trains on")
            else:
                use = f"a context of {largest} questions and at least 1 to predict (or scoring.without)"
                _need(name, len(mine), largest + 1, use)


def _need(group: str, usable: int, needed: int, use: str) -> None:
    if usable < needed:
        raise TooFewQuestions(group=group, usable=usable, needed=needed, use=use)


def embed_groups(
    spec: RunSpec,
    questions: dict[str, tuple[Question, ...]],
    model_path: Path | None,
    cache: Path,
    device: torch.device,
    on_group: Progress,
) -> Groups:
    """Raises ModelUnavailable."""
    embedder = Embedder(spec.embedding, model_path, cache, device)
    found: Groups = {}
    try:
        for number, (name, mine) in enumerate(questions.items()):
            on_group(number, len(questions))
            found[name] = group_data(name, mine, embedder.embed_questions(mine, lambda _done, _all: None))
    finally:
        embedder.close()
    return found


def embedding_digest(groups: Groups) -> str:
    """Over every vector: another embedding model, or other arithmetic, gives another digest."""
    digest = hashlib.sha256()
    for name in sorted(groups):
        digest.update(name.encode())
        digest.update(groups[name].embeddings.tobytes())
    return digest.hexdigest()


def data_digest(questions: dict[str, tuple[Question, ...]]) -> str:
    """Over what was read, not over the file: the same answers give the same digest."""
    digest = hashlib.sha256()
    for name in sorted(questions):
        digest.update(name.encode())
        for question in sorted(questions[name], key=lambda q: q.id):
            digest.update(f"{question.id}{question.shares}".encode())
    return digest.hexdigest()
