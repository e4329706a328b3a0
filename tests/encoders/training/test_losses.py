"""Losses against a plain reference, forward and backward; masks; decision rules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.encoders.config import ModelConfig
from braid.encoders.model.calibration import fit_temperature, fit_weights
from braid.encoders.model.decision import RULES, Decision
from braid.encoders.model.fusion import MeanFusion
from braid.encoders.model.projection import Projector
from braid.encoders.training.losses import (
    LOG_SCALE_MAX,
    LOG_SCALE_START,
    SIGMOID_BIAS,
    SIGMOID_LOG_SCALE,
    caption_loss,
    compatibility_loss,
    confidence_penalty,
    info_nce,
    masked_binary_cross_entropy,
    masked_cross_entropy,
    masked_regression,
    positives,
    sigmoid_loss,
)
from braid.encoders.training.objective import two_subsets


def unit(rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def plain_info_nce(left: Tensor, right: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    """As the formula reads, one term at a time."""
    total = torch.zeros(())
    count = len(left)
    for i in range(count):
        row = [log_scale.exp() * (left[i] * right[j]).sum() for j in range(count)]
        column = [log_scale.exp() * (left[j] * right[i]).sum() for j in range(count)]
        row_norm = torch.log(sum((s.exp() for s in row), torch.zeros(())))
        column_norm = torch.log(sum((s.exp() for s in column), torch.zeros(())))
        column_sum = sum(float(target[j, i]) for j in range(count))
        for j in range(count):
            total = total - 0.5 * target[i, j] * (row[j] - row_norm) / count
            total = total - 0.5 * target[j, i] / column_sum * (column[j] - column_norm) / count
    return total


GROUP, LABEL = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([0, 0, 1, 1, -1])
TARGETS = {
    "the same content": positives(GROUP, LABEL, 0.0),
    "the same label": positives(GROUP, LABEL, 0.3),
    "not symmetric": torch.softmax(3 * unit(5, 5, 3), dim=1),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_info_nce_equals_the_formula_forward_and_backward(target: Tensor) -> None:
    result: list[tuple[Tensor, list[Tensor]]] = []
    for function in (info_nce, plain_info_nce):
        left = unit(5, 8, 1).requires_grad_()
        right = unit(5, 8, 2).requires_grad_()
        scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
        loss = function(left, right, scale, target)
        result.append((loss, list(torch.autograd.grad(loss, [left, right, scale]))))
    (fast, fast_grads), (slow, slow_grads) = result
    assert torch.allclose(fast, slow, atol=1e-5)
    for ours, theirs in zip(fast_grads, slow_grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_info_nce_with_the_identity_is_clips_loss() -> None:
    left, right, scale = unit(6, 4, 1), unit(6, 4, 2), torch.tensor(2.0)
    scores = scale.exp() * left @ right.T
    truth = torch.arange(6)
    cross = torch.nn.functional.cross_entropy
    clip = 0.5 * (cross(scores, truth) + cross(scores.T, truth))
    assert torch.allclose(info_nce(left, right, scale, torch.eye(6)), clip, atol=1e-6)


def test_one_row_has_no_negatives() -> None:
    left = unit(1, 4, 1).requires_grad_()
    loss = info_nce(left, unit(1, 4, 2), torch.tensor(1.0), torch.eye(1))
    loss.backward()
    assert loss.item() == 0.0
    assert left.grad is not None
    assert torch.equal(left.grad, torch.zeros(1, 4))


def test_positives_are_the_same_content_and_a_share_for_the_same_label() -> None:
    target = positives(torch.tensor([0, 0, 1, 2]), torch.tensor([5, 5, 5, -1]), 0.3)
    assert torch.allclose(target.sum(1), torch.ones(4))
    assert target[0, :2].tolist() == pytest.approx([0.45, 0.45])
    assert target[0, 2].item() == pytest.approx(0.1)
    assert target[3].tolist() == [0, 0, 0, 1]  # no label, no positives by label


def test_cross_entropy_leaves_unknown_labels_out() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = masked_cross_entropy(logits, torch.tensor([0, -1, 2, -1]))
    wanted = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([0, 2]))
    assert torch.allclose(loss, wanted)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient[[1, 3]], torch.zeros(2, 3))


def test_cross_entropy_without_a_label_is_zero_and_not_nan() -> None:
    logits = torch.ones(2, 3, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.tensor([-1, -1]))
    loss.backward()
    assert loss.item() == 0.0


def test_mean_fusion_of_one_is_that_one_and_absent_vectors_do_not_matter() -> None:
    fusion = MeanFusion(8, [0, 0, 0])
    units = torch.stack([unit(4, 8, seed) for seed in (1, 2, 3)], dim=1)
    present = torch.tensor([[True, False, False], [False, True, False], [True, True, False]] * 1)
    fused = fusion(units[:3], present)
    assert torch.allclose(fused[0], units[0, 0], atol=1e-6)
    assert torch.allclose(fused[1], units[1, 1], atol=1e-6)
    wanted = torch.nn.functional.normalize(units[2, 0] + units[2, 1], dim=0)
    assert torch.allclose(fused[2], wanted, atol=1e-6)
    noisy = units[:3].clone()
    noisy[~present] = float("nan")
    assert torch.allclose(fusion(noisy, present), fused)


def test_mean_fusion_of_opposite_vectors_is_still_a_unit_vector() -> None:
    one = unit(1, 8, 1)
    units = torch.stack([one, -one], dim=1)
    fused = MeanFusion(8, [0, 0])(units, torch.ones(1, 2, dtype=torch.bool))
    assert torch.allclose(fused, one, atol=1e-6)


def combine(rule: str, probs: list[list[float]], weights: list[float]) -> tuple[list[float], int]:
    combined, winner = RULES[rule](
        torch.tensor([probs]), torch.ones(1, len(probs)), torch.tensor(weights)
    )
    return combined[0].tolist(), int(winner[0])


def test_weighted_is_the_weighted_average() -> None:
    combined, winner = combine("weighted", [[0.9, 0.1], [0.2, 0.8]], [0.25, 0.75])
    assert combined == pytest.approx([0.375, 0.625])
    assert winner == 1


def test_weighted_leaves_absent_sources_out() -> None:
    probs = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    combined, _ = RULES["weighted"](probs, torch.tensor([[1.0, 0.0]]), torch.tensor([0.1, 0.9]))
    assert combined[0].tolist() == pytest.approx([0.9, 0.1])


def test_weighted_answers_even_if_all_that_is_there_has_no_weight() -> None:
    probs = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    combined, _ = RULES["weighted"](probs, torch.tensor([[1.0, 0.0]]), torch.tensor([0.0, 1.0]))
    assert combined[0].tolist() == pytest.approx([0.9, 0.1])


def test_vote_takes_the_majority() -> None:
    shares, winner = combine("vote", [[0.99, 0.01], [0.4, 0.6], [0.45, 0.55]], [1, 1, 1])
    assert winner == 1
    assert shares == pytest.approx([1 / 3, 2 / 3])


def test_vote_breaks_a_tie_by_probability() -> None:
    _, winner = combine("vote", [[0.6, 0.4], [0.1, 0.9]], [1, 1])
    assert winner == 1
    _, winner = combine("vote", [[0.95, 0.05], [0.3, 0.7]], [1, 1])
    assert winner == 0


def test_the_decision_learns_to_ignore_a_useless_source() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (200,), generator=generator)
    noise = torch.randn(200, 4, generator=generator)
    good = 2.0 * torch.nn.functional.one_hot(label, 4) + noise
    useless = 5.0 * torch.randn(200, 4, generator=generator)  # and loud about it
    logits = torch.stack([good, useless], dim=1)
    present = torch.ones(200, 2, dtype=torch.bool)
    decision = Decision("weighted", 2)
    decision.fit(logits, present, label)
    _, _, winner = decision(logits, present)
    assert decision.weights_ZS[0, 1] < 0.05
    assert (winner == label).float().mean() >= (good.argmax(1) == label).float().mean()


def test_fitting_on_nothing_changes_nothing() -> None:
    decision = Decision("weighted", 2)
    decision.fit(torch.zeros(3, 2, 4), torch.ones(3, 2, dtype=torch.bool), torch.full((3,), -1))
    assert decision.weights_ZS[0].tolist() == [0.5, 0.5]
    assert decision.temperature_ZS[0].tolist() == [1.0, 1.0]


def test_the_temperature_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(4000, 5, generator=generator)
    label = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).flatten()
    assert fit_temperature(3.0 * logits, label) == pytest.approx(3.0, rel=0.1)


def test_weights_of_a_source_that_is_rarely_there() -> None:
    right = torch.tensor([[0.9, 0.5], [0.1, 0.5]] * 10)
    present = torch.tensor([[True, True], [False, True]] * 10)
    weights = fit_weights(right, present)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[0] > weights[1]  # it is the better one wherever it is


def test_siglip_is_the_plain_double_loop_forward_and_backward() -> None:
    torch.manual_seed(0)
    raw = [torch.randn(6, 8, dtype=torch.float64) for _ in range(2)]
    target = positives(torch.tensor([0, 1, 2, 2, 4, 5]), torch.full((6,), -1), 0.0)
    result = []
    for plain in (False, True):
        left, right = (torch.nn.functional.normalize(r.clone(), dim=1) for r in raw)
        scale, bias = torch.tensor(2.3), torch.tensor(-10.0)
        leaves = [t.requires_grad_() for t in (left, right, scale, bias)]
        if plain:
            loss = torch.zeros(())
            for i in range(6):
                for j in range(6):
                    y = 1.0 if target[i, j] > 0 else -1.0
                    z = y * (scale.exp() * (left[i] * right[j]).sum() + bias)
                    loss = loss + (1.0 + (-z).exp()).log() / 6
        else:
            loss = sigmoid_loss(left, right, scale, bias, target)
        loss.backward()
        result.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    for fast, slow in zip(*result, strict=True):
        assert fast is not None
        assert slow is not None
        assert torch.allclose(fast.double(), slow.double(), atol=1e-5)


def test_siglip_of_one_row_is_nothing() -> None:
    one = torch.ones(1, 4, requires_grad=True)
    sigmoid_loss(one, one, torch.tensor(1.0), torch.tensor(0.0), torch.eye(1)).backward()
    assert one.grad is not None
    assert not bool(one.grad.any())


def test_confidence_may_rise_with_more_modalities_but_not_fall() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert confidence_penalty(unsure, sure).item() == 0.0
    wanted = float(torch.softmax(sure, 1).max()) - 0.5
    assert confidence_penalty(sure, unsure).item() == pytest.approx(wanted)


def test_losses_of_what_is_unknown_are_nothing() -> None:
    nan = float("nan")
    logits = torch.ones(3, 2, requires_grad=True)
    unknown = torch.zeros(3, dtype=torch.bool)
    assert masked_binary_cross_entropy(logits, torch.full((3, 2), nan), unknown).item() == 0.0
    assert masked_regression(logits[:, 0], torch.full((3,), nan)).item() == 0.0
    assert masked_regression(logits[:, 0], torch.tensor([nan, 1.5, 4.0])).item() == pytest.approx(
        (0.5**2 / 2 + 2.5) / 2
    )
    words = torch.zeros(1, 2, 4)
    mask = torch.tensor([[True, False]])
    assert caption_loss(words, torch.tensor([[1, -1]]), mask).item() == pytest.approx(
        float(torch.tensor(4.0).log())
    )


BF16 = {
    "info_nce": lambda: info_nce(unit(8, 64, 1), unit(8, 64, 2), torch.tensor(4.0), torch.eye(8)),
    "siglip": lambda: sigmoid_loss(
        unit(8, 64, 1), unit(8, 64, 2), torch.tensor(2.3), torch.tensor(-10.0), torch.eye(8)
    ),
    "compatibility": lambda: compatibility_loss(unit(8, 64, 1), unit(8, 64, 2), torch.eye(8)),
    "confidence": lambda: confidence_penalty(unit(8, 4, 1), unit(8, 4, 2)),
    "classes": lambda: masked_cross_entropy(unit(8, 4, 1), torch.arange(8) % 4),
    "labels": lambda: masked_binary_cross_entropy(
        unit(8, 4, 1), (unit(8, 4, 2) > 0).float(), torch.ones(8) > 0
    ),
    "number": lambda: masked_regression(unit(8, 4, 1)[:, 0], unit(8, 4, 2)[:, 0]),
    "caption": lambda: caption_loss(
        unit(8, 4, 1)[None], torch.arange(8)[None] % 4, torch.ones(1, 8) > 0
    ),
}


@pytest.mark.parametrize("loss", BF16.values(), ids=BF16.keys())
def test_losses_are_in_float32_under_autocast_too(loss: Callable[[], Tensor]) -> None:
    wanted = loss()
    with torch.autocast("cpu", torch.bfloat16):
        result = loss()
    assert result.dtype == torch.float32
    assert torch.equal(result, wanted)


def test_projected_vectors_have_length_1_under_autocast_too() -> None:
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found_BD = Projector(16, ModelConfig(encoders={}, dim=64))(torch.randn(8, 16))
    assert found_BD.dtype == torch.float32
    assert torch.allclose(found_BD.norm(dim=1), torch.ones(8), atol=1e-5)


def test_the_constants_are_those_of_clip_and_siglip() -> None:
    assert math.exp(LOG_SCALE_START) == pytest.approx(1 / 0.07)
    assert math.exp(LOG_SCALE_MAX) == pytest.approx(100)
    assert math.exp(SIGMOID_LOG_SCALE) == pytest.approx(10)
    assert SIGMOID_BIAS == -10


def test_two_rows_are_contrasted_with_each_other() -> None:
    left, right = unit(2, 4, 1), unit(2, 4, 2)
    scale, bias, eye = torch.tensor(1.5), torch.tensor(-2.0), torch.eye(2)
    plain = plain_info_nce(left, right, scale, eye)
    assert info_nce(left, right, scale, eye).item() == pytest.approx(float(plain))
    scores = scale.exp() * left @ right.T + bias
    sign = 2 * eye - 1
    plain = (1 + (-sign * scores).exp()).log().sum() / 2
    assert sigmoid_loss(left, right, scale, bias, eye).item() == pytest.approx(float(plain))


def test_one_row_alone_gives_siglip_nothing_and_no_row_is_compatible() -> None:
    one, none = unit(1, 4, 1), torch.zeros(0, 4)
    assert sigmoid_loss(one, one, torch.tensor(1.0), torch.tensor(0.0), torch.eye(1)).item() == 0
    assert compatibility_loss(none, none, torch.zeros(0, 0)).item() == 0.0
    assert compatibility_loss(one, -one, torch.eye(1)).item() == pytest.approx(2.0)


def test_compatibility_is_the_formula() -> None:
    new, old, target = unit(4, 8, 1), unit(4, 8, 2), TARGETS["not symmetric"][:4, :4]
    target = target / target.sum(1, keepdim=True)
    scores = new @ old.T / 0.07
    plain = torch.zeros(())
    for b in range(4):
        plain = plain + (1 - new[b] @ old[b]) / 4
        plain = plain - (target[b] * torch.log_softmax(scores[b], 0)).sum() / 4
    assert compatibility_loss(new, old, target).item() == pytest.approx(float(plain), rel=1e-5)


def test_a_label_of_0_is_a_label() -> None:
    target = positives(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 0.4)
    assert target[0].tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert target[2].tolist() == pytest.approx([0.0, 0.0, 1.0])
    whole = positives(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 1.0)
    assert whole[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_unknown_labels_are_not_alike_and_each_row_shares_among_its_own_positives() -> None:
    apart = positives(torch.tensor([0, 1, 2]), torch.tensor([-1, -1, 4]), 0.5)
    assert torch.equal(apart, torch.eye(3))
    linked = positives(torch.tensor([0, 0, 1]), torch.tensor([5, -1, 5]), 1.0)
    third, half = 1 / 3, 0.5
    for row, shares in zip(linked, ([third] * 3, [half, half, 0], [half, 0, half]), strict=True):
        assert row.tolist() == pytest.approx(shares)


def test_labels_are_scored_one_by_one_where_they_are_known() -> None:
    logits = torch.tensor([[1.0, -2.0], [9.0, 9.0], [0.5, 0.0]])
    target = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0]])
    loss = masked_binary_cross_entropy(logits, target, torch.tensor([True, False, True]))
    terms = [math.log(1 + math.exp(x)) for x in (-1.0, -2.0, 0.5, 0.0)]
    assert loss.item() == pytest.approx(sum(terms) / 4)


def test_a_caption_without_a_word_is_nothing() -> None:
    none = torch.zeros(1, 2, dtype=torch.bool)
    assert caption_loss(torch.ones(1, 2, 4), torch.zeros(1, 2).long(), none).item() == 0.0


def test_the_two_sides_of_a_match_differ_wherever_they_can() -> None:
    rng = np.random.default_rng(0)
    present_BM = torch.tensor([[bool(bits >> m & 1) for m in range(3)] for bits in range(1, 8)])
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(1000):
        sides = two_subsets(present_BM, rng)
        for side_BM in sides:
            assert bool(side_BM.any(1).all())
            assert not bool((side_BM & ~present_BM).any())
        differ_B = (sides[0] != sides[1]).any(1)
        assert torch.equal(differ_B, present_BM.sum(1) > 1)
        seen.update(tuple(row) for row in torch.stack(sides, 1).flatten(1).long().tolist())
    assert len(seen) == 3 + 7 * 6, "every pair that may be"
