"""Turns texts into vectors with a transformer: the vector of a text is pooled from its tokens' last hidden states.

The pooling is their mean, the state of the first token (cls), or the state of the last token.

In a causal model, the hidden states of a text's beginning do not depend on the tokens that follow. So texts with a common
beginning (one prompt, several answers) can share the computation of the beginning. The beginning is encoded once, and each
text's end uses the attention keys and values of the beginning. (arXiv 2503.09925 embeds each answer together with the whole
prompt.) Not every model allows a shared beginning, so the encoder tests each model after loading.

Shapes: R texts in a batch, S tokens in the longest text, F families in a batch, w numbers in a hidden state. A family is a
set of texts with a common beginning.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pluralllm.common.errors.tree import ModelUnavailable
from pluralllm.common.predictor.blindness import TokenCount
from pluralllm.common.process.imports import without_collecting
from pluralllm.common.words.embedding import Pooling

BATCH_TOKENS = 8_192  # tokens in one forward pass, padding included
TEXTS_AT_ONCE = 4_096  # in a piece: bounds the memory for tokens, for any number of texts
# Names of the tables with one vector for each position. A model without such a table reads texts of any length.
POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
SHORTEST_PREFIX = 8  # tokens; for a shorter prefix, the extra pass costs more than it saves
# With bf16, the other order of sums changes vectors slightly. If a prefix depends on what follows, the cosine is far lower.
SAME_COSINE = 0.9999
TRIAL_TEXTS = tuple(
    f"How satisfied are you with the way democracy is working in your country? A. {answer}"
    for answer in ("Very", "Not at all satisfied", "Do not know")
)

Tokens = tuple[int, ...]
Vectors = NDArray[np.float32]
Batch = tuple[list[str], Vectors, list[TokenCount]]  # texts, their vectors (texts, w) and numbers of tokens


@dataclass(frozen=True, slots=True)
class Family:
    """A set of texts that begin with the same tokens, the prefix. A family of one text has an empty prefix."""

    prefix: Tokens
    members: tuple[int, ...]  # numbers of the texts
    suffixes: tuple[Tokens, ...]  # the tokens of each member after the prefix


class Encoder:
    """A transformer with its tokenizer, on one device. The encoder turns texts into vectors."""

    def __init__(
        self, source: str, revision: str, max_tokens: int, device: torch.device, pooling: Pooling = "mean"
    ) -> None:
        """Loads the model and tests whether texts may share the computation of a common prefix.

        source: a model id, or a local folder. revision: the version of the model, if `source` is an id.
        max_tokens: the greatest number of tokens of a text; a longer text is cut. If the model reads fewer, its number counts.
        pooling: how the hidden states of a text's tokens become one vector.
        Raises ModelUnavailable if the model cannot be loaded.
        """
        self._source, self._device, self._pooling = source, device, pooling
        self._tokenizer, self._model = _load(source, revision, device)
        self.most_tokens = min(max_tokens, _most_positions(self._model) or max_tokens)
        self.shares_prefixes = self._try_prefixes()

    def encode(self, texts: Sequence[str], is_wanted: Callable[[str], bool] = lambda _text: True) -> Iterator[Batch]:
        """Yields the texts in batches, with their vectors and their numbers of tokens. The order differs from that of `texts`.

        Many texts are read in the pieces of `pieces_of`, each in batches of similar length. The batches follow from `texts`
        alone, and so do the last bits of the vectors. is_wanted: a batch without a wanted text is left out.
        Shapes: vectors (R, w) float32, not normalized, with R texts in the batch and w numbers in a hidden state.
        Raises ModelUnavailable if the model cannot read a text.
        """
        for piece in pieces_of(texts):
            tokens, counts = self._tokenize(piece)
            for batch in _batches(families_of(tokens) if self.shares_prefixes else alone(tokens)):
                members = [number for family in batch for number in family.members]
                if not any(is_wanted(piece[number]) for number in members):
                    continue
                try:
                    vectors = self._vectors(batch)
                except (IndexError, RuntimeError) as error:
                    self._check_length(max(len(tokens[number]) for number in members), error)
                    raise
                yield [piece[number] for number in members], vectors, [counts[number] for number in members]

    def _check_length(self, longest: int, error: Exception) -> None:
        """Raises ModelUnavailable if an error comes from a text that is longer than the model's configuration allows.

        Such a model has a table of positions with another name than POSITION_TABLES. longest: tokens of the longest text.
        """
        allowed = getattr(self._model.config, "max_position_embeddings", None)
        if allowed is not None and longest > allowed:
            problem = f"it cannot read a text of {longest} tokens, only {allowed}; set a lower embedding.max_tokens"
            raise ModelUnavailable(model=self._source, problem=problem) from error

    def _tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[TokenCount]]:
        """Returns the tokens of each text, cut at `most_tokens`, and their numbers before the cut."""
        if not texts:
            return [], []
        tokens = [tuple(ids) for ids in self._tokenizer(list(texts), truncation=False)["input_ids"]]
        unknown = self._unknown_token()
        lengths, unknown_tokens = [len(ids) for ids in tokens], [ids.count(unknown) for ids in tokens]
        long = [number for number, ids in enumerate(tokens) if len(ids) > self.most_tokens]
        if long:
            long_texts = [texts[number] for number in long]
            cut = self._tokenizer(long_texts, truncation=True, max_length=self.most_tokens)["input_ids"]
            for number, ids in zip(long, cut, strict=True):
                tokens[number] = tuple(ids)
        return tokens, list(map(TokenCount, lengths, map(len, tokens), unknown_tokens))

    def _unknown_token(self) -> int | None:
        """Returns the token of unknown characters; None if there is none, or if it has another meaning, too."""
        unknown, tokenizer = self._tokenizer.unk_token_id, self._tokenizer
        return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown

    @torch.no_grad()
    def _vectors(self, batch: Sequence[Family]) -> Vectors:
        """Returns the vectors of a batch of families. Either all families of the batch have a prefix, or none has.

        Shapes: (R, w) float32, with R texts in the batch and w numbers in a hidden state. The texts stand in the order of the
        families, and within a family in the order of its members.
        """
        suffixes, suffix_mask = self._padded([suffix for family in batch for suffix in family.suffixes])  # (R, S)
        if not batch[0].prefix:
            states = self._states(suffixes, suffix_mask)
            pooled = self._pool(states, suffix_mask)
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
            first = self._pool(prefix_output.last_hidden_state, prefix_mask)[family_of_text]
            states = self._states(suffixes, mask, position_ids=positions, past_key_values=cache)
            second = self._pool(states, suffix_mask)
            pooled = {"mean": first + second, "cls": first, "last": second}[self._pooling]
        if self._pooling == "mean":
            lengths = [len(family.prefix) + len(suffix) for family in batch for suffix in family.suffixes]
            pooled = pooled / torch.tensor(lengths, device=self._device)[:, None]
        vectors: Vectors = pooled.cpu().numpy()  # (R, w)
        return vectors

    def _states(self, tokens: Tensor, mask: Tensor, **more: Any) -> Tensor:
        """Returns the last hidden states of rows of tokens. A row is one text or a piece of a text.

        Shapes: R rows, S tokens, w numbers in a hidden state; tokens (R, S) -> (R, S, w). mask: the attention mask. more: further
        arguments of the model's forward call.
        """
        states: Tensor = self._model(input_ids=tokens, attention_mask=mask, **more).last_hidden_state
        return states

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pools the hidden states of the tokens whose mask is 1, in float32; the mean is still a sum here.

        The padding is at the end of each row, whatever side the tokenizer prefers.
        Shapes: R rows, S tokens, w numbers in a hidden state; hidden (R, S, w), mask (R, S) -> (R, w).
        """
        if self._pooling == "mean":
            return _masked_sum(hidden, mask)
        rows = torch.arange(len(mask), device=self._device)
        return hidden[rows, mask.sum(1) - 1 if self._pooling == "last" else 0].float()

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
        tokens, _ = self._tokenize(TRIAL_TEXTS)
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


def pieces_of(texts: Sequence[str]) -> list[Sequence[str]]:
    """Cuts many texts into pieces of at most TEXTS_AT_ONCE with similar beginnings. Few texts, in their order, are one piece.

    The vectors of a piece depend on the piece alone.
    """
    if len(texts) > TEXTS_AT_ONCE:
        texts = sorted(texts)
    return [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]


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


def _most_positions(model: torch.nn.Module) -> int | None:
    """Returns the greatest number of tokens that a model can read; None if it has no table of positions.

    A table with a padding row (RoBERTa, MPNet, XLM-R) counts positions from the row after it.
    """
    for name, table in model.named_modules():
        if isinstance(table, torch.nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            before = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            return int(table.num_embeddings) - int(before)
    return None


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
        raise ModelUnavailable(model=source, problem=str(last).strip().splitlines()[0].rstrip("."))
    if tokenizer.pad_token is None:  # causal models often have none; any token will do, because the mask hides it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model.to(device).eval()


def _precision(device: torch.device) -> torch.dtype:
    """Returns bf16 if the device supports bf16, otherwise float32. The run spec's probes check the vectors in either case."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
