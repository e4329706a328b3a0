"""The base preset (ViT-B/16, BERT-base, AST) on this device: a training step, and embedding.

    python -m benchmarks.base_preset --json                    # on a CUDA GPU
    python -m benchmarks.base_preset --device cpu --batch 4    # to see that it runs

Weights are random and of the checkpoints' sizes, written to a temporary folder first: speed does
not depend on what they say. bf16 is measured against float32 in the same run; rounds alternate, and
medians are given. A step is a whole batch: encoders, cross-attention, loss, gradients, AdamW.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import arguments, finish
from braid.encoders import Sample, TrainConfig, load, preset
from braid.encoders.model.checkpoint import make_net, save
from braid.encoders.training.data import gather
from braid.encoders.training.fit import fit

WORDS = [f"w{number}" for number in range(500)]
PRECISIONS = ("float32", "bf16")


def checkpoints(folder: Path, layers: int = 12) -> dict[str, Path]:
    """Random weights in the three sizes, as `transformers` writes them."""
    import transformers as t
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    places = {name: folder / name for name in ("text", "image", "audio")}
    t.BertModel(t.BertConfig(num_hidden_layers=layers)).save_pretrained(places["text"])
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    ).save_pretrained(places["text"])
    t.ViTModel(t.ViTConfig(num_hidden_layers=layers)).save_pretrained(places["image"])
    t.ViTImageProcessor().save_pretrained(places["image"])
    t.ASTModel(t.ASTConfig(num_hidden_layers=layers)).save_pretrained(places["audio"])
    t.ASTFeatureExtractor().save_pretrained(places["audio"])
    return places


def records(count: int) -> list[Sample]:
    """Text of 24 words, a picture of 224 x 224, 5 s of sound at 16 kHz, one of ten labels."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        picture, sound = io.BytesIO(), io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(picture, "BMP")
        with wave.open(sound, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(rng.normal(0, 3000, 80_000).astype("<i2").tobytes())
        samples.append(
            Sample(
                id=str(number),
                text=" ".join(rng.choice(WORDS, 24)),
                image=picture.getvalue(),
                audio=sound.getvalue(),
                labels={"kind": f"k{number % 10}"},
            )
        )
    return samples


def config(places: Mapping[str, Path], batch: int) -> TrainConfig:
    """The preset from those folders; the whole batch goes through each encoder."""
    base = preset("base")
    encoders = {
        name: replace(encoder, source=str(places[name]))
        for name, encoder in base.model.encoders.items()
    }
    return replace(
        base,
        model=replace(base.model, encoders=encoders),
        batch=batch,
        encoder_batch=batch,
        judge=False,
        patience=0,
        refit=False,
        epochs=1,
    )


def steps(given: TrainConfig, samples: Sequence[Sample], device: torch.device, rounds: int) -> Any:
    """Median seconds of a step by precision."""
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    net = make_net(given, {}).to(device)
    data = gather(samples, net, given, all_frozen=False, device=device, progress=lambda *_: None)
    data.split_N[:] = "train"
    net.new_heads(data.tasks)
    net = net.to(device)
    for turn in range(rounds + 1):
        for precision in PRECISIONS:
            chosen = replace(given, precision=precision)
            took = timed(partial(fit, net, data, chosen, splits=("train",), seed=turn), device)
            if turn > 0:  # the first warms up
                seconds[precision].append(took)
    return net, {name: median(times) for name, times in seconds.items()}


def embeds(model: Any, samples: Sequence[Sample], device: torch.device, rounds: int) -> Any:
    """Records embedded a second by precision, decoding left out."""
    prepared = [model.prepare(sample) for sample in samples]
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for turn in range(rounds + 1):
        for precision in PRECISIONS:
            model.bf16 = precision == "bf16"  # as a version of this preset has it on a GPU
            took = timed(partial(model.encode, prepared), device)
            if turn > 0:
                seconds[precision].append(took)
    return {name: len(samples) / median(times) for name, times in seconds.items()}


def timed(job: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA GPU here: --device cpu shows that it runs, not how fast")
    samples = records(options.batch)
    with tempfile.TemporaryDirectory() as place:
        given = config(checkpoints(Path(place)), options.batch)
        net, step = steps(given, samples, device, options.rounds)
        save(net, Path(place) / "v", config=given, name="base-0001", version_number=1)
        del net
        model = load(Path(place) / "v", device=options.device)
        a_second = embeds(model, samples, device, options.rounds)
    rows = {
        "training step, seconds": {name: round(value, 4) for name, value in step.items()},
        "embedding, records a second": {name: round(value, 1) for name, value in a_second.items()},
        "bf16 against float32": {
            "training step": round(step["float32"] / step["bf16"], 2),
            "embedding": round(a_second["bf16"] / a_second["float32"], 2),
        },
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return finish(
        {"benchmark": "base_preset", "device": name, "batch": options.batch, "rows": rows},
        options.json,
    )


if __name__ == "__main__":
    main()
