"""Tiny dual encoders of transformers of random weights, with tokenisers and processors of their
real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.encoders.checkpoints import LAYERS, PICTURES, SIDE, write_model
from tests.encoders.joint_models import DIM, LETTERS, _merges, write_clip

CROPPED: dict[str, Any] = {
    "size": {"shortest_edge": 36},
    "crop_size": {"height": SIDE, "width": SIDE},
}
SQUASHED: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}


def write_pieces(folder: Path) -> dict[str, Any]:
    """The tokeniser of XLM-RoBERTa; the fields of a text config that fit it."""
    from transformers import XLMRobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    scores = {"▁": -2.0, "re": -2.5, "▁red": -2.5, **dict.fromkeys(LETTERS, -3.0)}
    vocab = [*((word, 0.0) for word in special), *scores.items(), ("<mask>", 0.0)]
    XLMRobertaTokenizer(vocab=vocab, model_max_length=60).save_pretrained(folder)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return {**LAYERS, **ids, "vocab_size": len(vocab), "max_position_embeddings": 62}


def write_words(folder: Path) -> dict[str, Any]:
    """The tokeniser of BERT; the fields of a text config that fit it."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "bird", "green", "sings"]
    words += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocab = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocab, model_max_length=40).save_pretrained(folder)
    return {**LAYERS, "vocab_size": len(words), "max_position_embeddings": 40, "pad_token_id": 0}


def write_aimv2(folder: Path) -> None:
    """AIMv2, with the tokeniser and the processor of CLIP."""
    from transformers import Aimv2Config, AutoConfig

    write_clip(folder)
    clip = AutoConfig.from_pretrained(folder).text_config
    names = ("vocab_size", "max_position_embeddings", "eos_token_id")
    text = {**LAYERS, **{name: getattr(clip, name) for name in names}}
    config = Aimv2Config(text_config=text, vision_config=PICTURES, projection_dim=DIM)
    write_model("Aimv2Model", config, folder)


def write_altclip(folder: Path) -> None:
    from transformers import AltCLIPConfig, CLIPImageProcessor

    text = {**write_pieces(folder), "project_dim": 20}
    CLIPImageProcessor(**CROPPED).save_pretrained(folder)
    config = AltCLIPConfig(text_config=text, vision_config=PICTURES, projection_dim=DIM)
    write_model("AltCLIPModel", config, folder)


def write_chinese_clip(folder: Path) -> None:
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor

    text = write_words(folder)
    ChineseCLIPImageProcessor(**SQUASHED, do_center_crop=False).save_pretrained(folder)
    config = ChineseCLIPConfig(text_config=text, vision_config=PICTURES, projection_dim=DIM)
    write_model("ChineseCLIPModel", config, folder)


def write_metaclip(folder: Path) -> None:
    from transformers import CLIPImageProcessor, MetaClip2Config

    text = write_pieces(folder)
    CLIPImageProcessor(**CROPPED).save_pretrained(folder)
    config = MetaClip2Config(text_config=text, vision_config=PICTURES, projection_dim=DIM)
    write_model("MetaClip2Model", config, folder)


def write_blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipImageProcessor

    text = {**write_words(folder), "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    BlipImageProcessor(**SQUASHED).save_pretrained(folder)
    config = BlipConfig(text_config=text, vision_config=PICTURES, projection_dim=DIM)
    write_model("BlipModel", config, folder)


def write_align(folder: Path) -> None:
    """Its picture tower is an EfficientNet, whose processor scales pixels to -1 to 1."""
    import torch
    from transformers import AlignConfig, AlignModel, EfficientNetImageProcessor

    text = write_words(folder)
    EfficientNetImageProcessor(
        size={"height": 40, "width": 40},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        resample=2,
    ).save_pretrained(folder)
    vision = {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.2}
    config = AlignConfig(
        text_config=text, vision_config={**vision, "hidden_dim": 80}, projection_dim=80
    )
    write_model("AlignModel", config, folder)
    net = AlignModel.from_pretrained(folder).train()
    for norm in net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = None
            norm.reset_running_stats()
    with torch.no_grad():  # else the pictures' differences vanish from layer to layer
        net.get_image_features(pixel_values=torch.randn(8, 3, SIDE, SIDE))
    net.save_pretrained(folder)


def write_pair(folder: Path) -> None:
    """A ViT and a BERT that were trained together."""
    from transformers import BertConfig, VisionTextDualEncoderConfig, ViTConfig, ViTImageProcessor

    text = write_words(folder)
    ViTImageProcessor(**SQUASHED).save_pretrained(folder)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**PICTURES), BertConfig(**text), projection_dim=DIM
    )
    write_model("VisionTextDualEncoderModel", config, folder)


def write_naflex(folder: Path) -> None:
    """SigLIP 2 with any aspect ratio."""
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Tokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "re", "red"]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Siglip2Tokenizer(
        vocab=vocab, merges=_merges("d"), padding_side="right", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=20).save_pretrained(folder)
    text = {**LAYERS, "vocab_size": len(words), "max_position_embeddings": 64}
    config = Siglip2Config(
        text_config={**text, "projection_size": 32, "pad_token_id": 0, "eos_token_id": 1},
        vision_config={**LAYERS, "patch_size": 8, "num_patches": 16},
    )
    write_model("Siglip2Model", config, folder)
