"""Reads an experiment's groups, checks that they have enough questions for the methods, and embeds them once."""

import contextlib
import difflib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pluralllm.client.data.answers import read_answers
from pluralllm.client.data.importers import MAX_NAMES_SHOWN, import_globalopinionqa_groups
from pluralllm.client.work.embedding_pool import Piece, check_room, cut
from pluralllm.common.errors.tree import InvalidData, TooFewQuestions
from pluralllm.common.predictor.data import GroupData, check_enough, group_data
from pluralllm.common.predictor.embedding import Embedder, Progress
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.questions import Question
from pluralllm.common.words.spec import RunSpec
from pluralllm.experiment.spec import Data, Experiment

Groups = dict[str, GroupData]
Fill = Callable[[Embedder, Sequence[Piece], Progress], object]  # embeds what the cache lacks of the pieces
SUFFIXES = (".jsonl", ".parquet")  # of the private files in a folder
WHERE_FROM = """  It is global_opinions.csv of the data set GlobalOpinionQA (llm_global_opinions by Anthropic, arXiv 2306.16388).
  If you have it elsewhere: pluralllm experiment run EXPERIMENT.toml --data FILE, or make experiment DATA=FILE"""


def read_groups(experiment: Experiment) -> dict[str, tuple[Question, ...]]:
    """Returns the questions of each group in the experiment, by the group's name.

    Raises InvalidData if a file is missing or has problems, or if a group is unknown. For an unknown group the error lists
    similar names. Raises AnswersProtected for a private file whose answers were released with noise.
    """
    data = experiment.data
    if data.file is not None and not data.file.is_file():
        raise InvalidData(file=str(data.file), problems=f"  there is no such file\n{WHERE_FROM}")
    if data.file is not None:
        imported = import_globalopinionqa_groups(data.file, data.groups)
    else:
        files = {name: private_file_of(data, name) for name in data.groups}  # all are found before the first is read
        imported = {name: read_answers(file) for name, file in files.items()}
    return {
        name: tuple(sorted(questions, key=lambda q: q.id))[: data.max_questions] for name, questions in imported.items()
    }


def private_file_of(data: Data, name: str) -> Path:
    """Returns the private file of a group. Raises InvalidData, which says where the file was looked for, if there is none."""
    if isinstance(data.files, dict):
        path = data.files[name]
        if not path.is_file():
            problem = f"  there is no such file; the experiment's data.files names it for the group {name!r}"
            raise InvalidData(file=str(path), problems=problem)
        return path
    folder = data.files
    assert folder is not None  # the experiment names `file` or `files`
    if not folder.is_dir():
        problem = "  there is no such folder; the experiment's data.files names it"
        raise InvalidData(file=str(folder), problems=problem)
    there = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.is_file()}
    if name not in there:
        near = difflib.get_close_matches(name, sorted(there), n=MAX_NAMES_SHOWN, cutoff=0.4)
        names = ", ".join(near or sorted(there)[:MAX_NAMES_SHOWN]) or "nothing"
        problem = f"  no {name}.jsonl or {name}.parquet for the group {name!r}; near: {names} ({len(there)} in all)"
        raise InvalidData(file=str(folder), problems=problem)
    return there[name]


def check_sizes(experiment: Experiment, questions: dict[str, tuple[Question, ...]]) -> None:
    """Checks, before any training, that each group has enough questions for every context and for every method's episodes.

    Raises TooFewQuestions with the numbers of questions that a group has and needs.
    """
    for method in experiment.methods:
        spec = experiment.run_spec(method, experiment.seeds[0])
        scored = experiment.scored_groups(method)
        for name in (*experiment.training_groups(method), *experiment.data.validation, *experiment.data.test):
            group_questions, largest = questions[name], max(experiment.contexts_of(name))
            held_out = sum(map(spec.held_out.includes, group_questions))
            if experiment.data.part_of(name) == "train":
                trained = len(group_questions) - held_out
                check_enough(name, trained, spec.training.episodes)
                if name not in scored:
                    continue
                _need(name, trained, largest, f"a context of {largest} questions that it trains on")
                _need(name, held_out, 1, "scoring on questions that nobody trains on")
            else:
                use = f"a context of {largest} questions and at least 1 to predict (or scoring.without)"
                _need(name, len(group_questions), largest + 1, use)


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
    """Embeds every group's questions, or reads the vectors from the cache. Raises ModelUnavailable if there is no model.

    model_path: folder of the embedding model; None: the model is looked up by the name in the run spec.
    on_group: is called before each group with the number of embedded groups and the number of all groups.
    """
    embedder = Embedder(spec.embedding, model_path, cache, device)
    embedded: Groups = {}
    try:
        for number, (name, group_questions) in enumerate(questions.items()):
            on_group(number, len(questions))
            embedded[name] = group_data(
                name, group_questions, embedder.embed_questions(group_questions, lambda _done, _all: None)
            )
    finally:
        embedder.close()
    return embedded


def fill_cache(
    contract: Embedding,
    questions: dict[str, tuple[Question, ...]],
    where: tuple[Path | None, Path, torch.device],
    fill: Fill,
    on_text: Progress,
) -> None:
    """Fills the cache with the vectors of all groups' texts. `embed_groups` then only reads.

    A piece has new texts of one group, as `embed_groups` embeds them. So an empty cache gets the same vectors by both.
    where: the folder of the embedding model or None, the cache, and the device. fill: embeds the pieces.
    on_text: reports the number of texts done.
    """
    with contextlib.closing(Embedder(contract, *where)) as embedder:
        pieces: list[Piece] = []
        seen: set[str] = set()
        for group_questions in questions.values():
            texts = [text for text in dict.fromkeys(embedder.texts_of(group_questions)) if text not in seen]
            seen.update(texts)
            pieces += [Piece(len(pieces) + number, piece.texts) for number, piece in enumerate(cut(texts), 1)]
        check_room(embedder, pieces)
        fill(embedder, pieces, on_text)


def embedding_digest(groups: Groups) -> str:
    """Returns the digest of all embedding vectors.

    The digest changes with the embedding model and with the arithmetic of the device.
    """
    digest = hashlib.sha256()
    for name in sorted(groups):
        digest.update(name.encode())
        digest.update(groups[name].embeddings.tobytes())
    return digest.hexdigest()


def data_digest(questions: dict[str, tuple[Question, ...]]) -> str:
    """Returns the digest of the ids, stated keys and answers of all groups' questions; the file's format changes nothing."""
    digest = hashlib.sha256()
    for name in sorted(questions):
        digest.update(name.encode())
        for question in sorted(questions[name], key=lambda q: q.id):
            digest.update(f"{question.id}{question.shares}".encode())
            if question.stated_key is not None:
                digest.update(question.key.encode())
    return digest.hexdigest()
