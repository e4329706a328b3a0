"""Decision makes the prediction, late: each source has predicted, now they are combined.

Shapes: B samples, S sources (modalities, then "fused"), C classes.

Both rules take calibrated probabilities and which sources are present:

    weighted   p = sum_s w_s p_s / sum_s w_s over the sources present; w is learnt on validation
               data, so a modality that knows nothing there gets a weight near 0.
    vote       each source present has one vote; a tie goes to the tied class with the highest sum
               of calibrated probability. `probs` are the shares of the votes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WEIGHT_FLOOR = 1e-6  # so that a record with nothing but a useless modality still gets an answer
TEMPERATURES = (0.25, 10.0)  # a small validation split that is all right would ask for 0


def weighted(probs_BSC: Tensor, present_BS: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
    """The combined probabilities, float[B, C], and the class decided on, int[B]."""
    weights_BS = weights_S.clamp(min=WEIGHT_FLOOR) * present_BS
    combined_BC = torch.einsum("bs,bsc->bc", weights_BS, probs_BSC)
    combined_BC = combined_BC / weights_BS.sum(1, keepdim=True)
    return combined_BC, combined_BC.argmax(1)


def vote(probs_BSC: Tensor, present_BS: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of the votes, float[B, C], and the class decided on, int[B]."""
    ballots_BSC = F.one_hot(probs_BSC.argmax(2), probs_BSC.shape[2]) * present_BS[:, :, None]
    votes_BC = ballots_BSC.sum(1).float()
    trust_BC = (probs_BSC * present_BS[:, :, None]).sum(1)
    # The sum of probabilities is below S + 1, so it decides among equal votes and nothing else.
    winner_B = (votes_BC + trust_BC / (probs_BSC.shape[1] + 1.0)).argmax(1)
    return votes_BC / votes_BC.sum(1, keepdim=True), winner_B


Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
RULES: dict[str, Rule] = {"weighted": weighted, "vote": vote}


class Decision(nn.Module):
    """A rule with its learnt weights and temperatures, for one task."""

    weights_S: Tensor
    temperature_S: Tensor

    def __init__(self, rule: str, sources: int) -> None:
        if rule not in RULES:
            raise ValueError(f"no decision {rule!r}; there are {', '.join(RULES)}")
        super().__init__()
        self.rule = rule
        self.register_buffer("weights_S", torch.full((sources,), 1.0 / sources))
        self.register_buffer("temperature_S", torch.ones(sources))

    def calibrated(self, logits_BSC: Tensor) -> Tensor:
        """Probabilities of each source, float[B, S, C]."""
        return torch.softmax(logits_BSC / self.temperature_S[:, None], dim=2)

    def forward(self, logits_BSC: Tensor, present_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each source says, the combined probabilities, and the class decided on.

        Args:
            logits_BSC: what stands where `present_BS` is False does not matter, if finite.
            present_BS: bool, at least one True in each row.

        Returns:
            float[B, S, C], float[B, C], int[B].
        """
        probs_BSC = self.calibrated(logits_BSC)
        combined_BC, winner_B = RULES[self.rule](probs_BSC, present_BS.float(), self.weights_S)
        return probs_BSC, combined_BC, winner_B

    def fit(self, logits_BSC: Tensor, present_BS: Tensor, label_B: Tensor) -> None:
        """Learn temperatures, then weights, on validation data; nothing changes without any.

        A source's temperature minimises its negative log-likelihood (Guo et al. 2017, arXiv
        1706.04599). The weights maximise the mixture's likelihood, see `fit_weights`.
        """
        known_B = label_B >= 0
        logits_BSC, present_BS, label_B = logits_BSC[known_B], present_BS[known_B], label_B[known_B]
        for source in range(present_BS.shape[1]):
            rows = present_BS[:, source]
            if int(rows.sum()) > 0:
                self.temperature_S[source] = fit_temperature(
                    logits_BSC[rows, source], label_B[rows]
                )
        if len(label_B) > 0:
            right_BS = self.calibrated(logits_BSC)[torch.arange(len(label_B)), :, label_B]
            self.weights_S.copy_(fit_weights(right_BS, present_BS))


def fit_temperature(logits_BC: Tensor, label_B: Tensor) -> float:
    """The temperature in `TEMPERATURES` with the lowest negative log-likelihood.

    Golden-section search over its logarithm: the likelihood is unimodal in 1 / temperature.
    """
    low, high = (float(torch.tensor(t).log()) for t in TEMPERATURES)
    ratio = (5**0.5 - 1) / 2

    def loss(log_t: float) -> float:
        return float(
            F.cross_entropy(logits_BC.double() / float(torch.tensor(log_t).exp()), label_B)
        )

    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if loss(a) < loss(b):
            high = b
        else:
            low = a
    return float(torch.tensor((low + high) / 2).exp())


def fit_weights(right_BS: Tensor, present_BS: Tensor, rounds: int = 200) -> Tensor:
    """Mixture weights, float[S], summing to 1, for the probability each source gave the truth.

    Maximises sum_b log(sum_s w_s right_bs / sum_s w_s), both sums over the sources present in row
    b, by minorisation: each round raises it (Hunter and Lange 2004, "A tutorial on MM algorithms").
    Sources present in no row keep an equal share.
    """
    present = present_BS.double()
    right = right_BS.double() * present
    seen_S = present.sum(0)
    weights_S = torch.full((present.shape[1],), 1.0 / present.shape[1], dtype=torch.float64)
    for _ in range(rounds):
        joint = right * weights_S + 1e-12 * present
        share_S = (joint / joint.sum(1, keepdim=True)).sum(0)
        at_stake_S = (present / (present @ weights_S)[:, None].clamp(min=1e-12)).sum(0)
        updated_S = torch.where(seen_S > 0, share_S / at_stake_S.clamp(min=1e-12), weights_S)
        weights_S = updated_S / updated_S.sum()
    return weights_S.float()
