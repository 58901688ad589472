"""Turns a task into an order for the worker process: adds this machine's paths, its device and the private file."""

from collections.abc import Mapping
from pathlib import Path

from pluralllm.client.data.private_file import PrivateFile
from pluralllm.client.disclosure.seeds import Seeds
from pluralllm.client.joining.partner import Partner
from pluralllm.client.keeping.drafts import Drafts
from pluralllm.client.link.tasks import Task
from pluralllm.client.private_rounds.masking import MaskingSecrets
from pluralllm.client.process.config import ClientConfig
from pluralllm.client.work.orders import Evaluate, Mask, Prepare, Reward, Train
from pluralllm.common.private_rounds.sum_files import ring_of
from pluralllm.common.words.own_weights import own_weight
from pluralllm.common.words.spec import RunSpec


class WorkOrders:
    """Makes the orders for one client's worker process. The methods only return values: they touch no file and no process."""

    def __init__(
        self, config: ClientConfig, partner: Partner, state: Path, drafts: Drafts, seeds: Seeds, data: PrivateFile
    ) -> None:
        self._config, self._partner, self._drafts, self._seeds, self._data = config, partner, drafts, seeds, data
        self._cache = (config.cache_dir or state / "cache").absolute()

    def prepare(self, spec: RunSpec, spec_json: bytes) -> Prepare:
        """Returns the order to prepare a run: to read, check and embed the private data.

        spec_json: the canonical JSON of `spec`. If the run spec gives this group a role, the order has that role; otherwise the
        order has the role in the partner's identity.
        """
        config, partner = self._config, self._partner
        model_path = config.embedding_model_path
        return Prepare(
            spec_json=spec_json.decode(),
            data=self._data.path.absolute(),
            data_sha256=self._data.sha256,
            group=partner.group,
            role=spec.groups.role_of(partner.group, partner.role) or partner.role,
            cache=self._cache,
            model_path=model_path.absolute() if model_path else None,
            device=config.device,
            threads=config.threads,
        )

    def train(self, task: Task, base: Path, round_seed: int | None = None) -> Train:
        """Returns the order to train, and to write the update to the draft file (`Drafts.delta`).

        base: file of the weights that the training starts from. round_seed: in a private round, the seed that follows from the
        round's secret; None in every other round.
        """
        seed = self._seeds.of_training(task.run, task.name, task.seed) if round_seed is None else round_seed
        return Train(
            spec_sha256=task.spec_sha256,
            base=base,
            out=self._drafts.delta,
            seed=seed,
            round_number=task.round,
            optimizer_state=self._drafts.optimizer_state(task.run),
            residual=self._drafts.residual(task.run),
        )

    def mask(
        self,
        spec: RunSpec,
        examples: int,
        metrics: Mapping[str, float],
        members: int,
        secrets: MaskingSecrets,
        factor: float = 1.0,
        score: float | None = None,
    ) -> Mask:
        """Returns the order to mask the draft of an update, and to write it to its own draft file (`Drafts.masked`).

        examples: number of questions behind the update. metrics: numbers of the training that may leave this machine, by name.
        members: number of members of the private round. secrets: of the masking. factor: of a fairness-aware weight.
        score: of the base version; None to leave it out of the sum.
        """
        ring, aggregation = ring_of(spec, members), spec.aggregation
        counted = max(1, min(examples, aggregation.max_examples))
        return Mask(
            delta=self._drafts.delta,
            out=self._drafts.masked,
            members=members,
            clip_norm=ring.clip_norm,
            most_weight=ring.most_weight,
            weight=counted if ring.adds_terms else own_weight(aggregation, examples, factor),
            most_metric_weight=aggregation.max_examples,
            metric_weight=counted,
            # The factors of the next round are relative to the plain mean, as in plain rounds.
            distance_weight=aggregation.max_examples if aggregation.is_fair else counted,
            loss=metrics.get("loss"),
            base_distance=metrics.get("base_distance"),
            score=score,
            streams=tuple((key.hex(), sign) for key, sign in secrets.streams),
            rounding=secrets.rounding.hex(),
            is_term=ring.adds_terms,
        )

    def reward(self, task: Task, spec: RunSpec, weights: Path, rollouts_json: bytes) -> Reward:
        """Returns the order to score a batch of rollouts, and to write the rewards to the draft file (`Drafts.delta`).

        weights: file of the model version that scores. rollouts_json: the batch, as JSON text.
        """
        return Reward(
            spec_sha256=task.spec_sha256,
            weights=weights,
            rollouts_json=rollouts_json.decode(),
            out=self._drafts.delta,
            context_seed=self._seeds.of_rewards(task.base_digest, spec.seed),
        )

    def evaluate(self, task: Task, spec: RunSpec, weights: Path) -> Evaluate:
        """Returns the order to score the model version in the file `weights`."""
        return Evaluate(task.spec_sha256, weights, self._seeds.of_contexts(task.run, spec.seed))
