"""Makes the predictor a transformers model, so that from_pretrained, save_pretrained, push_to_hub and AutoModel work with it.

No code is downloaded from the Hub.
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from pluralllm.align.model_folder import (
    CARD,
    CONFIG,
    FORMAT,
    PROVENANCE,
    WEIGHTS,
    check_weights,
    digest_of_all,
    weights_files,
    write_json,
)
from pluralllm.common import __version__
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.predictor.embedding import Embedder
from pluralllm.common.predictor.interface import Points, Prediction, PreferencePredictor
from pluralllm.common.predictor.model import new_predictor
from pluralllm.common.process.files import write_durably
from pluralllm.common.process.plugins import check_allowed
from pluralllm.common.text.printable import printable
from pluralllm.common.text.reading import read_json
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.embedding import Embedding
from pluralllm.common.words.predictors import NeuralProcess, parse_predictor
from pluralllm.common.words.problems import explain

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder", "proxies")


class PluralConfig(PretrainedConfig):  # type: ignore[misc]
    """Content of a model folder's config.json; `predictor` and `embedding` are copied from the run spec."""

    model_type = "pluralllm"

    def __init__(
        self,
        predictor: dict[str, Any] | None = None,
        embedding: dict[str, Any] | None = None,
        context_questions: int = 20,
        min_context: int = 1,
        weights_sha256: str = "",
        run: str = "",
        version: int = 0,
        context_gain: float | None = None,
        release: str = "",
        **others: Any,
    ) -> None:
        """Creates the configuration of a published model; a section that is missing gets its default.

        predictor, embedding: sections of the run spec. They are validated when a PluralPredictor is made of the configuration.
        context_questions: number of context questions that the model was scored with. min_context: least number of context
        questions for a prediction.
        weights_sha256: digest of the weights. run, version: name of the run and number of the model version.
        context_gain: context gain of the exported version; None if it was not measured, or if an earlier release has exported it.
        release: the release of PluralLLM that has exported the version.
        others: further settings of transformers.
        """
        self.predictor = predictor or NeuralProcess().model_dump(mode="json")
        self.embedding = embedding or Embedding(model="none", dimension=2).model_dump(mode="json")
        self.context_questions = context_questions
        self.min_context = min_context
        self.weights_sha256 = weights_sha256
        self.run = run
        self.version = version
        self.context_gain = context_gain
        self.release = release
        self.format = others.pop("format", FORMAT)
        super().__init__(**others)


class PluralPredictor(PreTrainedModel):  # type: ignore[misc]
    """Published model version as a transformers model.

    GroupReward and the command `score` use its attribute `predictor`. The parameters keep the names of the published file.
    """

    config_class = PluralConfig
    base_model_prefix = ""
    main_input_name = "context"
    _no_split_modules = ("EncoderLayer",)

    def __init__(self, config: PluralConfig) -> None:
        super().__init__(config)
        predictor = new_predictor(parse_predictor(config.predictor), Embedding(**config.embedding))
        for name, part in predictor.named_children():
            self.add_module(name, part)
        # Bypasses torch's __setattr__: a registered submodule would list the same parameters twice, under other names.
        object.__setattr__(self, "predictor", predictor)
        self.post_init()

    @property
    def contract(self) -> Embedding:
        """Embedding section of the run spec, which says how texts become the predictor's inputs.

        The section names the embedding model and the templates that the texts are put into.
        """
        return Embedding(**self.config.embedding)

    def checked_embedder(
        self, path: str | Path | None, cache: Path, device: torch.device, allow_embedder: str | None
    ) -> Embedder:
        """Returns the embedder that makes the predictor's inputs, after it has made the probes of the run spec.

        path: folder of the embedding model; None looks it up by its own name. cache: folder of embedded texts.
        allow_embedder: package whose code may make the vectors, NAME or NAME==VERSION; None allows none.
        Raises InvalidArgument if the model names another package's embedder that is not allowed; PluginMissing or PluginBroken
        if it cannot be used; ModelUnavailable or EmbeddingMismatch.
        """
        allowed = () if allow_embedder is None else (allow_embedder,)
        check_allowed(self.contract.plugin, allowed, "allow_embedder")
        embedder = Embedder(self.contract, None if path is None else Path(path), cache, device)
        embedder.check_probes()
        return embedder

    def forward(self, context: Points, shares: Tensor, targets: Points) -> Prediction:
        """Predicts the answers to the target questions from the answered context questions.

        PreferencePredictor.forward documents the shapes of the arguments. A model in half precision (bfloat16, float16)
        keeps its weights so, and computes in float32: its linear algebra exists in float32 only. Gradients reach the weights.
        """
        named = dict(self.predictor.named_parameters()) | dict(self.predictor.named_buffers())
        weights = {name: weight.float() if weight.is_floating_point() else weight for name, weight in named.items()}
        arguments = (_in_float32(context), shares.float(), _in_float32(targets))
        prediction: Prediction = torch.func.functional_call(self.predictor, weights, arguments)
        return prediction

    def in_full_precision(self) -> PreferencePredictor:
        """Returns the predictor with weights in float32: itself, or a copy if this model is in half precision."""
        predictor: PreferencePredictor = self.predictor
        if all(weight.dtype == torch.float32 for weight in predictor.parameters()):
            return predictor
        return copy.deepcopy(predictor).float()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Does nothing, because transformers must not overwrite the parameters' initial values.

        Loading a model replaces the initial values. A model that is not loaded keeps the initial values that torch drew.
        """

    @torch.no_grad()
    def _forget_absent(self, weights: Sequence[Path]) -> None:
        """Sets the parameters that a version does not have yet to 0. weights: the files of weights."""
        absent = set(self.predictor.may_be_absent)
        for file in weights:
            with safe_open(file, framework="pt") as stored:
                absent -= set(stored.keys())
        for name in absent:
            self.predictor.get_parameter(name).zero_()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *arguments: Any, **options: Any) -> Self:
        """Loads a model from a folder or the Hub after checking that the weights have the digest in config.json.

        options: those of transformers, such as dtype, variant, revision or token.
        Raises InvalidModel if the model is missing or has another format, or if its weights have another digest.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: options[key] for key in HUB_OPTIONS if key in options}
        try:
            config_path = _path(name, CONFIG, hub)
            config = read_json(config_path)
            files = weights_files(config, options.get("variant"))
            weights = [_path(name, file, hub) for file in files]
        except (OSError, ValueError) as error:
            problem = (
                f"{str(error).strip().splitlines()[0]} (a folder that pluralllm model export has written, or a Hub id)"
            )
            raise InvalidModel(folder=name, problem=problem) from error
        if not isinstance(config, dict):
            raise InvalidModel(folder=name, problem=f"its {CONFIG} is no JSON object; export or fetch it again")
        check_weights(config, weights, name)
        try:
            parse_predictor(config.get("predictor"))
            Embedding.model_validate(config.get("embedding"))
        except ValidationError as error:
            release = config.get("release", __version__)
            by = "" if release == __version__ else f"\n  release {printable(str(release))} of PluralLLM has exported it"
            problem = f"its predictor cannot be made:\n{explain(error)}{by}"
            raise InvalidModel(folder=name, problem=problem) from error
        model: Self = super().from_pretrained(name, *arguments, **options).eval()
        model._forget_absent(weights)
        if isinstance(model.config.dtype, torch.dtype):  # fixed first weights are float32, whatever was asked for
            model.to(model.config.dtype)
        model._folder = config_path.parent
        return model

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Writes a folder that from_pretrained can load; config.json gets the digests of all files of weights.

        options: those of transformers, such as max_shard_size (weights in several files) or variant (another file name).
        The model card and provenance.json are copied from the folder that this model was loaded from, if there is one.
        """
        folder = Path(save_directory)
        super().save_pretrained(folder, *arguments, **options)
        config = read_json(folder / CONFIG)
        digests = {path.name: manifest_of(path).digest for path in sorted(folder.glob("*.safetensors"))}
        config |= {"weights_sha256": digests.get(WEIGHTS) or digest_of_all(digests), "weights_files": digests}
        self.config.weights_files = digests
        write_durably(folder / CONFIG, write_json(config))
        source = getattr(self, "_folder", None)
        for file in (CARD, PROVENANCE):
            if source is not None and (source / file).is_file() and source.resolve() != folder.resolve():
                shutil.copyfile(source / file, folder / file)


class SequenceClassifier(PluralPredictor):
    """Refuses to be loaded: a trainer that takes a model's name for a reward, as TRL does, loads a classifier of texts."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *_: Any, **__: Any) -> Self:
        """Raises InvalidModel, which shows how to give a trainer the reward."""
        problem = (
            "it is no sequence classifier, because it needs a group's answers; give the trainer an object in place of the"
            ' name: reward_funcs=GroupReward(folder, {"My group": "answers.jsonl"}), from pluralllm.align'
        )
        raise InvalidModel(folder=str(pretrained_model_name_or_path), problem=problem)


def _in_float32(points: Points) -> Points:
    return Points(points.embeddings.float(), points.positions.float(), points.question, points.is_real)


def _path(name: str, file: str, hub: dict[str, Any]) -> Path:
    """Returns the local path of one file of a model, and downloads the file if it is on the Hub.

    name: folder or Hub id of the model. hub: options for the download, such as a token. Raises OSError if there is no such file.
    """
    path = cached_file(name, file, **hub)
    if path is None:
        raise FileNotFoundError(f"there is no {file} in it")
    return Path(path)


AutoConfig.register("pluralllm", PluralConfig, exist_ok=True)
AutoModel.register(PluralConfig, PluralPredictor, exist_ok=True)
AutoModelForSequenceClassification.register(PluralConfig, SequenceClassifier, exist_ok=True)
