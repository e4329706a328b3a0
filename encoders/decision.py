"""Decision makes the prediction, late: each source has predicted, now they are combined.

Shapes: B samples, S sources (modalities, then "fused"), C classes.

Each rule takes calibrated probabilities and which sources are present:

    weighted   p = sum_s w_s p_s / sum_s w_s over the sources present; w is learnt on validation
               data, so a modality that knows nothing there gets a weight near 0.
    logproduct p ~ prod_s p_s^(w_s) over the sources present: a logarithmic opinion pool. With
               weights 1 it is the product rule, Bayes' answer where sources err independently and
               classes are equally frequent (Kittler et al. 1998, "On combining classifiers").
    vote       each source present has one vote; a tie goes to the tied class with the highest sum
               of calibrated probability. `probs` are the shares of the votes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WEIGHT_FLOOR = 1e-6  # so that a record with nothing but a useless modality still gets an answer
PROB_FLOOR = 1e-9  # a class that one source holds impossible stays possible
POWERS = (1e-3, 5.0)
PULL = 1e-3
TEMPERATURES = (0.25, 10.0)  # a small validation split that is all right would ask for 0


def weighted(probs_BSC: Tensor, present_BS: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
    """The combined probabilities, float[B, C], and the class decided on, int[B]."""
    weights_BS = weights_S.clamp(min=WEIGHT_FLOOR) * present_BS
    combined_BC = torch.einsum("bs,bsc->bc", weights_BS, probs_BSC)
    combined_BC = combined_BC / weights_BS.sum(1, keepdim=True)
    return combined_BC, combined_BC.argmax(1)


def logproduct(
    probs_BSC: Tensor, present_BS: Tensor, weights_S: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The combined probabilities, float[B, C], and the class decided on, int[B]."""
    weights_BS = weights_S.clamp(min=WEIGHT_FLOOR) * present_BS
    logs_BSC = probs_BSC.clamp(min=PROB_FLOOR).log()
    combined_BC = torch.softmax(torch.einsum("bs,bsc->bc", weights_BS, logs_BSC), dim=1)
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
RULES: dict[str, Rule] = {"weighted": weighted, "logproduct": logproduct, "vote": vote}


class Decision(nn.Module):
    """A rule with its learnt weights and temperatures, for one task."""

    weights_S: Tensor
    temperature_S: Tensor

    def __init__(self, rule: str, sources: int) -> None:
        if rule not in RULES:
            raise ValueError(f"no decision {rule!r}; there are {', '.join(RULES)}")
        super().__init__()
        self.rule = rule
        start = 1.0 if rule == "logproduct" else 1.0 / sources
        self.register_buffer("weights_S", torch.full((sources,), start))
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
        1706.04599). The weights maximise the likelihood of the rule's answer, see `fit_weights`
        and `fit_powers`.
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
            probs_BSC = self.calibrated(logits_BSC)
            if self.rule == "logproduct":
                self.weights_S.copy_(fit_powers(probs_BSC, present_BS, label_B))
            else:
                right_BS = probs_BSC[torch.arange(len(label_B)), :, label_B]
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


def fit_powers(probs_BSC: Tensor, present_BS: Tensor, label_B: Tensor, steps: int = 50) -> Tensor:
    """The exponents of `logproduct`, float[S], each in `POWERS`, that give the truth most.

    Minimises the negative log-likelihood of the pool plus `PULL` times the mean square of the
    exponents' logarithms, which keeps them near 1 where data say little. By L-BFGS over the
    logarithms. Sources present in no row keep 1.
    """
    low, high = POWERS
    logs_BSC = probs_BSC.double().clamp(min=PROB_FLOOR).log() * present_BS[:, :, None]
    log_power_S = torch.zeros(probs_BSC.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_power_S], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        power_S = log_power_S.exp().clamp(low, high)
        pooled_BC = torch.einsum("s,bsc->bc", power_S, logs_BSC)
        found = F.cross_entropy(pooled_BC, label_B) + PULL * log_power_S.square().mean()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    return log_power_S.detach().exp().clamp(low, high).float()
