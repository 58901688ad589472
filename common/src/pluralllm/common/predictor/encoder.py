"""Turns texts into vectors with a transformer: the vector of a text is the mean of its tokens' last hidden states.

In a causal model, the hidden states of a text's beginning do not depend on the tokens that follow. So texts with a common
beginning (one prompt, several answers) can share the computation of the beginning. The beginning is encoded once, and each
text's end uses the attention keys and values of the beginning. (arXiv 2503.09925 embeds each answer together with the whole
prompt.) Not every model allows a shared beginning, so the encoder tests each model after loading.

Shapes: R texts in a batch, S tokens in the longest text, F families in a batch, w numbers in a hidden state. A family is a
set of texts with a common beginning.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.errors.tree import ModelUnavailable
from pluralllm.common.process.imports import without_collecting

BATCH_TOKENS = 8_192  # tokens in one forward pass, padding included
SHORTEST_PREFIX = 8  # tokens; for a shorter prefix, the extra pass costs more than it saves
# With bf16, the other order of sums changes vectors slightly. If a prefix depends on what follows, the cosine is far lower.
SAME_COSINE = 0.9999
TRIAL_TEXTS = tuple(
    f"How satisfied are you with the way democracy is working in your country? A. {answer}"
    for answer in ("Very", "Not at all satisfied", "Do not know")
)

Tokens = tuple[int, ...]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Family:
    """A set of texts that begin with the same tokens, the prefix. A family of one text has an empty prefix."""

    prefix: Tokens
    members: tuple[int, ...]  # numbers of the texts
    suffixes: tuple[Tokens, ...]  # the tokens of each member after the prefix


class Encoder:
    """A transformer with its tokenizer, on one device. The encoder turns texts into vectors."""

    def __init__(self, source: str, revision: str, max_tokens: int, device: torch.device) -> None:
        """Loads the model and tests whether texts may share the computation of a common prefix.

        source: a model id, or a local folder. revision: the version of the model, if `source` is an id.
        max_tokens: the greatest number of tokens of a text; a longer text is cut.
        Raises ModelUnavailable if the model cannot be loaded.
        """
        self.truncated = 0  # number of texts that were cut at max_tokens
        self._max_tokens = max_tokens
        self._device = device
        self._tokenizer, self._model = _load(source, revision, device)
        self.shares_prefixes = self._try_prefixes()

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[list[str], Vectors]]:
        """Yields the texts in batches, each batch with its vectors. The order differs from the order of `texts`.

        Shapes: vectors (R, w) float32, not normalized, with R texts in the batch and w numbers in a hidden state.
        """
        tokens = self._tokenize(texts)
        families = families_of(tokens) if self.shares_prefixes else alone(tokens)
        for batch in _batches(families):
            yield [texts[number] for family in batch for number in family.members], self._vectors(batch)

    def _tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        if not texts:
            return []
        whole = self._tokenizer(list(texts), truncation=False)["input_ids"]
        cut = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        self.truncated += sum(len(a) > len(b) for a, b in zip(whole, cut, strict=True))
        return [tuple(ids) for ids in cut]

    @torch.no_grad()
    def _vectors(self, batch: Sequence[Family]) -> Vectors:
        """Returns the vectors of a batch of families. Either all families of the batch have a prefix, or none has.

        Shapes: (R, w) float32, with R texts in the batch and w numbers in a hidden state. The texts stand in the order of the
        families, and within a family in the order of its members.
        """
        lengths = [len(family.prefix) + len(suffix) for family in batch for suffix in family.suffixes]
        suffixes, suffix_mask = self._padded([suffix for family in batch for suffix in family.suffixes])  # (R, S)
        if not batch[0].prefix:
            sums = self._sums(suffixes, suffix_mask)
        else:
            prefixes, prefix_mask = self._padded([family.prefix for family in batch])  # (F, prefix tokens)
            prefix_output = self._model(input_ids=prefixes, attention_mask=prefix_mask, use_cache=True)
            family_of_text = torch.tensor(
                [n for n, family in enumerate(batch) for _ in family.suffixes], device=self._device
            )  # (R,)
            cache = prefix_output.past_key_values
            cache.batch_select_indices(family_of_text)
            prefix_lengths = prefix_mask.sum(1)[family_of_text]  # (R,)
            positions = prefix_lengths[:, None] + torch.arange(suffixes.shape[1], device=self._device)  # (R, S)
            mask = torch.cat([prefix_mask[family_of_text], suffix_mask], dim=1)
            sums = _masked_sum(prefix_output.last_hidden_state, prefix_mask)[family_of_text]
            sums = sums + self._sums(suffixes, suffix_mask, mask, position_ids=positions, past_key_values=cache)
        vectors: Vectors = (sums / torch.tensor(lengths, device=self._device)[:, None]).cpu().numpy()  # (R, w)
        return vectors

    def _sums(self, tokens: Tensor, real: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        """Sums the last hidden states over the real tokens of each row. A row is one text or a piece of a text.

        Shapes: R rows, S tokens, w numbers in a hidden state; tokens (R, S), real (R, S) -> (R, w). real: 1 for a real token, 0
        for padding.
        mask: the attention mask; None means that `real` is the mask. more: further arguments of the model's forward call.
        """
        output = self._model(input_ids=tokens, attention_mask=real if mask is None else mask, **more)
        return _masked_sum(output.last_hidden_state, real)

    def _padded(self, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Pads R rows of tokens to the length S of the longest row. Returns the tokens and the mask.

        Shapes: (R, S) for both tensors. The mask is 1 for a real token and 0 for padding.
        """
        longest = max(map(len, rows))
        filler = self._tokenizer.pad_token_id or 0
        tokens = torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return tokens.to(self._device), mask.to(self._device)

    def _try_prefixes(self) -> bool:
        """Returns whether trial texts get the same vectors with a shared prefix as without a shared prefix, except for rounding.

        Also returns False if the tokenizer gives the texts no common prefix, or if the model cannot continue from a prefix.
        """
        tokens = self._tokenize(TRIAL_TEXTS)
        self.truncated = 0
        families = families_of(tokens)
        if len(families) != 1 or not families[0].prefix:
            return False  # the tokenizer knows few words, so these texts have no common beginning
        try:
            together = self._vectors(families)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):  # the model has no such cache
            return False
        order = np.argsort(families[0].members)
        apart = np.concatenate([self._vectors([family]) for family in alone(tokens)])
        products = (together[order] * apart).sum(1)
        lengths = np.linalg.norm(together[order], axis=1) * np.linalg.norm(apart, axis=1)
        return bool((products >= SAME_COSINE * lengths).all())


def alone(tokens: Sequence[Tokens]) -> list[Family]:
    """Returns one family without a prefix for each text. tokens: the tokens of each text."""
    return [Family((), (number,), (text_tokens,)) for number, text_tokens in enumerate(tokens)]


def families_of(tokens: Sequence[Tokens]) -> list[Family]:
    """Groups texts into families by their common beginning. tokens: the tokens of each text.

    The common prefix of a family with several texts has at least SHORTEST_PREFIX tokens. A text begins a new family if the
    family's prefix would otherwise shrink to less than half of its length.
    """
    order = sorted(range(len(tokens)), key=lambda number: tokens[number])
    families: list[Family] = []
    members: list[int] = []
    prefix: Tokens = ()

    def close() -> None:
        common = prefix[: min(len(tokens[number]) for number in members) - 1]  # at least one token stays in each suffix
        if len(members) == 1 or len(common) < SHORTEST_PREFIX:
            families.extend(Family((), (number,), (tokens[number],)) for number in members)
        else:
            families.append(Family(common, tuple(members), tuple(tokens[number][len(common) :] for number in members)))

    for number in order:
        shared = _common(prefix, tokens[number])
        if members and (shared < SHORTEST_PREFIX or 2 * shared < len(prefix)):
            close()
            members = []
        prefix = prefix[:shared] if members else tokens[number]
        members.append(number)
    if members:
        close()
    return families


def _common(one: Tokens, other: Tokens) -> int:
    """Returns how many tokens at the start of the two texts are equal."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _batches(families: Sequence[Family]) -> Iterator[list[Family]]:
    """Groups families of similar length into batches of at most BATCH_TOKENS tokens. A larger family gets a batch of its own.

    The families of a batch either all have a prefix or all have none.
    """
    for has_prefix in (False, True):
        alike = [family for family in families if bool(family.prefix) == has_prefix]
        batch: list[Family] = []
        longest = rows = 0
        for family in sorted(alike, key=lambda member: (len(member.prefix), max(map(len, member.suffixes)))):
            length = max(len(family.prefix), *map(len, family.suffixes))
            if batch and max(longest, length) * (rows + len(family.suffixes)) > BATCH_TOKENS:
                yield batch
                batch, longest, rows = [], 0, 0
            batch.append(family)
            longest, rows = max(longest, length), rows + len(family.suffixes)
        if batch:
            yield batch


def _masked_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sums hidden states over the tokens whose mask is 1, in float32.

    Shapes: R rows, S tokens, w numbers in a hidden state; hidden (R, S, w), mask (R, S) -> (R, w).
    """
    return (hidden.float() * mask.unsqueeze(-1)).sum(1)


@without_collecting()  # loading imports the library and the model's code
def _load(source: str, revision: str, device: torch.device) -> tuple[Any, Any]:
    """Returns tokenizer and model, loaded from disk if possible, otherwise over the network.

    Raises ModelUnavailable if the model can be loaded neither from disk nor over the network.
    """
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - seconds, and often not needed at all

    last: Exception | None = None
    tokenizer = model = None
    for offline in (True, False):  # the disk first: a model that is there needs no network
        if not offline and Path(source).is_dir():
            break
        options: Any = {"revision": revision, "local_files_only": offline, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=_precision(device), **options)
            break
        except (OSError, ValueError, ImportError) as error:
            last = error
    if model is None or tokenizer is None:
        raise ModelUnavailable(model=source, problem=str(last).strip().splitlines()[0])
    if tokenizer.pad_token is None:  # causal models often have none; any token will do, because the mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model.to(device).eval()


def _precision(device: torch.device) -> torch.dtype:
    """Returns bf16 if the device supports bf16, otherwise float32. The run spec's probes check the vectors in either case."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
