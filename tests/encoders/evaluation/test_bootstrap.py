"""The paired bootstrap against a plain one, and the effective rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from braid.encoders.evaluation.bootstrap import Bootstrap, interval_of
from braid.encoders.training.metrics import bins_of, calibration_error, effective_rank


def test_the_bootstrap_is_the_plain_one() -> None:
    rng = np.random.default_rng(3)
    value_N, known_N = torch.from_numpy(rng.random(40)), torch.from_numpy(rng.random(40) < 0.7)
    drawn = Bootstrap(40, resamples=300, seed=5)
    assert drawn.weight_RN.sum(1).tolist() == [40.0] * 300
    plain = []
    for counts in drawn.weight_RN.long().tolist():
        chosen = [i for i, count in enumerate(counts) for _ in range(count) if known_N[i]]
        plain.append(float(value_N[chosen].mean()))
    assert drawn.mean(value_N, known_N).tolist() == pytest.approx(plain, abs=1e-5)
    low, high = interval_of(drawn.mean(value_N, known_N))
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=1e-5)
    again = Bootstrap(40, resamples=300, seed=5)
    assert torch.equal(drawn.weight_RN, again.weight_RN)
    assert not torch.equal(drawn.weight_RN, Bootstrap(40, resamples=300, seed=6).weight_RN)


def test_the_interval_is_about_that_of_the_normal_approximation() -> None:
    value_N = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = interval_of(
        Bootstrap(400, resamples=2000, seed=0).mean(value_N, torch.ones(400, dtype=torch.bool))
    )
    half = 1.96 * float(value_N.std()) / 20
    assert (low, high) == pytest.approx(
        (float(value_N.mean()) - half, float(value_N.mean()) + half), abs=0.01
    )


def test_the_resampled_calibration_error_is_the_measure_itself() -> None:
    torch.manual_seed(0)
    probs_NC = torch.softmax(2 * torch.randn(60, 4), dim=1)
    label_N = torch.randint(0, 4, (60,))
    confidence_N, said_N = probs_NC.max(1)
    drawn = Bootstrap(60, resamples=20, seed=1)
    result = drawn.calibration_error(
        (said_N == label_N).float() - confidence_N,
        bins_of(confidence_N),
        torch.ones(60, dtype=torch.bool),
    )
    for row, counts_N in zip(result.tolist(), drawn.weight_RN.long(), strict=True):
        chosen = torch.repeat_interleave(torch.arange(60), counts_N)
        assert row == pytest.approx(calibration_error(probs_NC[chosen], label_N[chosen]), abs=1e-5)


def test_effective_rank_counts_the_directions() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.diag(torch.tensor([3.0, 3.0, 0.0]))) == pytest.approx(2.0)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(np.exp(entropy))
