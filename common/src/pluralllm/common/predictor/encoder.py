"""A transformer that turns texts into vectors: the masked mean over the tokens of its last hidden state.

In a causal model a text's beginning has the same hidden states whatever follows. Texts that begin alike (one prompt, several
answers) are encoded as one beginning, once, and their ends on top of its keys and values (arXiv 2503.09925 embeds each answer
behind the whole prompt). Whether a model allows it is tried out when it is loaded, not guessed from its name.

R: texts of a batch, S: tokens of the longest, w: width of the model.
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

BATCH_TOKENS = 8_192  # of one forward pass, padding included
SHORTEST_PREFIX = 8  # tokens; below it a pass of its own costs more than it saves
SAME_COSINE = 0.9999  # bf16 sums in another order; a prefix that does depend on what follows is far off
TRIAL_TEXTS = tuple(
    f"How satisfied are you with the way democracy is working in your country? A. {answer}"
    for answer in ("Very", "Not at all satisfied", "Do not know")
)

Tokens = tuple[int, ...]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Family:
    """Texts that begin alike. A single text has no prefix."""

    prefix: Tokens
    members: tuple[int, ...]  # numbers of the texts
    suffixes: tuple[Tokens, ...]


class Encoder:
    """One model on one device."""

    def __init__(self, source: str, revision: str, max_tokens: int, device: torch.device) -> None:
        """`source`: a model id, or a local folder. Raises ModelUnavailable."""
        self.truncated = 0  # texts cut at max_tokens
        self._max_tokens = max_tokens
        self._device = device
        self._tokenizer, self._model = _load(source, revision, device)
        self.shares_prefixes = self._try_prefixes()

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[list[str], Vectors]]:
        """Batches of texts, in an order of its own, and their vectors (R, w)."""
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
        return [tuple(each) for each in cut]

    @torch.no_grad()
    def _vectors(self, batch: Sequence[Family]) -> Vectors:
        """All families of a batch have a prefix, or none has."""
        lengths = [len(family.prefix) + len(suffix) for family in batch for suffix in family.suffixes]
        suffixes, suffix_mask = self._padded([suffix for family in batch for suffix in family.suffixes])  # (R, S)
        if not batch[0].prefix:
            sums = self._sums(suffixes, suffix_mask)
        else:
            prefixes, prefix_mask = self._padded([family.prefix for family in batch])
            known = self._model(input_ids=prefixes, attention_mask=prefix_mask, use_cache=True)
            of = torch.tensor(
                [n for n, family in enumerate(batch) for _ in family.suffixes], device=self._device
            )  # (R,)
            cache = known.past_key_values
            cache.batch_select_indices(of)
            begins = prefix_mask.sum(1)[of]  # (R,) tokens before a text's suffix
            places = begins[:, None] + torch.arange(suffixes.shape[1], device=self._device)  # (R, S)
            mask = torch.cat([prefix_mask[of], suffix_mask], dim=1)
            sums = _masked_sum(known.last_hidden_state, prefix_mask)[of]
            sums = sums + self._sums(suffixes, suffix_mask, mask, position_ids=places, past_key_values=cache)
        found: Vectors = (sums / torch.tensor(lengths, device=self._device)[:, None]).cpu().numpy()  # (R, w)
        return found

    def _sums(self, tokens: Tensor, real: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        """Over the real tokens of each row. (R, w)"""
        seen = self._model(input_ids=tokens, attention_mask=real if mask is None else mask, **more)
        return _masked_sum(seen.last_hidden_state, real)

    def _padded(self, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Tokens and mask, (R, S) each."""
        longest = max(map(len, rows))
        filler = self._tokenizer.pad_token_id or 0
        tokens = torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return tokens.to(self._device), mask.to(self._device)

    def _try_prefixes(self) -> bool:
        tokens = self._tokenize(TRIAL_TEXTS)
        self.truncated = 0
        families = families_of(tokens)
        if len(families) != 1 or not families[0].prefix:
            return False  # these texts have no beginning in common: a tokenizer with few words
        try:
            together = self._vectors(families)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):  # no cache, or another kind of one
            return False
        order = np.argsort(families[0].members)
        apart = np.concatenate([self._vectors([family]) for family in alone(tokens)])
        products = (together[order] * apart).sum(1)
        lengths = np.linalg.norm(together[order], axis=1) * np.linalg.norm(apart, axis=1)
        return bool((products >= SAME_COSINE * lengths).all())


def alone(tokens: Sequence[Tokens]) -> list[Family]:
    """Every text by itself."""
    return [Family((), (number,), (each,)) for number, each in enumerate(tokens)]


def families_of(tokens: Sequence[Tokens]) -> list[Family]:
    """Texts in families by their common beginning: one that joins may not make it shorter than half, nor than 8 tokens."""
    order = sorted(range(len(tokens)), key=lambda number: tokens[number])
    found: list[Family] = []
    members: list[int] = []
    prefix: Tokens = ()

    def close() -> None:
        common = prefix[: min(len(tokens[number]) for number in members) - 1]  # a text keeps a token of its own
        if len(members) == 1 or len(common) < SHORTEST_PREFIX:
            found.extend(Family((), (number,), (tokens[number],)) for number in members)
        else:
            found.append(Family(common, tuple(members), tuple(tokens[number][len(common) :] for number in members)))

    for number in order:
        shared = _common(prefix, tokens[number])
        if members and (shared < SHORTEST_PREFIX or 2 * shared < len(prefix)):
            close()
            members = []
        prefix = prefix[:shared] if members else tokens[number]
        members.append(number)
    if members:
        close()
    return found


def _common(one: Tokens, other: Tokens) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _batches(families: Sequence[Family]) -> Iterator[list[Family]]:
    """Families of like length, with a prefix or all without, as many as fit a pass."""
    for has_prefix in (False, True):
        mine = [family for family in families if bool(family.prefix) == has_prefix]
        batch: list[Family] = []
        longest = rows = 0
        for family in sorted(mine, key=lambda each: (len(each.prefix), max(map(len, each.suffixes)))):
            length = max(len(family.prefix), *map(len, family.suffixes))
            if batch and max(longest, length) * (rows + len(family.suffixes)) > BATCH_TOKENS:
                yield batch
                batch, longest, rows = [], 0, 0
            batch.append(family)
            longest, rows = max(longest, length), rows + len(family.suffixes)
        if batch:
            yield batch


def _masked_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    """(R, S, w), (R, S) -> (R, w), in float32."""
    return (hidden.float() * mask.unsqueeze(-1)).sum(1)


def _load(source: str, revision: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - seconds, and often not needed at all

    last: Exception | None = None
    tokenizer = model = None
    for offline in (True, False):  # what is on disk first: no network is asked for what is here
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
        problem = str(last).strip().splitlines()[0] if last is not None else "unknown"
        raise ModelUnavailable(model=source, problem=problem)
    if tokenizer.pad_token is None:  # causal models have none; masked out, its value does not matter
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model.to(device).eval()


def _precision(device: torch.device) -> torch.dtype:
    """bf16 where the device computes in it; what a contract's probes say of the vectors still holds them to 0.999."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
