"""The worker process, which trains: `python -m pluralllm.client.work.worker`. The daemon starts it and sends it orders.

Tensors travel as files, never in messages.
"""

import gc
import signal

if __name__ == "__main__":  # before all imports that take a moment
    # A service manager sends its signals to all processes of a service. The daemon acts on them: it opens its log anew, or it
    # stops the work, reports that, and closes this process's standard input.
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # for the imports, as common/process/imports.py explains

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pluralllm.client.data.answers import read_answers
from pluralllm.client.disclosure.measurements import MeasuredScores, MeasuredTraining
from pluralllm.client.disclosure.outgoing import DECIMALS
from pluralllm.client.work.command_loop import Action, Report, answer_commands
from pluralllm.client.work.embedding_notes import keep_notes
from pluralllm.client.work.masking import mask_update
from pluralllm.client.work.orders import (
    EVALUATE,
    MASK,
    PREPARE,
    REWARD,
    TRAIN,
    Evaluate,
    Mask,
    Masked,
    Prepare,
    Prepared,
    Reward,
    Rewards,
    Train,
    TrainedUpdate,
)
from pluralllm.client.work.sums import GroupTerms, answer_sums
from pluralllm.client.work.train import evaluate, evaluation_episode, pick_device, reward_context, train
from pluralllm.common.errors.tree import PolicyForbids
from pluralllm.common.predictor.data import GroupData, check_enough, group_data
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.group_predictor import GroupPredictor
from pluralllm.common.predictor.model import load_weights, new_predictor
from pluralllm.common.rewards.rollout_batch import read_rollouts
from pluralllm.common.weights.layout import rewards_layout, tensors_of, write_weights
from pluralllm.common.words.spec import GroupRole, RunSpec, parse_spec


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run's spec, with the group's embedded data, the group's role and the device to train on."""

    spec: RunSpec
    data: GroupData
    role: GroupRole
    device: torch.device
    terms: GroupTerms | None = None  # of a group that trains in a run whose updates are terms of sums
    not_seen: tuple[str, ...] = ()  # by the embedding model, as Prepared names it


@dataclass(frozen=True, slots=True)
class Scorer:
    """A predictor for rewards, loaded from one file of weights, and the context questions that it predicts from."""

    weights: Path
    context_seed: int
    predictor: GroupPredictor
    context_questions: int


class LocalWork:
    """Carries out the orders of one client. The embedded data of one run stay in memory between orders."""

    def __init__(self) -> None:
        self._runs: dict[str, PreparedRun] = {}  # by the spec's SHA-256; one at most
        self._data_sha256 = ""  # of the private file that its data are from
        self._embedder: Embedder | None = None  # of the prepared run, if it asks for rewards
        self._scorer: Scorer | None = None

    def prepare(self, report: Report, order: Prepare) -> Prepared:
        """Reads, checks and embeds the private data for one run. Does nothing if this run is prepared already.

        Raises DataChanged if the private file does not have the content that the daemon has announced.
        """
        key = hashlib.sha256(order.spec_json.encode()).hexdigest()
        if key not in self._runs or self._data_sha256 != order.data_sha256:
            self._runs, self._data_sha256 = {key: self._read(report, order)}, order.data_sha256
        run = self._runs[key]
        return Prepared(len(run.data.questions), str(run.device), run.not_seen)

    def _read(self, report: Report, order: Prepare) -> PreparedRun:
        spec = parse_spec(order.spec_json.encode(), "of the run")
        if order.threads is not None:
            torch.set_num_threads(order.threads)
        device = pick_device(order.device)
        if spec.embedding.plugin is None:
            check_names_no_path(spec.embedding.model, order.model_path)
        questions = read_answers(order.data, order.data_sha256)
        self._close()
        self._embedder = embedder = Embedder(spec.embedding, order.model_path, order.cache, device)
        embedder.check_probes()
        embedded = embedder.embed_questions(questions, lambda done, total: report("embedding", done, total))
        data = group_data(order.group, questions, embedded)
        not_seen = embedder.blindness.kinds()
        keep_notes(order.cache, order.data, spec.embedding.model, not_seen)
        if spec.rewards is None:
            self._close()
            evaluation_episode(spec, data, order.role, 0)
            if order.role is GroupRole.TRAIN:
                usable, _ = data.split(spec.held_out)
                check_enough(order.group, len(usable), spec.training.episodes)
        trains = spec.sums is not None and order.role is GroupRole.TRAIN
        terms = GroupTerms(spec, data, device) if trains else None
        return PreparedRun(spec, data, order.role, device, terms, not_seen)

    def train(self, report: Report, order: Train) -> TrainedUpdate:
        """Trains for one round, and writes the update to the order's file `out`."""
        run = self._runs[order.spec_sha256]
        if run.terms is not None:
            trained = answer_sums(
                order.base, order.out, run.spec, run.terms, lambda done, total: report("training", done, total)
            )
        else:
            trained = train(
                order.base,
                order.out,
                run.spec,
                run.data,
                order.seed,
                (order.round_number - 1) * run.spec.training.local_steps,
                run.device,
                order.optimizer_state,
                order.residual,
                lambda done, total: report("training", done, total),
            )
        return TrainedUpdate(
            digest=trained.manifest.digest,
            examples=trained.examples,
            measured=MeasuredTraining(
                loss=trained.mean_loss,
                base_distance=trained.base_distance,
                target_questions=trained.target_questions,
                first_target_questions=trained.first_target_questions,
            ),
            gpu_memory_bytes=torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else 0,
        )

    def mask(self, report: Report, order: Mask) -> Masked:
        """Masks an update for a private round, and writes it to the order's file `out`."""
        return mask_update(order, lambda done, total: report("masking", done, total))

    def reward(self, report: Report, order: Reward) -> Rewards:
        """Predicts the group's share for each candidate of each prompt, and writes the shares to the order's file `out`.

        The predictions start from a seeded selection of the group's answers.
        """
        run = self._runs[order.spec_sha256]
        assert run.spec.rewards is not None
        batch = read_rollouts(order.rollouts_json.encode(), run.spec.rewards.max_candidates)
        scorer = self._scorer_of(run, order)
        report("scoring", 0, len(batch))
        answers = scorer.predictor.predict([rollout.to_question() for rollout in batch])
        report("scoring", len(batch), len(batch))
        shares = np.concatenate([answer.shares for answer in answers]).clip(0, 1).round(DECIMALS)
        manifest = write_weights(order.out, rewards_layout(shares.size), [shares])
        return Rewards(manifest.digest, scorer.context_questions)

    def _scorer_of(self, run: PreparedRun, order: Reward) -> Scorer:
        scorer = self._scorer
        if scorer is None or (scorer.weights, scorer.context_seed) != (order.weights, order.context_seed):
            assert self._embedder is not None
            model = new_predictor(run.spec.predictor, run.spec.embedding)
            load_weights(model, tensors_of(order.weights))
            context = reward_context(run.spec, run.data, order.context_seed)
            min_context = run.spec.training.episodes.min_context
            predictor = GroupPredictor(model, self._embedder, run.data.group, context, run.device, min_context)
            scorer = self._scorer = Scorer(order.weights, order.context_seed, predictor, len(context))
        return scorer

    def _close(self) -> None:
        """Frees the embedding model and the predictor, which stay in memory only for a run that asks for rewards."""
        if self._embedder is not None:
            self._embedder.close()
        self._embedder = self._scorer = None

    def evaluate(self, report: Report, order: Evaluate) -> MeasuredScores:
        """Scores a model version on the group's own answers. The result does not contain the answers."""
        run = self._runs[order.spec_sha256]
        evaluation = evaluate(
            order.weights,
            run.spec,
            run.data,
            run.role,
            run.device,
            lambda done, total: report("evaluating", done, total),
            order.context_seed,
        )
        alignment = evaluation.alignment
        return MeasuredScores(
            alignment_score=alignment.score,
            context_gain=evaluation.context_gain,
            wasserstein_score=alignment.wasserstein,
            questions=alignment.questions // run.spec.evaluation.draws,
            scale_questions=alignment.ordinal_questions // run.spec.evaluation.draws,
        )


def check_names_no_path(model: str, own_folder: Path | None) -> None:
    """Checks that a run spec's embedding model does not name a file or folder of this machine.

    The library that loads the model would otherwise prefer a folder in the working directory to the model with this id.
    model: the model id in the run spec. own_folder: the folder that the partner has configured; None if there is none.
    Raises PolicyForbids if the id is also a path and the partner has configured no folder.
    """
    if own_folder is None and Path(model).exists():
        allowed = "a model id; this is also a path on this machine, so the partner must set embedding_model_path"
        raise PolicyForbids(key="allowed_embedding_models", asked=model, allowed=allowed)


def main() -> None:
    """Answers the daemon's orders until the daemon ends."""
    gc.freeze()
    gc.enable()
    os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA's own condition for repeatable matrix products
    work = LocalWork()
    answer_commands(
        Action(PREPARE, work.prepare),
        Action(TRAIN, work.train),
        Action(MASK, work.mask),
        Action(REWARD, work.reward),
        Action(EVALUATE, work.evaluate),
    )


if __name__ == "__main__":
    main()
