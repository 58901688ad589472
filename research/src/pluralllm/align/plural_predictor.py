"""The predictor as transformers knows models: from_pretrained, save_pretrained, push_to_hub, AutoModel. No remote code."""

import json
import shutil
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from pluralllm.align.model_folder import CARD, CONFIG, FORMAT, PROVENANCE, WEIGHTS, check_weights, write_json
from pluralllm.common.errors.tree import InvalidModel
from pluralllm.common.predictor.model import Prediction, PreferencePredictor
from pluralllm.common.process.files import write_durably
from pluralllm.common.weights.chunks import manifest_of
from pluralllm.common.words.spec import Embedding, Predictor

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token", "subfolder", "proxies")


class PluralConfig(PretrainedConfig):  # type: ignore[misc]
    """config.json of a model folder; `predictor` and `embedding` are those parts of the run spec."""

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
        **others: Any,
    ) -> None:
        """Raises pydantic's ValidationError for parts that no run spec could have."""
        self.predictor = predictor or Predictor().model_dump(mode="json")
        self.embedding = embedding or Embedding(model="none", dimension=2).model_dump(mode="json")
        self.context_questions = context_questions
        self.min_context = min_context
        self.weights_sha256 = weights_sha256
        self.run = run
        self.version = version
        self.format = others.pop("format", FORMAT)
        super().__init__(**others)


class PluralPredictor(PreTrainedModel):  # type: ignore[misc]
    """A published version. `predictor` is what GroupReward and scoring work with; parameters have the published names."""

    config_class = PluralConfig
    base_model_prefix = ""
    main_input_name = "context"
    _no_split_modules = ("EncoderLayer",)

    def __init__(self, config: PluralConfig) -> None:
        super().__init__(config)
        made = PreferencePredictor(Predictor(**config.predictor), Embedding(**config.embedding))
        self.embedder, self.layers, self.head = made.embedder, made.layers, made.head
        # Not as a module of its own: its parameters are these, under these names.
        object.__setattr__(self, "predictor", made)
        self.post_init()

    @property
    def contract(self) -> Embedding:
        """Of the embedding model whose vectors it reads."""
        return Embedding(**self.config.embedding)

    def forward(self, context: Tensor, shares: Tensor, mask: Tensor, targets: Tensor) -> Prediction:
        """See PreferencePredictor.forward for shapes."""
        found: Prediction = self.predictor(context, shares, mask, targets)
        return found

    def _init_weights(self, module: torch.nn.Module) -> None:
        """First values are those of a run's version 0; a model that is not loaded keeps torch's."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *arguments: Any, **options: Any) -> Self:
        """From a folder or the Hub, verified before it is loaded.

        Raises InvalidModel: not there, another format, weights that are not the configuration's.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: options[key] for key in HUB_OPTIONS if key in options}
        try:
            config_path, weights = (_path(name, file, hub) for file in (CONFIG, WEIGHTS))
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problem = (
                f"{str(error).strip().splitlines()[0]} (a folder that pluralllm model export has written, or a Hub id)"
            )
            raise InvalidModel(folder=name, problem=problem) from error
        check_weights(config, weights, name)
        found: Self = super().from_pretrained(name, *arguments, **options).eval()
        found._folder = config_path.parent
        return found

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """A folder that from_pretrained takes: the digest is that of what is written now; card and provenance come along."""
        folder = Path(save_directory)
        super().save_pretrained(folder, *arguments, **options)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["weights_sha256"] = manifest_of(folder / WEIGHTS).digest
        write_durably(folder / CONFIG, write_json(config))
        source = getattr(self, "_folder", None)
        for file in (CARD, PROVENANCE):
            if source is not None and (source / file).is_file() and source.resolve() != folder.resolve():
                shutil.copyfile(source / file, folder / file)


def _path(name: str, file: str, hub: dict[str, Any]) -> Path:
    """Of a folder's or the Hub's file. Raises OSError."""
    found = cached_file(name, file, **hub)
    if found is None:
        raise FileNotFoundError(f"there is no {file} in it")
    return Path(found)


AutoConfig.register("pluralllm", PluralConfig, exist_ok=True)
AutoModel.register(PluralConfig, PluralPredictor, exist_ok=True)
