"""Decision: combines the predictions of all sources into one (late fusion).

Shapes: B samples, M modalities, S sources (the modalities, then "fused"), C classes, Z subsets of
the modalities (2^M; subset z holds modality m where bit m of z is set).

Each rule takes calibrated probabilities and which sources are present:

    weighted   p = sum_s w_s p_s / sum_s w_s over the sources present; w is learnt on rows that the
               sources' model has not, with a prior for the fused vector alone: a modality that adds
               nothing to it gets a weight of exactly 0.
    logproduct p ~ prod_s p_s^(w_s) over the sources present: a logarithmic opinion pool. With
               weights 1 it is the product rule, Bayes' answer where sources err independently and
               classes are equally frequent (Kittler et al. 1998, "On combining classifiers").
    vote       each source present has one vote; a tie goes to the tied class with the highest sum
               of calibrated probability. `probs` are the shares of the votes.

Temperatures and weights are those of the subset of modalities that is present: the fused vector of
a caption alone is not the one of caption and picture. Several labels at once are as many decisions
between "no" and "yes"; numbers are averaged with weights, by `vote` their median is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .calibration import PROB_FLOOR, fit_average, fit_exponents, fit_temperature, fit_weights


def weighted(probs_BSC: Tensor, present_BS: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The combined probabilities, float[B, C], and the class decided on, int[B]."""
    weights_BS = _of_those_here(weights_BS, present_BS)
    combined_BC = torch.einsum("bs,bsc->bc", weights_BS, probs_BSC)
    combined_BC = combined_BC / weights_BS.sum(1, keepdim=True)
    return combined_BC, combined_BC.argmax(1)


def logproduct(probs_BSC: Tensor, present_BS: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The combined probabilities, float[B, C], and the class decided on, int[B]."""
    weights_BS = _of_those_here(weights_BS, present_BS)
    logs_BSC = probs_BSC.clamp(min=PROB_FLOOR).log()
    combined_BC = torch.softmax(torch.einsum("bs,bsc->bc", weights_BS, logs_BSC), dim=1)
    return combined_BC, combined_BC.argmax(1)


def vote(probs_BSC: Tensor, present_BS: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of the votes, float[B, C], and the class decided on, int[B]."""
    ballots_BSC = F.one_hot(probs_BSC.argmax(2), probs_BSC.shape[2]) * present_BS[:, :, None]
    votes_BC = ballots_BSC.sum(1).float()
    trust_BC = (probs_BSC * present_BS[:, :, None]).sum(1)
    # The sum of probabilities is below S + 1, so it only breaks ties.
    winner_B = (votes_BC + trust_BC / (probs_BSC.shape[1] + 1.0)).argmax(1)
    return votes_BC / votes_BC.sum(1, keepdim=True), winner_B


def _of_those_here(weights_BS: Tensor, present_BS: Tensor) -> Tensor:
    """The weights, 0 where a source is absent; where all of them are 0, those present have 1."""
    weights_BS = weights_BS * present_BS
    return torch.where(weights_BS.sum(1, keepdim=True) > 0, weights_BS, present_BS)


Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
RULES: dict[str, Rule] = {"weighted": weighted, "logproduct": logproduct, "vote": vote}


class Decision(nn.Module):
    """A rule with its learnt weights and temperatures, for one task.

    Attributes:
        temperature_ZS: of each source under each subset of the modalities.
        weights_ZS: likewise; row 0 is the fit over all rows, which is also used for subsets with
            too few of them.
        sharpness_Z: exponent that calibrates the combined probabilities: an average of calibrated
            probabilities is underconfident.
    """

    temperature_ZS: Tensor
    weights_ZS: Tensor
    sharpness_Z: Tensor

    def __init__(self, rule: str, sources: int, kind: str = "classification") -> None:
        if rule not in RULES:
            raise ValueError(f"no decision {rule!r}; there are {', '.join(RULES)}")
        super().__init__()
        self.rule, self.kind = rule, kind
        subsets = 2 ** (sources - 1)
        start = 1.0 if rule == "logproduct" else 1.0 / sources
        self.register_buffer("temperature_ZS", torch.ones(subsets, sources))
        self.register_buffer("weights_ZS", torch.full((subsets, sources), start))
        self.register_buffer("sharpness_Z", torch.ones(subsets))

    def calibrated(self, logits_BSC: Tensor, subset_B: Tensor | int = 0) -> Tensor:
        """Probabilities of each source, float[B, S, C]; for numbers, the numbers."""
        if self.kind == "regression":
            return logits_BSC
        scaled_BSC = logits_BSC / self.temperature_ZS[subset_B][..., :, None]
        if self.kind == "multilabel":
            return scaled_BSC.sigmoid()
        return torch.softmax(scaled_BSC, dim=2)

    def forward(self, logits_BSC: Tensor, present_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of each source, the combined output, and the decision.

        Args:
            logits_BSC: finite; ignored where `present_BS` is False.
            present_BS: bool, at least one modality in each row.

        Returns:
            float[B, S, C], float[B, C], and the class, int[B]; for several labels bool[B, C], for
            numbers float[B].
        """
        subset_B = subset_of(present_BS)
        outputs_BSC = self.calibrated(logits_BSC, subset_B)
        weights_BS = self.weights_ZS[subset_B]
        here_BS = present_BS.float()
        if self.kind == "regression":
            value_B = _number(self.rule, outputs_BSC[:, :, 0], here_BS, weights_BS)
            return outputs_BSC, value_B[:, None], value_B
        sharpness_B1 = self.sharpness_Z[subset_B][:, None]
        if self.kind == "multilabel":
            classes = outputs_BSC.shape[2]
            combined_NK, yes_N = RULES[self.rule](
                _yes_no(outputs_BSC), _each(here_BS, classes), _each(weights_BS, classes)
            )
            combined_NK = _sharpened(combined_NK, _each(sharpness_B1, classes))
            shape = (len(outputs_BSC), classes)
            return outputs_BSC, combined_NK[:, 1].view(shape), yes_N.view(shape).bool()
        combined_BC, winner_B = RULES[self.rule](outputs_BSC, here_BS, weights_BS)
        return outputs_BSC, _sharpened(combined_BC, sharpness_B1), winner_B

    def fit(
        self, logits_BSC: Tensor, present_BS: Tensor, target: Tensor, *, copies: int = 1
    ) -> None:
        """Fit temperatures, then weights, on rows that the logits' model has not learnt; no change
        without rows.

        A source's temperature minimises its negative log-likelihood (Guo et al. 2017, arXiv
        1706.04599); the weights maximise the likelihood under the rule and a prior
        (`braid.encoders.model.calibration`).

        Args:
            target: int[B], -1 unknown; for several labels float[B, C] and for numbers float[B],
                NaN where unknown.
            copies: how many rows there are of each record.
        """
        self._fit(slice(None), logits_BSC, present_BS, target, copies, min_rows=1)

    def fit_subset(
        self,
        subset: int,
        logits_BSC: Tensor,
        present_BS: Tensor,
        target: Tensor,
        *,
        copies: int = 1,
    ) -> None:
        """As `fit`, for one subset, where every row has just these modalities. Fewer than
        `MIN_ROWS` rows change nothing: the fit over everything stays."""
        self._fit(subset, logits_BSC, present_BS, target, copies, min_rows=MIN_ROWS)

    def _fit(
        self,
        rows: int | slice,
        logits_BSC: Tensor,
        present_BS: Tensor,
        target: Tensor,
        copies: int,
        *,
        min_rows: int,
    ) -> None:
        known_B = known(target)
        logits_BSC, present_BS, target = logits_BSC[known_B], present_BS[known_B], target[known_B]
        if len(target) < min_rows:
            return
        if self.kind == "regression":
            values_BS = logits_BSC[:, :, 0]
            self.weights_ZS[rows] = fit_average(values_BS, present_BS, target, copies=copies)
            return
        if self.kind == "multilabel":
            classes = logits_BSC.shape[2]
            zero = torch.zeros_like(logits_BSC)
            pairs = torch.stack([zero, logits_BSC], dim=3)  # no, yes
            logits_BSC = pairs.transpose(1, 2).flatten(0, 1)
            present_BS, target = _each(present_BS, classes), target.flatten().long()
            copies *= classes
        temperature_S = self.temperature_ZS[0].clone()
        for source in range(present_BS.shape[1]):
            here_B = present_BS[:, source]
            if int(here_B.sum()) > 0:
                temperature_S[source] = fit_temperature(logits_BSC[here_B, source], target[here_B])
        self.temperature_ZS[rows] = temperature_S
        probs_BSC = torch.softmax(logits_BSC / temperature_S[:, None], dim=2)
        if self.rule == "logproduct":
            self.weights_ZS[rows] = fit_exponents(probs_BSC, present_BS, target, copies=copies)
        elif self.rule == "weighted":
            right_BS = probs_BSC[torch.arange(len(target)), :, target]
            weights_S = fit_weights(right_BS, present_BS, copies=copies)
            self.weights_ZS[rows] = weights_S
            combined_BC, _ = weighted(probs_BSC, present_BS.float(), weights_S[None])
            log_BC = combined_BC.clamp(min=PROB_FLOOR).log()
            self.sharpness_Z[rows] = 1.0 / fit_temperature(log_BC, target)


MIN_ROWS = 20  # with fewer rows, the fit over all data is better


def known(target: Tensor) -> Tensor:
    """Which samples have a label, bool[B]."""
    here = target >= 0 if target.dtype == torch.long else ~target.isnan()
    return here if here.ndim == 1 else here.all(1)


def subset_of(present_BS: Tensor) -> Tensor:
    """The number of each row's subset of the modalities, int[B]."""
    bits_M = 2 ** torch.arange(present_BS.shape[1] - 1, device=present_BS.device)
    return (present_BS[:, :-1].long() * bits_M).sum(1)


def _sharpened(probs_BC: Tensor, power_B1: Tensor) -> Tensor:
    raised_BC = probs_BC.clamp(min=0.0) ** power_B1
    return raised_BC / raised_BC.sum(1, keepdim=True)


def _yes_no(probs_BSC: Tensor) -> Tensor:
    """Each class's probability as a choice between no and yes, float[B * C, S, 2]."""
    both_BSCK = torch.stack([1.0 - probs_BSC, probs_BSC], dim=3)
    return both_BSCK.transpose(1, 2).flatten(0, 1)


def _each(values_BS: Tensor, classes: int) -> Tensor:
    """Every row once for each class, [B * C, S]."""
    return values_BS.repeat_interleave(classes, dim=0)


def _number(rule: str, values_BS: Tensor, here_BS: Tensor, weights_BS: Tensor) -> Tensor:
    if rule == "vote":
        absent_BS = values_BS.masked_fill(here_BS == 0, float("nan"))
        return absent_BS.nanmedian(1).values
    weights_BS = _of_those_here(weights_BS, here_BS)
    return (weights_BS * values_BS).sum(1) / weights_BS.sum(1)
