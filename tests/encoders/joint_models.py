"""Tiny joint models of random weights, with tokenisers and processors of their real classes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tests.encoders.checkpoints import LAYERS, PICTURES, write_model

DIM = 24
AUDIO: dict[str, Any] = {
    "patch_embeds_hidden_size": 16,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "hidden_size": 32,
    "num_mel_bins": 64,
    "spec_size": 256,
}
LETTERS = string.ascii_lowercase + string.digits + ".,"


def _merges(last: str) -> Any:
    return [("r", "e"), ("re", last)]


def write_clip(folder: Path, **processing: Any) -> None:
    """CLIP, with its byte-pair tokeniser; pictures are resized to 36 pixels and cropped to 32."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    ends = ("<|startoftext|>", "<|endoftext|>")
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "re", "red</w>", *ends]
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=_merges("d</w>"),
        model_max_length=77,
    )
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, **processing}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    text = {
        **LAYERS,
        "vocab_size": len(words),
        "max_position_embeddings": 77,
        "bos_token_id": words.index(ends[0]),
        "eos_token_id": words.index(ends[1]),
        "pad_token_id": words.index(ends[1]),
    }
    config = CLIPConfig(
        text_config={**text, "projection_dim": DIM},
        vision_config={**PICTURES, "projection_dim": DIM},
        projection_dim=DIM,
    )
    write_model("CLIPModel", config, folder)


def write_siglip(folder: Path, **processing: Any) -> None:
    """SigLIP 2 of one resolution, with its lower-case tokeniser; pictures are squashed to 32."""
    from transformers import Siglip2Tokenizer, SiglipConfig, SiglipImageProcessor

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "re", "red"]
    tokenizer = Siglip2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=_merges("d"),
        padding_side="right",
        model_max_length=64,
    )
    tokenizer.save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}, "resample": 2, **processing}
    SiglipImageProcessor(**size).save_pretrained(folder)
    text = {**LAYERS, "vocab_size": len(words), "max_position_embeddings": 64}
    config = SiglipConfig(
        text_config={**text, "projection_size": 32, "pad_token_id": 0, "eos_token_id": 1},
        vision_config=PICTURES,
    )
    write_model("SiglipModel", config, folder)


def write_clap(folder: Path, *, fused: bool = False) -> None:
    """CLAP, with RoBERTa's tokeniser and its own feature extractor."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapProcessor, RobertaTokenizer

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *LETTERS, "re", "red"]
    tokenizer = RobertaTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=_merges("d"),
        model_max_length=60,
    )
    extractor = ClapFeatureExtractor(
        feature_size=64, truncation="fusion" if fused else "rand_trunc"
    )
    ClapProcessor(extractor, tokenizer).save_pretrained(folder)
    text = {**LAYERS, "vocab_size": len(words), "max_position_embeddings": 62, "pad_token_id": 1}
    config = ClapConfig(
        text_config=text,
        audio_config={**AUDIO, "enable_fusion": fused},
        projection_dim=DIM,
    )
    write_model("ClapModel", config, folder)
