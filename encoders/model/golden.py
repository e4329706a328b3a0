"""The golden batch: outputs recorded when a version is written, compared when it is loaded."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..decoding.videos import EXTRA, Array
from ..errors import CheckpointError
from ..types import FUSED, MEDIA, Embedding, Model, Sample, Vector

TOLERANCE = 2e-3
"""Tolerance of golden outputs. CPUs and GPUs sum in different orders (about 1e-6 in
float32, 1e-3 with TF32); a wrong weight or preprocessing shows as 1e-1."""


def check_golden(model: Model, tolerance: float = 0.0) -> None:
    """See `braid.encoders.types.Model.check`.

    Args:
        tolerance: allowed at least; that of the engines that the model runs on.
    """
    golden = model.manifest.golden
    try:
        samples = [golden_sample(raw) for raw in golden["inputs"]]
        expected = golden["outputs"]
        tolerance = max(tolerance, float(golden["tolerance"]))
        embeddings = model.encode([model.prepare(sample) for sample in samples])
        pairs = [
            (f"{sample.id}.{name}", vector_D, np.asarray(want[name], dtype=np.float32))
            for sample, got, want in zip(samples, embeddings, expected, strict=True)
            for name, vector_D in compared_values(got).items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{model.name}: no usable golden batch: {error!r}") from error
    except FloatingPointError as error:
        raise CheckpointError(f"golden batch: {error}") from error
    for what, got_D, want_D in pairs:
        if got_D.shape != want_D.shape or not np.abs(got_D - want_D).max() <= tolerance:
            off = np.abs(got_D - want_D).max() if got_D.shape == want_D.shape else float("nan")
            raise CheckpointError(
                f"{model.name}: golden output {what} is off by {off:.2g}, allowed {tolerance:g}"
            )


def golden_batch(model: Model) -> dict[str, Any]:
    """For the manifest: generated inputs, and the outputs of `model` for them."""
    inputs = [
        {
            "id": f"golden-{name}",
            **{key: value for key, value in _golden_inputs(names).items() if key in names},
        }
        for name, names in [("all", model.modalities), *((m, (m,)) for m in model.modalities)]
    ]
    embeddings = model.encode([model.prepare(golden_sample(raw)) for raw in inputs])
    outputs = [
        {
            name: [round(float(value), 6) for value in vector_D]
            for name, vector_D in compared_values(embedding).items()
        }
        for embedding in embeddings
    ]
    return {"inputs": inputs, "outputs": outputs, "tolerance": TOLERANCE}


def compared_values(embedding: Embedding) -> dict[str, Vector]:
    """The values that are compared: the vectors, and each task's probabilities in class order.

    Predicted numbers and captions' likelihoods are not compared, since their scale does not suit
    the tolerance; the vectors they come from are.
    """
    probs = {
        f"task {name}": np.asarray(list(task.probs.values()), dtype=np.float32)
        for name, task in embedding.tasks.items()
        if task.probs
    }
    return {**embedding.by, FUSED: embedding.fused, **probs}


def golden_sample(raw: Mapping[str, str]) -> Sample:
    """A sample as the manifest has it: the bytes of files in base64."""
    files = {key: base64.b64decode(raw[key]) for key in MEDIA if key in raw}
    return Sample(id=raw["id"], text=raw.get("text"), **files)  # type: ignore[arg-type]


def _golden_inputs(names: Sequence[str]) -> dict[str, str]:
    """A sentence, a small picture, a short tone and, if it is asked for, a short video, generated
    so that no file is needed."""
    from PIL import Image

    y, x = np.mgrid[0:24, 0:32]
    pixels = np.stack([x * 8, y * 10, (x * y) % 256], axis=2).astype(np.uint8)
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(picture, format="PNG")
    seconds = np.arange(2400) / 8000
    tone = (8000 * np.sin(2 * np.pi * 440 * seconds * (1 + seconds))).astype("<i2")
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(tone.tobytes())
    return {
        "text": "A red bird sings on a branch.",
        "image": base64.b64encode(picture.getvalue()).decode(),
        "audio": base64.b64encode(sound.getvalue()).decode(),
        **({"video": base64.b64encode(_golden_video(pixels)).decode()} if "video" in names else {}),
    }


def _golden_video(pixels: Array) -> bytes:
    """Four frames of a picture that becomes darker, uint8[H, W, 3], in AVI."""
    try:
        import av
    except ImportError as error:
        raise CheckpointError(EXTRA) from error
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.height, stream.width = pixels.shape[:2]
        for share in range(1, 5):
            frame = av.VideoFrame.from_ndarray(pixels // share, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
