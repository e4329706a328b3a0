"""Captions: a small recurrent decoder from the fused vector to a vocabulary of words.

Show and Tell (Vinyals et al. 2015, arXiv 1411.4555) with the fused vector in place of the picture;
noise is added to the vector in training (as in Nukrai et al. 2022, arXiv 2211.00575), against
overfitting on few captions.

Shapes: B samples, L words, V vocabulary, D the shared space, K beams.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PAD, END, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<end>", "<unknown>")
BEAMS = 4
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
    def beam(self, fused_BD: Tensor, beams: int = BEAMS) -> list[list[Caption]]:
        """Beam search; for each sample its captions, the likeliest (a word) first."""
        return [self._beam(row_D[None], beams) for row_D in fused_BD]

    def _beam(self, fused_1D: Tensor, beams: int) -> list[Caption]:
        live: list[tuple[float, list[int], Tensor]] = [(0.0, [], self._first(fused_1D))]
        done: list[tuple[float, list[int]]] = []
        for place in range(self.length + 1):
            last_K1 = torch.tensor([[ids[-1] if ids else PAD] for _, ids, _ in live])
            state_1KW = torch.cat([state for _, _, state in live], dim=1)
            many_KD = fused_1D.expand(len(live), -1)
            out_K1W, state_1KW = self._run(many_KD, last_K1.to(fused_1D.device), state_1KW)
            logits_KV = self.out(out_K1W[:, 0])
            logits_KV[:, [PAD, UNKNOWN]] = float("-inf")
            if place == self.length:  # no room for another word
                logits_KV[:, END + 1 :] = float("-inf")
            gains_KV = torch.log_softmax(logits_KV, dim=1)
            candidates: list[tuple[float, list[int], Tensor]] = []
            for row, (score, ids, _) in enumerate(live):
                best = gains_KV[row].topk(min(beams, gains_KV.shape[1]))
                for gain, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    if gain > float("-inf"):
                        candidates.append((score + gain, [*ids, word], state_1KW[:, row : row + 1]))
            candidates.sort(key=lambda one: -one[0])
            done += [(score, ids) for score, ids, _ in candidates[:beams] if ids[-1] == END]
            live = [one for one in candidates[:beams] if one[1][-1] != END]
            if not live or len(done) >= beams:
                break
        ranked = sorted(done, key=lambda one: -one[0] / len(one[1]))[:beams]
        return [
            Caption(text=spell([self.words[i] for i in ids[:-1]]), score=score / len(ids))
            for score, ids in ranked
        ]

    def _first(self, fused_BD: Tensor) -> Tensor:
        return torch.tanh(self.start(self.scale * fused_BD))[None]

    def _run(self, fused_BD: Tensor, ids_BL: Tensor, state_1BW: Tensor) -> tuple[Tensor, Tensor]:
        seen_BLW = self.see(self.scale * fused_BD)[:, None].expand(-1, ids_BL.shape[1], -1)
        words_BLW = self.dropout(self.table(ids_BL))
        out_BLW, state_1BW = self.cell(torch.cat([words_BLW, seen_BLW], dim=2), state_1BW)
        return out_BLW, state_1BW
