"""The fused source of one modality alone is that modality: its vector, its own head's output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from braid.encoders.backbones.base import Features
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.model.checkpoint import make_net
from braid.encoders.model.fusion import FUSIONS
from braid.encoders.model.net import Net
from braid.encoders.tasks import Task
from braid.encoders.training.batches import Batch
from braid.encoders.training.encoded import EncodedSamples, source_logits
from braid.encoders.training.objective import Objective

CLASSES = ("a", "b", "c")
PRESENT = torch.tensor([[True, False], [True, True], [False, True], [True, True]])


def config(fusion: str = "early") -> TrainConfig:
    encoders = {"text": EncoderConfig(kind="hashed"), "image": EncoderConfig(kind="small-cnn")}
    model = ModelConfig(encoders=encoders, dim=16, fusion=fusion)
    return TrainConfig(model=model, drop=0.0, align=0.0)


def net_of(settings: TrainConfig) -> Net:
    torch.manual_seed(0)
    net = make_net(settings, {"kind": Task(classes=CLASSES)}).eval()
    for weight in (*net.fusion.parameters(), *net.heads.parameters()):  # some begin at 0
        weight.data.add_(0.3 * torch.randn_like(weight))
    return net


def batch_of(net: Net, present: torch.Tensor = PRESENT) -> Batch:
    def some(name: str, count: int) -> Features:
        width, tokens = net.encoder(name).width, net.encoder(name).token_width
        tokens_BTF = torch.randn(count, 3, tokens) if tokens else None
        pooled_BF = F.normalize(torch.randn(count, width), dim=1)
        return Features(pooled_BF=pooled_BF, tokens_BTF=tokens_BTF)

    torch.manual_seed(1)
    counts = zip(net.modalities, present.sum(0).tolist(), strict=True)
    return Batch(
        features={name: some(name, count) for name, count in counts if count},
        present_BM=present,
        group_B=torch.arange(len(present)),
        target={"kind": torch.arange(len(present)) % len(CLASSES)},
    )


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_a_modality_alone_is_answered_by_its_own_head(fusion: str) -> None:
    net = net_of(config(fusion))
    batch = batch_of(net)
    with torch.no_grad():
        unit, fused = net.align(batch.features, PRESENT)
        logits = net.logits("kind", batch.features, unit, fused, PRESENT, PRESENT)
        head = net.heads("kind", "fused", fused)
    for row in range(len(PRESENT)):
        text, image, both = logits[row]
        only = {0: text, 2: image}.get(row, head[row])
        assert torch.equal(both, only), row
        assert (row in (0, 2)) != torch.allclose(both, head[row]), row


def test_decisions_are_fitted_on_the_outputs_that_a_subset_gives() -> None:
    net = net_of(config())
    batch = batch_of(net)
    seen = EncodedSamples(
        features=batch.features,
        present_BM=PRESENT,
        kept_BM=PRESENT,
        group_B=batch.group_B,
        target=batch.target,
    )
    logits, present = source_logits(net, "kind", seen.only(torch.tensor([True, False])))
    assert present[:, :2].tolist() == [[True, False], [True, False], [False, False], [True, False]]
    has = present[:, 0]
    assert torch.equal(logits[has, 2], logits[has, 0])


@pytest.mark.parametrize("monotone", [0.0, 1.0])
def test_own_heads_learn_what_they_answer_alone(monotone: float) -> None:
    """Both terms are the cross-entropy of own heads, and fewer modalities are not more confident
    than themselves."""
    settings = replace(config(), monotone=monotone)
    net = net_of(settings)
    batch = batch_of(net, torch.tensor([[True, False]] * 5))
    terms = Objective(net.modalities, settings)(net, batch, np.random.default_rng(0))
    assert terms.parts["fuse"] == pytest.approx(terms.parts["task"], rel=1e-5)
    terms.loss.backward()


def test_a_modality_kept_by_chance_is_answered_by_its_own_head() -> None:
    """`drop` 1 keeps one modality of each sample: the fused head learns nothing."""
    settings = replace(config(), drop=1.0, task=0.0)
    net = net_of(settings)
    batch = batch_of(net, torch.ones(8, 2, dtype=torch.bool))
    Objective(net.modalities, settings)(net, batch, np.random.default_rng(0)).loss.backward()
    weights = {
        source: net.heads.head("kind", source).linear.weight
        for source in ("text", "image", "fused")
    }
    moved = {
        source: weight.grad is not None and bool(weight.grad.any())
        for source, weight in weights.items()
    }
    assert moved == {"text": True, "image": True, "fused": False}
