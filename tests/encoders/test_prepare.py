"""What `prepare` accepts, and how it refuses the rest: early, and naming field and limit."""

from __future__ import annotations

import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from PIL import Image

from braid.encoders import BadInput, Limits, Model, Sample
from braid.encoders.backbones.audio import decode_audio
from braid.encoders.decoding.pictures import decode_image
from tests.encoders.material import png, png_header, wav

LIMITS = Limits()


def refused(model: Model, sample: Sample) -> BadInput:
    with pytest.raises(BadInput) as caught:
        model.prepare(sample)
    return caught.value


@pytest.mark.slow
def test_a_picture_of_50_000_by_50_000_is_refused_from_its_header(model: Model) -> None:
    tracemalloc.start()
    error = refused(model, Sample(id="x", image=png_header(50_000, 50_000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.field == "image"
    assert "64000000" in error.reason
    assert "2500000000" in error.reason
    assert peak < 1_000_000


def test_a_picture_just_over_the_limit_is_refused_and_named_with_its_size(model: Model) -> None:
    error = refused(model, Sample(id="x", image=png_header(8001, 8000)))
    assert "8001x8000" in error.reason
    assert "64000000" in error.reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        png()[:60],
        png_header(40, 30),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"GIF89a" + b"\xff" * 40,
    ],
    ids=["empty", "text", "truncated", "no pixels", "postscript", "broken gif"],
)
def test_a_picture_that_does_not_decode_is_refused(model: Model, data: bytes) -> None:
    error = refused(model, Sample(id="x", image=data))
    assert error.field == "image"
    assert "does not decode" in error.reason


def test_a_one_hour_sound_is_refused_from_its_header(model: Model) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(3600 * 4000, dtype=np.int16), 4000, format="FLAC")
    tracemalloc.start()
    error = refused(model, Sample(id="x", audio=out.getvalue()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.field == "audio"
    assert "3600.0 s" in error.reason
    assert "600 s" in error.reason
    assert peak < 10_000_000


@pytest.mark.parametrize(
    "data",
    [b"", b"not a sound", b"RIFF" + b"\xff" * 60, wav()[:44], wav()[:20]],
    ids=["empty", "text", "broken wav", "no samples", "half a header"],
)
def test_a_sound_that_does_not_decode_is_refused(model: Model, data: bytes) -> None:
    assert refused(model, Sample(id="x", audio=data)).field == "audio"


def test_a_sound_with_a_nan_is_refused(model: Model) -> None:
    out = io.BytesIO()
    wave_N = np.zeros(4000, dtype=np.float32)
    wave_N[7] = np.nan
    soundfile.write(out, wave_N, 8000, format="WAV", subtype="FLOAT")
    assert "not finite" in refused(model, Sample(id="x", audio=out.getvalue())).reason


@pytest.mark.parametrize("text", ["a" * 1_000_001, "é" * 500_001, "a" * 10_000_000])
def test_a_text_over_the_limit_is_refused(model: Model, text: str) -> None:
    error = refused(model, Sample(id="x", text=text))
    assert error.field == "text"
    assert "1000000 bytes" in error.reason


def test_a_text_that_is_not_unicode_is_refused(model: Model) -> None:
    assert refused(model, Sample(id="x", text="\ud800")).field == "text"


def test_a_long_text_within_the_limit_is_cut_not_refused(model: Model) -> None:
    assert model.prepare(Sample(id="x", text="word " * 150_000)).cost.tokens <= 64


def test_an_empty_text_is_a_text(model: Model) -> None:
    (embedding,) = model.encode([model.prepare(Sample(id="x", text=""))])
    assert np.linalg.norm(embedding.fused) == pytest.approx(1.0, abs=1e-5)


def test_a_sample_without_a_modality_is_refused(model: Model) -> None:
    error = refused(model, Sample(id="x"))
    assert error.field == "sample"
    assert "text, image, audio" in error.reason


@pytest.mark.parametrize(("field", "value"), [("text", 7), ("image", "png"), ("audio", 1.5)])
def test_a_value_of_the_wrong_type_is_refused(model: Model, field: str, value: object) -> None:
    assert refused(model, Sample(id="x", **{field: value})).field == field  # type: ignore[arg-type]


def test_what_is_clear_becomes_white_and_the_picture_keeps_its_shape() -> None:
    pixels = decode_image(png((0, 0, 0, 0), size=(64, 32)), 32, LIMITS)
    assert pixels.shape == (3, 32, 32)
    assert (pixels == 255).all()
    black = decode_image(png((0, 0, 0), size=(64, 32)), 32, LIMITS)
    assert (black[:, :8] == 255).all()  # margins above and below
    assert (black[:, 8:24] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_every_mode_decode(mode: str) -> None:
    kinds = {"CMYK": "JPEG", "F": "TIFF", "I": "TIFF"}
    out = io.BytesIO()
    picture = Image.new("L", (20, 20), 128)
    if mode in ("I", "I;16"):
        picture = Image.fromarray(np.full((20, 20), 32896, dtype=np.uint16))
    picture.convert(mode).save(out, kinds.get(mode, "PNG"))
    pixels = decode_image(out.getvalue(), 16, LIMITS)
    assert pixels.shape == (3, 16, 16)
    if mode not in ("1", "F"):
        assert abs(int(pixels[0, 8, 8]) - 128) <= 2


@pytest.mark.parametrize("rate", [1000, 8000, 11_025, 16_000, 22_050, 44_100, 44_101, 96_000])
def test_sounds_of_any_rate_keep_their_length_and_pitch(rate: int) -> None:
    wave_N = decode_audio(wav(200.0, 1.0, rate, channels=2), 16_000, 6.0, LIMITS)
    assert abs(len(wave_N) - 16_000) <= 200
    spectrum = np.abs(np.fft.rfft(wave_N.astype(float)))
    assert np.fft.rfftfreq(len(wave_N), 1 / 16_000)[spectrum.argmax()] == pytest.approx(200, abs=3)


def test_a_sound_longer_than_the_encoder_takes_is_cut() -> None:
    assert len(decode_audio(wav(200.0, 3.0), 8000, 1.5, LIMITS)) == 12_000


def test_prepare_may_run_on_many_threads(model: Model) -> None:
    sample = Sample(id="x", text="a red thing", image=png(), audio=wav(rate=11_025))
    first = model.prepare(sample)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: model.prepare(sample), range(64)):
            for name, value in first.inputs.items():
                assert np.array_equal(np.asarray(value), np.asarray(result.inputs[name]))
            assert result.cost == first.cost
            assert result.nbytes == first.nbytes > 0
