"""Videos by a CLIP's picture tower: one network for two modalities, frames as transformers sees
them, and files that are refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from braid.encoders import BadInput, CheckpointError, Embedder, Sample
from braid.encoders.config import EncoderConfig, Limits
from braid.encoders.decoding.isolation import DecodePool
from braid.encoders.decoding.videos import decode_video
from braid.encoders.evaluation.page import page
from braid.encoders.evaluation.report import report
from braid.encoders.importing import import_model
from braid.encoders.manifest import WEIGHTS, read_manifest
from braid.encoders.model.torch_model import TorchModel
from tests.encoders.dual_models import write_align, write_naflex
from tests.encoders.joint_models import DIM, write_clap, write_clip
from tests.encoders.test_importing import COSINE, cosines

FRAMES = 8
AS_CHILD: dict[str, Any] = {"of": "middles", "fit": 32}
SHAPES = [  # container, codec, frames a second, width, height, frames, frames between key frames
    ("mp4", "mpeg4", Fraction(25), 96, 64, 40, 12),
    ("mp4", "libx264", Fraction(30000, 1001), 64, 96, 61, 250),
    ("matroska", "libx264", Fraction(10), 128, 48, 30, 7),
    ("webm", "libvpx-vp9", Fraction(24), 64, 64, 24, 10),
    ("avi", "mjpeg", Fraction(5), 80, 60, 9, 1),
    ("mpegts", "mpeg2video", Fraction(25), 96, 64, 33, 12),
    ("mp4", "mpeg4", Fraction(12), 64, 48, 3, 12),
]


def filmed(
    kind: str = "mp4",
    codec: str = "mpeg4",
    rate: Fraction = Fraction(25),
    width: int = 96,
    height: int = 64,
    count: int = 20,
    keys: int = 12,
) -> bytes:
    """A film of noise in which a bar moves."""
    rng = np.random.default_rng(width * count)
    noise_HWC = rng.integers(0, 200, (height // 8, width // 8, 3)).astype(np.uint8)
    sides = ((0, height % 8), (0, width % 8), (0, 0))
    still_HWC = np.pad(noise_HWC.repeat(8, 0).repeat(8, 1), sides, mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.gop_size = width, height, keys
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(count):
            frame_HWC = still_HWC.copy()
            frame_HWC[:, (width - 8) * number // count :][:, :8] = (number * 255 // count, 255, 0)
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def all_frames(data: bytes) -> list[Image.Image]:
    """Every frame, decoded one after the other."""
    with av.open(io.BytesIO(data), "r") as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def middles(count: int) -> list[int]:
    return [int((part + 0.5) * count / FRAMES) for part in range(FRAMES)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    write_clip(folder)
    import_model(
        str(folder),
        folder.parent / "version",
        name="video",
        version=1,
        video=True,
        classes={"kind": ["red", "green"]},
    )
    return folder


@pytest.fixture(scope="module")
def embedder(clip: Path) -> Iterator[Embedder]:
    with Embedder.load(clip.parent / "version", device="cpu") as made:
        made.model.check()
        yield made


def theirs(folder: Path, frames: list[Image.Image]) -> np.ndarray:
    """The mean of the unit vectors that transformers gives frames, at length 1, float32[D]."""
    from transformers import AutoImageProcessor, CLIPModel

    net = CLIPModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(frames, return_tensors="pt")
    with torch.no_grad():
        rows_TD = net.get_image_features(**pixels).pooler_output
    mean_D = torch.nn.functional.normalize(rows_TD, dim=1).mean(0)
    return torch.nn.functional.normalize(mean_D, dim=0).numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda one: f"{one[0]}-{one[1]}-{one[5]}")
def test_vectors_are_those_of_transformers_on_the_same_frames(
    clip: Path, embedder: Embedder, shape: tuple[Any, ...]
) -> None:
    data = filmed(*shape)
    frames = all_frames(data)
    assert len(frames) == shape[5]
    (embedding,) = embedder.embed([Sample(id="v", video=data)])
    want_D = theirs(clip, [frames[place] for place in middles(len(frames))])
    assert cosines(embedding.by["video"][None], want_D[None]) >= COSINE
    assert set(embedding.tasks["kind"].by) == {"video", "fused"}


def test_the_network_is_in_the_version_once(clip: Path, embedder: Embedder) -> None:
    plain = import_model(str(clip), clip.parent / "plain", name="plain", version=2)
    with (
        safe_open(clip.parent / "version" / WEIGHTS, "pt") as ours,
        safe_open(clip.parent / "plain" / WEIGHTS, "pt") as without,
    ):
        own, other = set(ours.keys()), set(without.keys())
        assert {name for name in own if name.startswith("encoders.")} == {
            name for name in other if name.startswith("encoders.")
        }
    net = embedder.model.net  # type: ignore[attr-defined]
    assert net.encoder("video").owner is net.encoder("image")
    assert net.encoder_hashes()["video"] != net.encoder_hashes()["image"]
    manifest = read_manifest(clip.parent / "version")
    assert manifest.modalities == ["text", "image", "video"]
    assert manifest.dim == DIM
    assert plain.modalities == ["text", "image"]
    assert plain.space != manifest.space


def test_limits_of_videos_name_no_space_without_them() -> None:
    limits, other = Limits(), Limits(video_seconds=1.0)
    assert limits.hashed(["text", "image", "audio"]) == other.hashed(["text", "image", "audio"])
    assert limits.hashed(["image", "video"]) != other.hashed(["image", "video"])


def test_a_query_of_a_modality_that_the_version_lacks_is_refused(embedder: Embedder) -> None:
    """It would be embedded without that part; of a record the rest is of use."""
    sample = Sample(id="q", text="words", audio=b"a sound")
    with pytest.raises(BadInput, match="video takes text, image and video only") as refused:
        embedder.query([sample])
    assert refused.value.field == "audio"
    (embedding,) = embedder.embed([sample])
    assert embedding.by.keys() == {"text"}


def test_the_report_on_a_version_with_videos(embedder: Embedder) -> None:
    """Videos are not corrupted; the others are, and their curves have the videos' accuracy."""
    films = [filmed(count=count) for count in (6, 7, 8, 9)]
    kinds = ["red", "green"] * 2
    given = [
        Sample(id=f"{n}", text=f"a {kind} bar", video=film, labels={"kind": kind})
        for n, (film, kind) in enumerate(zip(films, kinds, strict=True))
    ]
    assert isinstance(embedder.model, TorchModel)
    made = report(embedder.model, given)
    assert made["robustness"].keys() == {"text", "image"}
    assert "video" in made["robustness"]["text"][0]["accuracy"]["kind"]
    (_, shown, *_) = page(made, "it").split("kind: text made worse")
    assert "video</text>" in shown


def test_a_turned_film_is_upright(embedder: Embedder) -> None:
    data = filmed()
    place = data.index(b"tkhd") + 4 + 40  # after version, times, id, duration, layer and volume
    quarter = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    turned = data[:place] + quarter + data[place + 36 :]
    (want,) = decode_video(data, 1, 96, Limits())
    (got,) = decode_video(turned, 1, 96, Limits())
    assert (got == np.rot90(want, -1, (1, 2))).all()
    assert (got != want).any()


BAD = {
    "none of MP4": b"no film at all, but some bytes",
    "does not decode": filmed()[:900],
    "holds no": filmed()[:60],
}


@pytest.mark.parametrize("why", BAD)
def test_what_is_no_film_is_refused(embedder: Embedder, why: str) -> None:
    with pytest.raises(BadInput) as refused:
        embedder.embed([Sample(id="v", video=BAD[why])])
    assert refused.value.field == "video"
    assert len(refused.value.reason) < 400


def test_a_playlist_opens_no_other_file(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(filmed())
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/film.mp4\n#EXT-X-ENDLIST\n"
    with pytest.raises(BadInput, match="none of MP4"):
        embedder.embed([Sample(id="v", video=playlist.encode())])


LIMITED = {
    "0.8 s, the limit is 0.5 s": Limits(video_seconds=0.5),
    "96x64 pixels a frame, the limit is 6000": Limits(video_pixels=6000),
    "more than 60000 bytes of decoded frames": Limits(video_bytes=60_000),
    "takes more than 0 s": Limits(video_decode_s=0.0),
}


@pytest.mark.parametrize("why", LIMITED)
def test_limits(why: str) -> None:
    with pytest.raises(BadInput, match=why):
        decode_video(filmed(), FRAMES, 32, LIMITED[why])


def test_a_child_decodes_the_same_within_the_same_limits() -> None:
    data = filmed()
    pool = DecodePool(1)
    try:
        got, _ = pool.decode("video", data, {"frames": FRAMES, **AS_CHILD}, Limits())
        assert (got == decode_video(data, FRAMES, 32, Limits())).all()
        with pytest.raises(BadInput, match=r"limit is 0\.5 s"):
            pool.decode("video", data, {"frames": 2, **AS_CHILD}, Limits(video_seconds=0.5))
    finally:
        pool.close()


def test_frames_before_an_edit_list_are_decoded_and_not_shown(embedder: Embedder) -> None:
    shifted = io.BytesIO()
    plain: Any = av.open(io.BytesIO(filmed("mp4", "libx264", Fraction(10), 64, 64, 30, 250)))
    with plain, av.open(shifted, "w", format="mp4") as container:
        stream = container.add_stream_from_template(plain.streams.video[0])
        for packet in plain.demux(plain.streams.video[0]):
            if packet.dts is not None:
                step = int(1 / (10 * packet.time_base))
                packet.pts, packet.dts = packet.pts - 10 * step, packet.dts - 10 * step
                packet.stream = stream
                container.mux(packet)
    film = shifted.getvalue()
    frames = all_frames(film)
    assert len(frames) == 20
    shown = decode_video(film, FRAMES, 32, Limits())
    bars = [int(frame[0].mean()) for frame in shown]  # the red of the bar grows
    wanted = [int(np.asarray(frames[place])[:, :, 0].mean()) for place in middles(20)]
    assert np.argsort(bars).tolist() == np.argsort(wanted).tolist()
    embedder.embed([Sample(id="v", video=film)])


@pytest.fixture(scope="module")
def large() -> bytes:
    """A film of as many pixels a frame as the limit admits."""
    return filmed("mp4", "mpeg4", Fraction(25), 4096, 2304, 33, 12)


def test_many_frames_of_a_large_film_fit_the_memory_of_a_child(large: bytes) -> None:
    pool = DecodePool(1)
    try:
        frames, _ = pool.decode("video", large, {"frames": 32, **AS_CHILD}, Limits())
    finally:
        pool.close()
    assert frames.shape == (32, 3, 32, 32)


def test_whole_frames_fit_the_memory_of_a_child_or_are_refused(large: bytes) -> None:
    """Eight of the largest are whole there, or more of fewer pixels."""
    pool = DecodePool(1)
    try:
        whole: dict[str, Any] = {"frames": 8, "of": "ends", "fit": None}
        frames, _ = pool.decode("video", large, whole, Limits())
        assert frames.shape == (8, 2304, 4096, 3)
        with pytest.raises(BadInput, match="4096x2304 pixels a frame, the limit is 8388608"):
            pool.decode("video", large, {**whole, "frames": 9}, Limits())
    finally:
        pool.close()


def test_frames_from_the_first_to_the_last() -> None:
    film = filmed(count=20)
    frames = all_frames(film)
    ends_THWC = decode_video(film, 5, None, Limits(), of="ends")
    wanted = [np.asarray(frames[place]) for place in (0, 4, 9, 14, 19)]
    assert (ends_THWC == np.stack(wanted)).all()
    (first_HWC,) = decode_video(film, 1, None, Limits(), of="ends")
    assert (first_HWC == wanted[0]).all()
    short_THWC = decode_video(filmed(count=2), 4, None, Limits(), of="ends")
    assert [(one == short_THWC[0]).all() for one in short_THWC] == [True, True, True, False]


@pytest.mark.parametrize("kind", ["align", "siglip2"])
def test_frames_are_not_given_to_a_transform_of_files(tmp_path: Path, kind: str) -> None:
    {"align": write_align, "siglip2": write_naflex}[kind](tmp_path / "source")
    with pytest.raises(CheckpointError, match="takes picture files, not frames"):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1, video=True)


def test_a_model_without_pictures_has_no_videos(tmp_path: Path) -> None:
    write_clap(tmp_path / "clap")
    with pytest.raises(CheckpointError, match="clap has no pictures"):
        import_model(str(tmp_path / "clap"), tmp_path / "v", name="v", version=1, video=True)


def test_shares_must_name_an_encoder_with_a_network() -> None:
    from braid.encoders.backbones.registry import encoder_class, encoders_of

    one = EncoderConfig(kind="frame-mean", shares="image")
    with pytest.raises(CheckpointError, match="video shares with image, which has none"):
        encoders_of({"video": one}, lambda *_: pytest.fail("nothing to make"))
    with pytest.raises(CheckpointError, match="shares must name one"):
        encoder_class("video", one).create(replace(one, shares=None))


def test_without_the_decoder_a_version_does_not_load(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CheckpointError, match=r"braid-stream\[video\]"):
        Embedder.load(clip.parent / "version", device="cpu")
