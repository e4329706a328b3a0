"""Captions: a small recurrent decoder from the fused vector to a vocabulary of words.

Show and Tell (Vinyals et al. 2015, arXiv 1411.4555) with the fused vector in place of the picture;
noise is added to the vector in training (as in Nukrai et al. 2022, arXiv 2211.00575), against
overfitting on few captions. A caption is written by minimum Bayes risk (Eikema and Aziz 2020, arXiv
2005.10283): of random captions the one that has most in common with all of them, by chrF2 (Popović
2015) against their mean counts (as DeNero et al. 2009, "Fast consensus decoding", for BLEU). The
likeliest caption is a worse one, and often too short.

Shapes: B samples, L words, V vocabulary, D the shared space, K random captions of some samples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PAD, END, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<end>", "<unknown>")
DRAWN = 32
"""Random captions of each sample. On stamps, 16 are a little worse and 64 as good; on a core of an
AMD EPYC, 32 of 700 words take 10 ms."""
AT_ONCE = 16
"""Samples whose captions are drawn together: logits of 10,000 words take 20 MB."""
LONGEST = 6
"""Characters of the longest n-grams that captions are compared by, as in chrF."""
NOISE = 1.0  # length of the noise added to the unit vector; see the benchmark's captions


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary(captions: Iterable[str], min_count: int = 2, most: int = 10_000) -> tuple[str, ...]:
    """`SPECIAL`, then the words that occur `min_count` times or more, the most frequent first."""
    counts = Counter(word for caption in captions for word in words_of(caption))
    kept = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
    return (*SPECIAL, *kept[:most])


def spell(words: Sequence[str]) -> str:
    """Words as a sentence: no space before a mark, a capital first."""
    text = re.sub(r"\s+([^\w\s])", r"\1", " ".join(words))
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A caption and its mean log-probability a word (the end counts as a word)."""

    text: str
    score: float


def consensus(texts: Sequence[str]) -> int:
    """The place of the text with the highest chrF2 against the mean counts of n-grams of all."""
    times = Counter(texts)
    grams = {text: grams_of(text) for text in times}
    mean: dict[str, float] = {}
    for text, count in times.items():
        for gram, here in grams[text].items():
            mean[gram] = mean.get(gram, 0.0) + here * count / len(texts)
    return texts.index(max(times, key=lambda text: chrf(grams[text], mean)))


def grams_of(text: str) -> Counter[str]:
    """The n-grams of 1 to `LONGEST` characters, case and spaces aside."""
    letters = "".join(text.lower().split())
    return Counter(
        letters[begin : begin + length]
        for length in range(1, LONGEST + 1)
        for begin in range(len(letters) - length + 1)
    )


def chrf(written: Mapping[str, float], wanted: Mapping[str, float]) -> float:
    """chrF2 by counts of n-grams, 0 to 1. A length without n-grams counts as 0."""
    common = {gram: min(count, wanted.get(gram, 0.0)) for gram, count in written.items()}
    precision, recall = (_share(common, of) for of in (written, wanted))
    return 5 * precision * recall / (4 * precision + recall) if precision else 0.0


def _share(common: Mapping[str, float], of: Mapping[str, float]) -> float:
    """The share of the n-grams that is common, the mean over their lengths."""
    here, every = _by_length(common), _by_length(of)
    return sum(some / many for some, many in zip(here, every, strict=True) if many) / LONGEST


def _by_length(counts: Mapping[str, float]) -> list[float]:
    sums = [0.0] * LONGEST
    for gram, count in counts.items():
        sums[len(gram) - 1] += count
    return sums


class Captioner(nn.Module):
    """A GRU whose initial state and every input contain the fused vector."""

    def __init__(self, words: Sequence[str], dim: int, length: int, width: int = 256) -> None:
        super().__init__()
        self.words, self.length = tuple(words), length
        self.place = {word: i for i, word in enumerate(self.words)}
        self.table = nn.Embedding(len(self.words), width, padding_idx=PAD)
        self.scale = dim**0.5  # scales a unit vector's numbers to about 1
        self.start, self.see = nn.Linear(dim, width), nn.Linear(dim, width)
        self.cell = nn.GRU(2 * width, width, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(width, len(self.words))

    def encode(self, caption: str) -> list[int]:
        """Word numbers with the end, at most `length` + 1."""
        words = words_of(caption)[: self.length]
        return [*(self.place.get(word, UNKNOWN) for word in words), END]

    def forward(self, fused_BD: Tensor, ids_BL: Tensor) -> Tensor:
        """Logits of each word given those before it, float[B, L, V]; in training, noise is added to
        the vector."""
        if self.training:
            noise_BD = torch.randn_like(fused_BD) * (NOISE / fused_BD.shape[1] ** 0.5)
            fused_BD = F.normalize(fused_BD + noise_BD, dim=1)
        before_BL = F.pad(ids_BL[:, :-1], (1, 0), value=PAD)
        states_BLW, _ = self._run(fused_BD, before_BL, self._first(fused_BD))
        logits_BLV: Tensor = self.out(self.dropout(states_BLW))
        return logits_BLV

    @torch.no_grad()
    def write(self, fused_BD: Tensor) -> list[Caption]:
        """A caption for each sample. The same random numbers serve every sample and call."""
        draws_LN = torch.rand(self.length + 1, DRAWN, generator=torch.Generator().manual_seed(0))
        return [
            captions[consensus([caption.text for caption in captions])]
            for some_BD in fused_BD.split(AT_ONCE)
            for captions in self._drawn(some_BD, draws_LN.to(fused_BD.device))
        ]

    def _drawn(self, fused_BD: Tensor, draws_LN: Tensor) -> list[list[Caption]]:
        """Random captions of each sample, as many as there are columns of numbers in [0, 1)."""
        count = draws_LN.shape[1]
        captions: list[list[Caption]] = [[] for _ in fused_BD]
        fused_KD = fused_BD.repeat_interleave(count, dim=0)  # of the captions that have not ended
        state_1KW, ids_KL = self._first(fused_KD), torch.full_like(fused_KD[:, :1], PAD).long()
        score_K, place_K = fused_KD.new_zeros(len(fused_KD)), torch.arange(len(fused_KD))
        for length, draw_N in enumerate(draws_LN):
            out_K1W, state_1KW = self._run(fused_KD, ids_KL[:, -1:], state_1KW)
            logits_KV = self.out(out_K1W[:, 0])
            logits_KV[:, [PAD, UNKNOWN]] = float("-inf")
            if length == self.length:  # no room for another word
                logits_KV[:, END + 1 :] = float("-inf")
            gain_KV = torch.log_softmax(logits_KV.float(), dim=1)
            to_KV = gain_KV.exp().cumsum(1)
            draw_K1 = draw_N[place_K % count][:, None] * to_KV[:, -1:]
            next_K1 = torch.searchsorted(to_KV, draw_K1, right=True).clamp(max=to_KV.shape[1] - 1)
            score_K = score_K + gain_KV.gather(1, next_K1)[:, 0]
            ended_K = (next_K1[:, 0] == END).cpu()
            ids_KL = torch.cat([ids_KL, next_K1], dim=1)
            for place, ids, score in zip(
                place_K[ended_K].tolist(),
                ids_KL[ended_K, 1:-1].tolist(),
                (score_K[ended_K] / (length + 1)).tolist(),
                strict=True,
            ):
                text = spell([self.words[i] for i in ids])
                captions[place // count].append(Caption(text=text, score=score))
            kept_K = ~ended_K
            if not kept_K.any():
                break
            fused_KD, ids_KL, score_K = fused_KD[kept_K], ids_KL[kept_K], score_K[kept_K]
            state_1KW, place_K = state_1KW[:, kept_K], place_K[kept_K]
        return captions

    def _first(self, fused_BD: Tensor) -> Tensor:
        return torch.tanh(self.start(self.scale * fused_BD))[None]

    def _run(self, fused_BD: Tensor, ids_BL: Tensor, state_1BW: Tensor) -> tuple[Tensor, Tensor]:
        seen_BLW = self.see(self.scale * fused_BD)[:, None].expand(-1, ids_BL.shape[1], -1)
        words_BLW = self.dropout(self.table(ids_BL))
        out_BLW, state_1BW = self.cell(torch.cat([words_BLW, seen_BLW], dim=2), state_1BW)
        return out_BLW, state_1BW
