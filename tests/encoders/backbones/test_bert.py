"""Packed BERT equals `BertModel` of transformers, whatever shares its batch."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from braid.encoders.backbones.bert import Bert, _Padded, fits
from braid.encoders.backbones.sub_batches import plan
from braid.encoders.backbones.text import BertText, TransformerText

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}

WORD_TOKENIZER = Tokenizer(WordLevel({"a": 0}, unk_token="a")).to_str()


def config() -> Any:
    from transformers import BertConfig  # seconds, in each process that collects the tests

    return BertConfig(**CONFIG)


def pair() -> tuple[TransformerText, BertText]:
    """The same weights, padded by transformers and packed."""
    from transformers import BertModel

    torch.manual_seed(0)
    padded = BertModel(config())
    settings = padded.config.to_dict()
    packed = Bert(settings)
    packed.load_state_dict(padded.state_dict())
    layers = (0, 2, -1)
    return (
        TransformerText(padded, settings, WORD_TOKENIZER, layers=layers),
        BertText(packed, settings, WORD_TOKENIZER, layers=layers),
    )


def texts(seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [
        [chance.randrange(1, 50) for _ in range(chance.randint(1, 32))]
        for _ in range(chance.randint(1, 9))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_features_and_gradients_are_those_of_transformers(seed: int) -> None:
    results: list[dict[str, Tensor]] = []
    for encoder in pair():
        encoder.eval().double()  # no dropout, no rounding
        inputs = [np.array(ids_T) for ids_T in texts(seed)]
        features = encoder(*encoder.collate(inputs))
        assert features.tokens_BTF is not None
        assert features.mask_BT is not None
        real_NF = features.tokens_BTF[features.mask_BT]
        (features.pooled_BF.square().sum() + real_NF.sin().sum()).backward()
        gradients = {
            name: parameter.grad
            for name, parameter in encoder.named_parameters()
            if parameter.grad is not None
        }
        assert len(gradients) == 5 + 3 * 16
        results.append({"pooled": features.pooled_BF, "tokens": real_NF} | gradients)
    theirs, ours = results
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-10, rtol=1e-7)


def test_dropout_is_for_training() -> None:
    """In each of its four places: the same input gives something else, and in eval() the same."""
    encoder = pair()[1]
    batch = encoder.collate([np.array([1, 2, 3]), np.array([4])])
    for name in ("embeddings.dropout", "encoder.layer.0.attention.output.dropout"):
        encoder.eval()
        still = encoder(*batch).pooled_BF
        assert torch.equal(still, encoder(*batch).pooled_BF)
        encoder.net.get_submodule(name).train()
        assert not torch.equal(still, encoder(*batch).pooled_BF)
    encoder.eval()
    encoder.net.get_submodule("encoder.layer.0.attention.self").train()
    assert not torch.equal(still, encoder(*batch).pooled_BF)


def test_texts_stay_padded_on_other_devices_with_the_same_result() -> None:
    bert = Bert(config().to_dict()).eval()
    ids_BT = torch.randint(1, 50, (3, 9))
    mask_BT = torch.arange(9) < torch.tensor([[4], [9], [1]])
    padded_BTF = bert._states(ids_BT, _Padded(mask_BT))[-1]
    (packed_BTF,) = bert(ids_BT, mask_BT, [-1])
    torch.testing.assert_close(packed_BTF[mask_BT], padded_BTF[mask_BT])
    assert not packed_BTF[~mask_BT].any()


@pytest.mark.parametrize(
    ("change", "packed"),
    [
        ({}, True),
        ({"hidden_act": "relu"}, False),
        ({"is_decoder": True}, False),
        ({"model_type": "roberta"}, False),
        ({"position_embedding_type": "relative_key"}, False),
    ],
)
def test_other_models_stay_with_transformers(change: dict[str, object], packed: bool) -> None:
    assert fits(config().to_dict() | change) is packed


def test_packed_groups_are_bounded_by_their_sum() -> None:
    assert plan([5, 1, 2, 2], 5, packed=True) == [[1, 2, 3], [0]]
    assert plan([5, 1, 2, 2], 5) == [[1, 2], [3], [0]]
    assert plan([9, 9], 5, packed=True) == [[0], [1]]


def test_a_version_with_a_bert_is_loaded_without_transformers(tmp_path: Path) -> None:
    """Whose import takes seconds."""
    code = f"""
import sys
from pathlib import Path
from typing import Any
from braid.encoders.backbones.text import TransformerText
from braid.encoders.config import EncoderConfig
encoder = TransformerText.restore(EncoderConfig(kind="transformer"), Path({str(tmp_path)!r}))
print(type(encoder).__name__, "transformers" in sys.modules)
"""
    pair()[1].save_assets(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["BertText", "False"], done.stderr
