"""The references on stamps find what is there, and guess where nothing is."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.stamps import chrf
from benchmarks.stamps_references import best_captions, category, hits, known_words, nearest
from braid.encoders import Sample, preset


def test_the_best_training_caption_is_a_bound() -> None:
    known = [Sample(id=text, text=text) for text in ("A red bird.", "A fish.", "A red fish.")]
    unseen = [Sample(id="x", text="a red fish."), Sample(id="y", text="a bird.")]
    best, together = best_captions(known, unseen)
    (each,) = best.values()
    assert each[0] == 1.0
    assert each[1] == max(chrf([sample.text or ""], ["a bird."]) for sample in known)
    assert 0.5 < together < 1.0


def test_words_that_no_training_caption_has_are_left_out() -> None:
    known = [Sample(id="k", text="A red fish.")]
    unseen = [Sample(id="x", text="A red bird."), Sample(id="y", text="a red fish.")]
    each, unknown = known_words(known, unseen)
    assert each["chrF of each, own caption, known words"] == [chrf(["A red."], ["a red bird."]), 1]
    assert unknown == 0.5  # "bird"; shorter words do not count


def test_a_class_name_is_the_nearest_where_no_caption_has_the_word() -> None:
    """The names of pictures are vectors of their captions, the correlation is with noise."""
    noise = torch.Generator().manual_seed(0)
    texts = [f"{word}{number} thing" for number in range(20) for word in ("red", "blue", "green")]
    named_nN = torch.randn(60, 384, generator=noise)
    image_nF = torch.cat([torch.randn(60, 8, generator=noise), named_nN], dim=1)
    made = [Sample(id=f"{n}", text=text) for n, text in enumerate(texts)]
    views, known, unseen = (named_nN, image_nF), made[:40], made[40:]
    found = nearest(views, (texts[40:], named_nN[40:]), known, unseen, preset("demo"))
    for how in ("held out", "cross-validated"):
        assert found[f"nearest, {how}"]["captions"]["mean"] < 0.9
    assert found["nearest, held out"]["captions and class names"]["mean"] == 1.0
    assert found["nearest, held out"]["gain by class names"]["mean"] > 0.1


def test_class_names_find_what_correlation_does_not() -> None:
    """Pictures' first features have nothing to do with captions', their last three are names."""
    noise = torch.Generator().manual_seed(0)
    text_nF, image_nF = (torch.randn(60, 8, generator=noise) for _ in range(2))
    image_nF[:, -3:] = text_nF[:, -3:] + 0.01 * torch.randn(60, 3, generator=noise)
    image_nF[:30, -3:] = 0.0  # and there were none where the correlation is fitted
    found = hits(
        (text_nF, image_nF),
        torch.arange(30),
        torch.arange(30, 60),
        dim=4,
        ridge=1.0,
        names=3,
        weights=(0.0, 1e4),
    )
    share = {weight: float(np.mean(of["text->image recall@1"])) for weight, of in found.items()}
    assert share[0.0] < 0.3
    assert share[1e4] > 0.9


def test_a_category_that_no_feature_tells_is_guessed() -> None:
    noise = torch.Generator().manual_seed(0)
    views = (torch.randn(90, 8, generator=noise), torch.randn(90, 8, generator=noise))
    told = torch.randint(2, (90,), generator=noise).tolist()
    made = [
        Sample(id=f"{n}", text=f"{n}", labels={"category": "ab"[k]}) for n, k in enumerate(told)
    ]
    for row in category(views, made[:60], made[60:]).values():
        assert 0.2 < row["accuracy"]["mean"] < 0.8
        assert 0.2 < row["accuracy, cross-validated"]["mean"] < 0.8
