"""Early fusion and the log-product rule: subsets, XOR, exponents that follow what sources know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from braid.encoders.model.calibration import fit_exponents
from braid.encoders.model.decision import RULES, Decision
from braid.encoders.model.fusion import FUSIONS, CrossAttention, IntermediateFusion, make_fusion
from braid.encoders.training.metrics import calibration_error


def units(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_every_subset_gives_a_unit_vector_that_absent_values_do_not_change(name: str) -> None:
    torch.manual_seed(0)
    fusion = make_fusion(name, 8, [0, 0, 0])
    for weight in fusion.parameters():  # some begin at 0, where nothing could be seen
        weight.data.add_(0.3 * torch.randn_like(weight))
    present = torch.tensor([[bool(bits >> m & 1) for m in range(3)] for bits in range(1, 8)])
    unit = units(7, 3, 8)
    fused = fusion(unit, present)
    assert torch.allclose(fused.norm(dim=1), torch.ones(7), atol=1e-5)
    assert torch.allclose(fusion(unit + 100.0 * ~present[:, :, None], present), fused)


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_a_modality_alone_stays_its_own_vector(name: str) -> None:
    torch.manual_seed(0)
    fusion = make_fusion(name, 8, [0, 0, 0])
    for weight in fusion.parameters():
        weight.data.add_(0.3 * torch.randn_like(weight))
    unit = units(4, 3, 8)
    present = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    for m in range(3):
        assert torch.allclose(fusion(unit, present[m].expand(4, 3)), unit[:, m], atol=1e-6)


def test_every_fusion_begins_as_the_mean() -> None:
    unit = units(7, 3, 8)
    present = torch.tensor([[bool(bits >> m & 1) for m in range(3)] for bits in range(1, 8)])
    mean = make_fusion("mean", 8, [0, 0, 0])(unit, present)
    for name in FUSIONS:
        assert torch.allclose(make_fusion(name, 8, [0, 0, 0])(unit, present), mean, atol=1e-6), name


@pytest.mark.slow
def test_early_fusion_learns_a_label_that_no_single_modality_carries() -> None:
    torch.manual_seed(0)
    prototypes = units(2, 2, 16)  # modality, bit, D
    bits = torch.randint(0, 2, (256, 2))
    unit = F.normalize(
        torch.stack([prototypes[m, bits[:, m]] for m in range(2)], dim=1)
        + 0.1 * torch.randn(256, 2, 16),
        dim=2,
    )
    label = bits[:, 0] ^ bits[:, 1]
    right = {}
    for name in ("mean", "early", "intermediate"):
        fusion, head = make_fusion(name, 16, [0, 0]), torch.nn.Linear(16, 2)
        optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=1e-2)
        present = torch.ones(256, 2, dtype=torch.bool)
        for _ in range(100):
            loss = F.cross_entropy(10 * head(fusion(unit, present)), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right[name] = float((head(fusion(unit, present)).argmax(1) == label).float().mean())
    assert right["early"] > 0.98
    assert right["intermediate"] > 0.98
    assert right["mean"] < 0.9, "a mean and a linear head cannot hold an XOR"


def test_cross_attention_looks_at_other_modalities_and_not_at_padding() -> None:
    torch.manual_seed(0)
    fusion = IntermediateFusion(8, [6, 5])
    nn.init.normal_(fusion.out.weight)
    words, patches = torch.randn(1, 3, 6), torch.randn(1, 4, 5)
    real = torch.tensor([[True, True, False]])
    every = torch.ones(1, 4, dtype=torch.bool)
    present, unit = torch.ones(1, 2, dtype=torch.bool), units(1, 2, 8)
    tokens = {0: (words, real), 1: (patches, every)}
    (own, across), (back, _) = fusion.attention(unit, present, tokens)
    assert across.shape == (1, 3, 4)
    assert torch.allclose((own.sum(2) + across.sum(2))[0], torch.tensor([1.0, 1.0, 0.0]))
    assert torch.allclose(own[0], torch.diag(own[0].diagonal())), "a word looks at no other word"
    assert bool((back[0, :, 2] == 0).all()), "nobody looks at padding"
    assert bool((across[0, :2] > 0).all())
    fused = fusion(unit, present, tokens)
    other = words.clone()
    other[0, 2] = 100.0
    assert torch.allclose(fusion(unit, present, {**tokens, 0: (other, real)}), fused, atol=1e-6)
    other[0, 1] = 100.0
    assert not torch.allclose(fusion(unit, present, {**tokens, 0: (other, real)}), fused, atol=1e-3)


def test_a_batch_that_lacks_a_modality_is_fused_as_in_company() -> None:
    torch.manual_seed(0)
    fusion = IntermediateFusion(8, [24, 40, 0])
    torch.nn.init.normal_(fusion.out.weight)
    unit = units(4, 3, 8)
    words = (torch.randn(4, 5, 24), torch.ones(4, 5, dtype=torch.bool))
    patches = (torch.randn(4, 6, 40), torch.ones(4, 6, dtype=torch.bool))
    present = torch.tensor([[True, True, True], [True, False, True]] * 2)
    patches[1][1::2] = False
    both = fusion(unit, present, {0: words, 1: patches})
    alone = {0: (words[0][1::2], words[1][1::2])}
    assert torch.allclose(fusion(unit[1::2], present[1::2], alone), both[1::2], atol=1e-6)
    shown = fusion.attention(unit[1::2], present[1::2], alone)
    assert shown[0][1].sum().item() == 0.0


def test_the_product_of_independent_sources_is_bayes_answer() -> None:
    probs = torch.tensor([[[0.6, 0.4], [0.7, 0.3]]])
    combined, winner = RULES["logproduct"](probs, torch.ones(1, 2), torch.ones(2))
    assert combined[0, 0].item() == pytest.approx(0.42 / (0.42 + 0.12), abs=1e-6)
    assert winner.item() == 0


def test_a_source_that_is_absent_has_no_say_in_the_product() -> None:
    probs = torch.tensor([[[0.6, 0.4], [0.0, 1.0]]])
    combined, _ = RULES["logproduct"](probs, torch.tensor([[1.0, 0.0]]), torch.ones(2))
    assert combined[0].tolist() == pytest.approx([0.6, 0.4], abs=1e-6)


def test_exponents_fall_for_a_source_that_knows_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (400,), generator=generator)
    good = torch.softmax(2.0 * F.one_hot(label, 3) + torch.randn(400, 3, generator=generator), 1)
    noise = torch.softmax(2.0 * torch.randn(400, 3, generator=generator), dim=1)
    present = torch.ones(400, 2, dtype=torch.bool)
    powers = fit_exponents(torch.stack([good, noise], dim=1), present, label)
    assert powers[0] > 0.5
    assert powers[1] < 0.1 * powers[0]


def test_a_logproduct_decision_starts_as_the_product_and_learns() -> None:
    decision = Decision("logproduct", 2)
    assert decision.weights_ZS[1].tolist() == [1.0, 1.0]
    label = torch.arange(200) % 4
    right = 3.0 * F.one_hot(label, 4).float()
    wrong = 3.0 * F.one_hot((label + 1) % 4, 4).float()
    logits = torch.stack([right, wrong], dim=1)
    present = torch.ones(200, 2, dtype=torch.bool)
    decision.fit(logits, present, label)
    _, combined, winner = decision(logits, present)
    assert bool((winner == label).all())
    assert torch.allclose(combined.sum(1), torch.ones(200))


def test_sharpness_is_the_exponent_of_the_combined_probabilities() -> None:
    """Equal sources of 0.6 and 0.4, squared: 0.36 and 0.16, scaled to sum 1."""
    decision = Decision("weighted", 2)
    decision.sharpness_Z[1] = 2.0
    logits = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    _, combined, _ = decision(logits, torch.ones(1, 2, dtype=torch.bool))
    assert combined[0].tolist() == pytest.approx([0.36 / 0.52, 0.16 / 0.52], abs=1e-6)


def test_an_average_of_independent_sources_is_sharpened_until_it_is_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (4000,), generator=generator)
    # Log-likelihoods of two independent observations of the class: each source is calibrated.
    seen = 1.5 * F.one_hot(label, 3)[:, None] + torch.randn(4000, 2, 3, generator=generator)
    logits, present = 1.5 * seen, torch.ones(4000, 2, dtype=torch.bool)
    decision = Decision("weighted", 2)
    _, before, _ = decision(logits, present)
    decision.fit(logits, present, label)
    _, after, winner = decision(logits, present)
    assert decision.sharpness_Z[1] > 1.2
    assert bool((winner == after.argmax(1)).all())
    assert calibration_error(after, label) < 0.5 * calibration_error(before, label)


def test_attention_without_its_weights_is_the_same_forward_and_backward() -> None:
    """The path that holds no weights, against the plain one that shows them."""
    torch.manual_seed(0)
    block = CrossAttention(24)
    x = torch.randn(3, 7, 24)
    may = torch.rand(3, 7, 7) > 0.5
    may |= torch.eye(7, dtype=torch.bool)
    result = []
    for shown in (True, False):
        block.zero_grad()
        given = x.clone().requires_grad_()
        out, weight = block(given, may, shown=shown)
        assert (weight is not None) is shown
        (out * torch.arange(24)).sum().backward()
        assert given.grad is not None
        grads = [one.grad.clone() for one in block.parameters() if one.grad is not None]
        assert len(grads) == len(list(block.parameters()))
        result.append([out.detach(), given.grad, *grads])
    for plain, fast in zip(*result, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)


def test_only_intermediate_fusion_needs_tokens() -> None:
    fusions = {name: make_fusion(name, 8, [0, 5]) for name in FUSIONS}
    needs = {name: fusion.needs_tokens for name, fusion in fusions.items()}
    assert needs == {"mean": False, "early": False, "intermediate": True}
    with pytest.raises(ValueError, match="no fusion 'late'"):
        make_fusion("late", 8, [0])


def test_vectors_that_nearly_cancel_have_a_mean_direction() -> None:
    unit = torch.tensor([[[1.0, 0.0], [-0.96, 0.28]]])
    fused = make_fusion("mean", 2, [0, 0])(unit, torch.ones(1, 2, dtype=torch.bool))
    assert torch.allclose(fused, F.normalize(torch.tensor([[0.04, 0.28]])), atol=1e-6)


def test_vectors_that_cancel_give_the_first_one_that_is_present() -> None:
    unit = units(2, 3, 8)
    unit[0, 2] = -unit[0, 1]
    fused = make_fusion("mean", 8, [0, 0, 0])(unit, torch.tensor([[False, True, True]] * 2))
    assert torch.allclose(fused[0], unit[0, 1], atol=1e-6)
    assert torch.allclose(fused[1], F.normalize(unit[1, 1] + unit[1, 2], dim=0), atol=1e-6)


def test_early_fusion_adds_its_layers_to_the_mean_of_several() -> None:
    torch.manual_seed(0)
    fusion: Any = make_fusion("early", 8, [0, 0, 0])
    assert torch.allclose(fusion.absent_MD.norm(dim=1), torch.ones(3))
    bias = torch.randn(8)
    fusion.layers[-1].bias.data.copy_(bias)
    unit = units(2, 3, 8)
    present = torch.tensor([[True, True, False], [False, False, True]])
    mean = F.normalize(unit[0, 0] + unit[0, 1], dim=0)
    fused = fusion(unit, present)
    assert torch.allclose(fused[0], F.normalize(mean + bias, dim=0), atol=1e-6)
    assert torch.allclose(fused[1], unit[1, 2], atol=1e-6)


def plain_block(block: CrossAttention, x: torch.Tensor, may: list[list[bool]]) -> torch.Tensor:
    """One sample, x[S, D]: the formula, place by place and head by head."""
    width = x.shape[1] // 4
    q, k, v = block.qkv(block.norm_in(x)).split(x.shape[1], dim=1)
    rows = []
    for i, allowed in enumerate(may):
        others = [j for j, is_allowed in enumerate(allowed) if is_allowed]
        heads = []
        for h in range(4):
            part = slice(h * width, (h + 1) * width)
            weight = torch.softmax(k[others][:, part] @ q[i, part] / width**0.5, dim=0)
            heads.append(weight @ v[others][:, part])
        row = x[i] + block.out(torch.cat(heads))
        rows.append(row + block.mlp(block.norm_mlp(row)))
    return torch.stack(rows)


def plain_intermediate(
    fusion: IntermediateFusion, mean: torch.Tensor, tokens: dict[int, torch.Tensor]
) -> torch.Tensor:
    """One sample; `tokens` are the real ones of present modalities, all others do not exist."""
    places: list[torch.Tensor] = [fusion.first_D]
    kinds = [-1]
    for m, of_modality in tokens.items():
        for token in of_modality:
            places.append(fusion.inputs[m](token) + fusion.kind_MD[m])
            kinds.append(m)
    may = [
        [i == j or (a != b and b >= 0) for j, b in enumerate(kinds)] for i, a in enumerate(kinds)
    ]
    x = torch.stack(places)
    for block in fusion.blocks:
        assert isinstance(block, CrossAttention)
        x = plain_block(block, x, may)
    return F.normalize(mean + fusion.out(fusion.norm(x[0])), dim=0)


def test_intermediate_fusion_is_attention_among_the_tokens_that_are_there() -> None:
    torch.manual_seed(0)
    fusion = IntermediateFusion(8, [6, 5, 0])
    nn.init.normal_(fusion.out.weight)
    nn.init.normal_(fusion.out.bias)
    assert len(fusion.blocks) == 2
    unit, words, patches = units(4, 3, 8), torch.randn(4, 3, 6), torch.randn(4, 2, 5)
    real = torch.tensor([[True, True, False]] * 4)
    every = torch.ones(4, 2, dtype=torch.bool)
    subsets = [[0, 1, 2], [0, 1], [0, 2], [1, 2]]
    present = torch.tensor([[m in subset for m in range(3)] for subset in subsets])
    fused = fusion(unit, present, {0: (words, real), 1: (patches, every)})
    without_tokens = fusion(unit[:1], present[:1], {1: (patches[:1], every[:1])})
    mean = make_fusion("mean", 8, [0, 0, 0])(unit, present)
    for b, subset in enumerate(subsets):
        there = {0: words[b, :2], 1: patches[b], 2: unit[b, 2:]}
        plain = plain_intermediate(fusion, mean[b], {m: there[m] for m in subset})
        assert torch.allclose(fused[b], plain, atol=1e-5), subset
    weights = fusion.attention(
        unit[:1], present[:1], {0: (words[:1], real[:1]), 1: (patches[:1], every[:1])}
    )
    for of_modality, is_real in zip(weights, ([1, 1, 0], [1, 1], [1]), strict=True):
        sums = sum(weight[0].sum(1) for weight in of_modality)
        assert torch.allclose(torch.as_tensor(sums), torch.tensor(is_real).float(), atol=1e-6)
    of_others = {1: patches[0], 2: unit[0, 2:]}
    plain = plain_intermediate(fusion, mean[0], of_others)
    assert torch.allclose(without_tokens[0], plain, atol=1e-5)
    assert torch.equal(fusion(unit[2:3], present[2:3]), fusion(unit[2:3], present[2:3], {}))


def test_intermediate_fusion_begins_with_small_places_and_refuses_other_widths() -> None:
    torch.manual_seed(0)
    fusion = IntermediateFusion(400, [0, 0, 0])
    assert float(fusion.kind_MD.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(fusion.first_D.detach().std()) == pytest.approx(0.02, rel=0.2)
    with pytest.raises(ValueError, match="dim must be a multiple of 4, is 6"):
        make_fusion("intermediate", 6, [0, 0])


def test_the_first_place_alone_is_that_of_all_forward_and_backward() -> None:
    torch.manual_seed(0)
    block = CrossAttention(24)
    x, may = torch.randn(3, 7, 24), torch.rand(3, 7, 7) < 0.5
    may |= torch.eye(7, dtype=torch.bool)
    results = []
    for first in (True, False):
        given = x.clone().requires_grad_()
        out, _ = block(given, may, first=first)
        assert out.shape[1] == (1 if first else 7)
        block.zero_grad()
        out[:, 0].square().sum().backward()
        assert given.grad is not None
        slopes = [p.grad.clone() for p in block.parameters() if p.grad is not None]
        results.append([out[:, 0].detach(), given.grad, *slopes])
    assert len(results[0]) == 2 + len(list(block.parameters()))
    for alone, among in zip(*results, strict=True):
        torch.testing.assert_close(alone, among)


def test_weights_of_attention_are_kept_only_where_they_are_asked_for() -> None:
    x, may = torch.randn(1, 2, 8), torch.ones(1, 2, 2, dtype=torch.bool)
    out, weight = CrossAttention(8)(x, may)
    assert (out.shape, weight) == (x.shape, None)
