"""Tiny checkpoints in the layout of `transformers`, written here, and the way through a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from braid.encoders import Model, load
from braid.encoders.config import EncoderConfig, ModelConfig, TrainConfig
from braid.encoders.model.checkpoint import make_net, save
from braid.encoders.tasks import Task

SIDE = 32
LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PICTURES: dict[str, Any] = {**LAYERS, "image_size": SIDE, "patch_size": 8}
CLIP_PICTURES = {**PICTURES, "projection_dim": 24}
TOKENS = [
    "<pad>",
    "<unk>",
    "<start>",
    "<end>",
    "a",
    "red",
    "green",
    "bird",
    "sings",
    "on",
    "branch",
]
CLIP_TEXTS: dict[str, Any] = {
    **LAYERS,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "projection_dim": 24,
}
SIGLIP_TEXTS: dict[str, Any] = {
    **LAYERS,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "projection_size": 32,
}

BERT_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "green",
    "blue",
    "white",
    "thing",
    "number",
]


def write_preprocessor(folder: Path, **fields: Any) -> None:
    """A `preprocessor_config.json` with numbers that no default has."""
    raw = {
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
        **fields,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))


def write_tokenizer(folder: Path, *, start: bool, end: str = "<end>") -> None:
    """Lower-case words with an end mark, and a start mark as CLIP has it and SigLIP has not."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(TOKENS)}, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"<start> $A {end}" if start else f"$A {end}",
        special_tokens=[("<start>", 2), (end, TOKENS.index(end))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=12,
    ).save_pretrained(folder)


def write_model(name: str, config: Any, folder: Path, **more: Any) -> None:
    """Random weights in the class `name` of transformers, large enough to tell pictures apart."""
    import transformers

    torch.manual_seed(0)
    net = getattr(transformers, name)(config, **more)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    net.save_pretrained(folder)


def write_bert(folder: Path) -> None:
    """A BERT of two layers, 32 wide, and its tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(BERT_WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordPiece({w: i for i, w in enumerate(BERT_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=16)  # as MiniLM's file has it; braid pads by itself
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)


def write_clip(folder: Path) -> None:
    """Both towers of CLIP."""
    from transformers import CLIPConfig

    both = CLIPConfig(text_config=CLIP_TEXTS, vision_config=CLIP_PICTURES, projection_dim=24)
    write_model("CLIPModel", both, folder)


def write_siglip(folder: Path) -> None:
    """Both towers of SigLIP."""
    from transformers import SiglipConfig

    both = SiglipConfig(text_config=SIGLIP_TEXTS, vision_config=PICTURES)
    write_model("SiglipModel", both, folder)


def through_a_version(modality: str, config: EncoderConfig, folder: Path) -> Model:
    """A net of this encoder alone, written as a version, loaded and checked."""
    whole = TrainConfig(model=ModelConfig(encoders={modality: config}, dim=16))
    net = make_net(whole, {"kind": Task(classes=("a", "b"))})
    net.eval()
    save(net, folder, config=whole, name="v", version_number=1)
    model = load(folder, device="cpu")
    model.check()
    return model
