"""Decision rules and their fits against plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from braid.encoders.model.calibration import (
    PRIOR,
    fit_average,
    fit_exponents,
    fit_temperature,
    fit_weights,
)
from braid.encoders.model.decision import MIN_ROWS, RULES, Decision, subset_of

ALL = torch.ones(1, 3, dtype=torch.bool)


def rule(
    name: str, probs: list[list[float]], present: list[float], weights: list[float]
) -> tuple[list[float], int]:
    combined, winner = RULES[name](
        torch.tensor([probs]), torch.tensor([present]), torch.tensor([weights])
    )
    return combined[0].tolist(), int(winner)


def test_weighted_is_the_mean_by_weight_of_those_present() -> None:
    probs = [[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]]
    combined, winner = rule("weighted", probs, [1, 1, 0], [3.0, 1.0, 9.0])
    assert combined == pytest.approx([(3 * 0.9 + 0.2) / 4, (3 * 0.1 + 0.8) / 4])
    assert winner == 0


@pytest.mark.parametrize("name", ["weighted", "logproduct"])
def test_a_source_of_weight_0_still_predicts_alone(name: str) -> None:
    combined, winner = rule(name, [[0.1, 0.9], [0.9, 0.1]], [1, 0], [0.0, 1.0])
    assert winner == 1
    assert sum(combined) == pytest.approx(1.0)
    combined, winner = rule(name, [[0.1, 0.9], [0.9, 0.1]], [1, 1], [0.0, 1.0])
    assert combined == pytest.approx([0.9, 0.1], abs=1e-5)


def test_no_source_makes_a_class_impossible_in_the_product() -> None:
    combined, winner = rule("logproduct", [[1.0, 0.0], [1e-4, 1 - 1e-4]], [1, 1], [1.0, 1.0])
    assert combined[1] == pytest.approx(1e-9 / (1e-9 + 1e-4), rel=1e-3)
    assert winner == 0


def test_votes_are_counted_and_ties_go_to_the_highest_sum() -> None:
    probs = [[0.5, 0.3, 0.2], [0.45, 0.4, 0.15], [0.0, 0.0, 1.0]]
    shares, winner = rule("vote", probs, [1, 1, 1], [1.0] * 3)
    assert shares == pytest.approx([2 / 3, 0, 1 / 3])
    assert winner == 0
    shares, winner = rule("vote", probs, [1, 0, 1], [1.0] * 3)
    assert shares == pytest.approx([0.5, 0, 0.5])
    assert winner == 2
    each = torch.tensor([[1.0, 1, 1], [1, 0, 1]])
    both, _ = RULES["vote"](torch.tensor([probs] * 2), each, torch.ones(2, 3))
    assert both.flatten().tolist() == pytest.approx([2 / 3, 0, 1 / 3, 0.5, 0, 0.5])
    # One vote outweighs any sum of probabilities.
    many = [[0.51, 0.49]] * 5 + [[0.0, 1.0]] * 4
    assert rule("vote", many, [1] * 9, [1.0] * 9)[1] == 0
    close = [[0.34, 0.33, 0.33], [0.34, 0.33, 0.33], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert rule("vote", close, [1, 1, 1, 1], [1.0] * 4)[1] == 0


def test_a_decision_starts_without_knowledge() -> None:
    for name, start in (("weighted", 1 / 3), ("vote", 1 / 3), ("logproduct", 1.0)):
        decision = Decision(name, 3)
        assert decision.weights_ZS.tolist() == [[pytest.approx(start)] * 3] * 4
        assert decision.temperature_ZS.tolist() == [[1.0] * 3] * 4
        assert decision.sharpness_Z.tolist() == [1.0] * 4
    assert Decision("vote", 4).weights_ZS.shape == (8, 4)
    with pytest.raises(ValueError, match="no decision 'median'"):
        Decision("median", 3)


def test_the_subset_has_a_bit_for_each_modality() -> None:
    present = torch.tensor([[bits & 1, bits & 2, bits & 4, 1] for bits in range(8)]) > 0
    assert subset_of(present).tolist() == list(range(8))


def test_outputs_have_the_temperature_of_their_subset() -> None:
    decision = Decision("weighted", 3)
    decision.temperature_ZS[3] = torch.tensor([2.0, 4.0, 8.0])
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    outputs, combined, _ = decision(logits, ALL)
    expected = torch.stack([(logits[0, s] / t).softmax(0) for s, t in enumerate((2.0, 4.0, 8.0))])
    assert torch.allclose(outputs[0], expected)
    assert torch.allclose(combined[0], expected.mean(0))
    several = Decision("weighted", 3, "multilabel")
    several.temperature_ZS[3] = torch.tensor([2.0, 4.0, 8.0])
    several.sharpness_Z[3] = 2.0
    outputs, combined, yes = several(logits, ALL)
    for c in range(5):
        chance = [float(torch.sigmoid(logits[0, s, c] / t)) for s, t in enumerate((2, 4, 8))]
        assert outputs[0, :, c].tolist() == pytest.approx(chance)
        mean = sum(chance) / 3
        sharp = mean**2 / (mean**2 + (1 - mean) ** 2)
        assert float(combined[0, c]) == pytest.approx(sharp)
        assert bool(yes[0, c]) is (mean > 0.5)


def test_without_a_subset_the_fit_over_everything_calibrates() -> None:
    decision = Decision("weighted", 3)
    decision.temperature_ZS[0] = 2.0
    logits = torch.tensor([[[1.0, 0.0]] * 3])
    assert torch.allclose(decision.calibrated(logits), torch.softmax(logits / 2, dim=2))


def test_one_known_row_is_enough_for_the_fit_over_everything() -> None:
    logits = torch.tensor([[[3.0, 0.0], [0.0, 3.0]]])
    present = torch.ones(1, 2, dtype=torch.bool)
    decision = Decision("weighted", 2)
    decision.fit(logits, present, torch.tensor([0]))
    assert decision.temperature_ZS[0, 0] < 0.5
    assert 0.0 < decision.weights_ZS[0, 0] < 0.5, "the prior is worth a record, too"
    decision.fit(logits.repeat(30, 1, 1), present.repeat(30, 1), torch.zeros(30).long())
    assert decision.weights_ZS[0, 0] > 0.9


@pytest.mark.parametrize("rule", ["weighted", "logproduct"])
def test_sources_that_add_nothing_get_a_weight_of_exactly_0_and_do_no_harm(rule: str) -> None:
    noise_gone, right, right_alone = 0, 0.0, 0.0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        label = torch.arange(400) % 4
        fused = 3.0 * F.one_hot(label, 4) + torch.randn(400, 4, generator=generator)
        noise = 3.0 * torch.randn(400, 4, generator=generator)
        echo = fused + 2.0 * torch.randn(400, 4, generator=generator)  # of the fused one, worse
        logits, fitted = torch.stack([noise, echo, fused], dim=1), slice(0, 60)
        decision = Decision(rule, 3)
        decision.fit(logits[fitted], ALL.expand(60, 3), label[fitted])
        noise_gone += float(decision.weights_ZS[3, 0]) == 0.0
        assert float(decision.weights_ZS[3, 1]) < 0.2
        assert float(decision.weights_ZS[3, 2]) > 0.7
        _, _, winner = decision(logits, ALL.expand(400, 3))
        right += float((winner == label)[60:].float().mean())
        right_alone += float((fused.argmax(1) == label)[60:].float().mean())
    assert noise_gone >= 5
    assert right > right_alone - 10 * 0.003


def test_a_number_of_a_source_that_adds_nothing_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(100, generator=generator)
    values = target[:, None] + torch.randn(100, 2, generator=generator) * torch.tensor([9.0, 0.1])
    weights = fit_average(values, torch.ones(100, 2, dtype=torch.bool), target)
    assert weights.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("rule", ["weighted", "logproduct"])
def test_a_modality_that_knows_better_than_the_fused_vector_is_heard(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(200) % 4
    sure = 3.0 * F.one_hot(label, 4) + torch.randn(200, 4, generator=generator)
    worse = sure + 3.0 * torch.randn(200, 4, generator=generator)
    decision = Decision(rule, 2)
    present = torch.ones(200, 2, dtype=torch.bool)
    decision.fit(torch.stack([sure, worse], dim=1), present, label)
    assert decision.weights_ZS[1, 0] > 4 * decision.weights_ZS[1, 1]


@pytest.mark.parametrize("fit", [fit_weights, fit_exponents])
def test_copies_of_a_record_are_no_more_evidence(fit: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(12) % 2
    probs = torch.softmax(
        F.one_hot(label, 2)[:, None] + torch.randn(12, 2, 2, generator=generator), 2
    )
    present = torch.ones(12, 2, dtype=torch.bool)

    def weights(copies: int) -> torch.Tensor:
        rows = probs.repeat(copies, 1, 1)
        labels = label.repeat(copies)
        right = rows[torch.arange(len(labels)), :, labels]
        first = (right,) if fit is fit_weights else (rows,)
        last = () if fit is fit_weights else (labels,)
        return fit(*first, present.repeat(copies, 1), *last, copies=copies)

    assert torch.allclose(weights(1), weights(5), atol=1e-4)
    assert float(weights(1)[0]) > 0.05


def test_a_logproduct_is_fitted_by_its_exponents() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(30) % 2
    logits = F.one_hot(label, 2)[:, None] + torch.randn(30, 2, 2, generator=generator)
    present = torch.ones(30, 2, dtype=torch.bool)
    decision = Decision("logproduct", 2)
    decision.fit(logits, present, label)
    probs = torch.softmax(logits / decision.temperature_ZS[1][:, None], dim=2)
    assert torch.allclose(decision.weights_ZS[1], fit_exponents(probs, present, label))
    assert decision.sharpness_Z.tolist() == [1.0, 1.0]


def test_numbers_are_averaged_by_weight_or_their_median_is_taken() -> None:
    numbers = torch.tensor([[[1.0], [5.0], [90.0]]] * 2)
    present = torch.tensor([[True, True, False], [True, True, True]])
    weighted = Decision("weighted", 3, "regression")
    weighted.weights_ZS[3] = torch.tensor([3.0, 1.0, 0.0])
    outputs, combined, value = weighted(numbers, present)
    assert torch.equal(outputs, numbers)
    assert torch.equal(combined[:, 0], value)
    assert value.tolist() == pytest.approx([2.0, 2.0], abs=1e-4)
    _, _, value = Decision("vote", 3, "regression")(numbers, present)
    assert value.tolist() == [1.0, 5.0]


def test_a_fit_sets_its_rows_and_leaves_unknown_targets_out() -> None:
    assert MIN_ROWS == 20
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(MIN_ROWS) % 2
    logits = 3.0 * F.one_hot(label, 2)[:, None] + torch.randn(MIN_ROWS, 3, 2, generator=generator)
    present = torch.ones(MIN_ROWS, 3, dtype=torch.bool)
    present[:, 1] = False
    decision = Decision("weighted", 3)
    decision.temperature_ZS[0, 1] = 3.0
    decision.fit_subset(1, logits[:-1], present[:-1], label[:-1])
    assert torch.equal(decision.weights_ZS, Decision("weighted", 3).weights_ZS), "too few rows"
    decision.fit_subset(1, logits, present, label)
    assert decision.temperature_ZS[1, 1] == 3.0, "no row has this source"
    for source in (0, 2):
        fitted = fit_temperature(logits[:, source], label)
        assert float(decision.temperature_ZS[1, source]) == pytest.approx(fitted)
    probs = torch.softmax(logits / decision.temperature_ZS[1][:, None], dim=2)
    right = probs[torch.arange(MIN_ROWS), :, label]
    assert torch.allclose(decision.weights_ZS[1], fit_weights(right, present))
    combined, _ = RULES["weighted"](probs, present.float(), decision.weights_ZS[1][None])
    sharp = 1 / fit_temperature(combined.log(), label)
    assert float(decision.sharpness_Z[1]) == pytest.approx(sharp, rel=1e-4)
    for z in (0, 2, 3):
        assert decision.temperature_ZS[z].tolist() == [1.0, 1.0 if z else 3.0, 1.0]
    more = torch.cat([logits, 100 * torch.randn(5, 3, 2, generator=generator)])
    again = Decision("weighted", 3)
    unknown = torch.cat([label, torch.full((5,), -1)])
    again.fit(more, torch.cat([present, present[:5]]), unknown)
    assert torch.allclose(again.weights_ZS[2], decision.weights_ZS[1])


def test_a_fit_of_several_labels_is_one_of_yes_or_no() -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(200, 3, generator=generator) > 0.6).float()
    sure = 4.0 * (2 * target - 1) + 2.0 * torch.randn(200, 3, generator=generator)
    logits = torch.stack([sure, 5.0 * torch.randn(200, 3, generator=generator)], dim=1)
    present = torch.ones(200, 2, dtype=torch.bool)
    decision = Decision("weighted", 2, "multilabel")
    decision.fit(logits, present, target)
    pairs = torch.stack([torch.zeros(600), sure.flatten()], dim=1)
    fitted = fit_temperature(pairs, target.flatten().long())
    assert float(decision.temperature_ZS[1, 0]) == pytest.approx(fitted, rel=1e-4)
    assert decision.weights_ZS[1, 0] > 0.95
    kept = decision.weights_ZS.clone()
    decision.fit(logits, present, torch.full((200, 3), math.nan))
    assert torch.equal(decision.weights_ZS, kept)
    part = target.clone()
    part[:, 0] = math.nan  # a row with an unknown label is left out
    decision.fit(logits, present, part)
    assert torch.equal(decision.weights_ZS, kept)


def test_a_fit_of_numbers_is_the_average_of_the_least_error() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(30, generator=generator)
    values = target[:, None] + torch.randn(30, 2, generator=generator) * torch.tensor([0.3, 1.0])
    present = torch.ones(30, 2, dtype=torch.bool)
    target[0] = math.nan
    decision = Decision("weighted", 2, "regression")
    decision.fit_subset(1, values[:, :, None], present, target)
    expected = fit_average(values[1:], present[1:], target[1:])
    assert torch.allclose(decision.weights_ZS[1], expected)
    assert decision.weights_ZS[0].tolist() == [0.5, 0.5]


def test_a_temperature_stays_in_its_range() -> None:
    label = torch.arange(40) % 2
    sure = F.one_hot(label, 2).float()
    assert fit_temperature(sure, label) == pytest.approx(0.25, rel=1e-4)
    assert fit_temperature(sure, 1 - label) == pytest.approx(10.0, rel=1e-4)


def test_a_temperature_has_the_lowest_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (300,), generator=generator)
    logits = 2.0 * F.one_hot(label, 4) + 2.0 * torch.randn(300, 4, generator=generator)

    def loss(temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / temperature, label))

    best = fit_temperature(logits, label)
    assert 0.3 < best < 9.0
    assert loss(best) < min(loss(best * 1.01), loss(best / 1.01))


def test_mixture_weights_have_the_highest_likelihood() -> None:
    generator = torch.Generator().manual_seed(0)
    right = 0.1 + 0.9 * torch.rand(100, 3, generator=generator)
    present = torch.rand(100, 3, generator=generator) > 0.3
    present[:, 0] = True
    weights = fit_weights(right, present)
    assert float(weights.sum()) == pytest.approx(1.0)

    def likelihood(of: torch.Tensor) -> float:
        here = present.double()
        mixed = (here * right.double() * of).sum(1) / (here * of).sum(1)
        return float(mixed.log().sum() + PRIOR * (of[-1] / of.sum()).log())

    best = likelihood(weights.double())
    for source in range(3):
        for factor in (0.97, 1.03):
            other = weights.double().clone()
            other[source] *= factor
            assert likelihood(other / other.sum()) < best


def test_a_source_that_is_never_there_gets_no_weight() -> None:
    right = torch.tensor([[0.9, 0.5, 0.1]] * 4)
    present = torch.tensor([[True, False, True]] * 4)
    weights = fit_weights(right, present)
    assert weights[0] > 0.5
    assert weights[1:].tolist() == [0.0, pytest.approx(1 - float(weights[0]))]
    probs = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]] * 8)
    powers = fit_exponents(probs, torch.tensor([[False, True]] * 8), torch.zeros(8).long())
    assert powers.tolist() == [0.0, pytest.approx(1.0)]
    numbers = torch.tensor([[99.0, 1.0]] * 4)
    weights = fit_average(numbers, torch.tensor([[False, True]] * 4), torch.full((4,), 5.0))
    assert weights.tolist() == [0.0, 1.0]


def test_exponents_stay_in_their_range() -> None:
    label = torch.arange(400) % 2
    weak = torch.tensor([[0.51, 0.49], [0.49, 0.51]])[label]
    loud = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[label]
    powers = fit_exponents(
        torch.stack([weak, loud], dim=1), torch.ones(400, 2, dtype=torch.bool), label
    )
    assert powers.tolist() == [5.0, 0.0]


def test_exponents_have_the_lowest_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (60,), generator=generator)
    logits = torch.randn(60, 2, 3, generator=generator) + F.one_hot(label, 3)[:, None]
    probs = torch.softmax(logits * torch.tensor([1.0, 2.0])[:, None], dim=2)
    present = torch.rand(60, 2, generator=generator) > 0.2
    powers = fit_exponents(probs, present, label).double()

    def loss(of: torch.Tensor) -> float:
        pooled = torch.einsum("s,bsc->bc", of, probs.double().log() * present[:, :, None])
        prior = PRIOR / 60 * (of[0] + (of[1] - 1).square() / 2)
        return float(F.cross_entropy(pooled, label) + prior)

    assert 0.01 < float(powers.min()) < float(powers.max()) < 4.9
    for source in range(2):
        for factor in (0.98, 1.02):
            other = powers.clone()
            other[source] *= factor
            assert loss(other) > loss(powers)


def test_average_weights_have_the_least_error() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(80, generator=generator)
    noise = torch.randn(80, 3, generator=generator) * torch.tensor([1.0, 1.5, 0.8])
    values, present = target[:, None] + noise, torch.rand(80, 3, generator=generator) > 0.3
    present[:, -1] = True
    weights = fit_average(values, present, target).double()
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights.min()) > 0.05
    fused_error = float((values[:, -1] - target).square().mean())

    def loss(of: torch.Tensor) -> float:
        here = present.double() * of
        mean = (here * values).sum(1) / here.sum(1)
        prior = PRIOR / 80 * (1 - of[-1] / of.sum())
        return float(F.mse_loss(mean, target.double())) / fused_error + float(prior)

    for source in range(3):
        for factor in (0.98, 1.02):
            other = weights.clone()
            other[source] *= factor
            assert loss(other) > loss(weights)
