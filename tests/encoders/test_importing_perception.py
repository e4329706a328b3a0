"""The Perception Encoder Audiovisual, imported: vectors as transformers gives them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from braid.encoders import CheckpointError, Embedder, Sample, load
from braid.encoders.importing import import_model
from tests.encoders.perception_models import write_pe_audio, write_pe_av, write_pe_video
from tests.encoders.test_importing import COSINE, cosines, imported
from tests.encoders.test_importing_joint import SOUNDS, TEXTS
from tests.encoders.test_importing_videos import films
from tests.encoders.test_video import all_frames

HEARD = {name: one for name, one in SOUNDS.items() if name != "short"}
CLASSES = {"kind": ["red", "green"]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers formats every config for a log that is off, which takes most of the time."""
    monkeypatch.setattr("transformers.configuration_utils.PreTrainedConfig.__repr__", lambda _: "")


def texts_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Each text alone, as the tokeniser at `folder` makes it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = [tokenizer(text, truncation=True, return_tensors="pt") for text in TEXTS]
    return [{name: one[name] for name in ("input_ids", "attention_mask")} for one in made]


def sounds_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Each sound alone, as the extractor at `folder` makes it."""
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    made = []
    for file in HEARD.values():
        wave_NC, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
        wave_N = resample(torch.from_numpy(wave_NC.mean(1)), rate, 48000).numpy()
        made.append(extractor(wave_N, sampling_rate=48000, return_tensors="pt"))
    return made


def videos_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Each film alone, its frames chosen and brought to size by the processor at `folder`."""
    from transformers import AutoVideoProcessor
    from transformers.video_utils import VideoMetadata

    processor = AutoVideoProcessor.from_pretrained(folder)
    made = []
    for film in films().values():
        frames_THWC = np.stack([np.asarray(one) for one in all_frames(film)])
        metadata = VideoMetadata(total_num_frames=len(frames_THWC))
        made.append(
            processor(
                [frames_THWC], video_metadata=[metadata], do_sample_frames=True, return_tensors="pt"
            )
        )
    return made


def theirs(net: Any, *inputs: Any) -> list[Any]:
    """The model's outputs for one of each input after the other."""
    made = []
    with torch.no_grad():
        for number in range(max(map(len, inputs))):
            batch: dict[str, Any] = {}
            for one in inputs:
                batch |= one[number % len(one)]
            made.append(net(**batch))
    return made


def check(version: Path, outputs: dict[str, str], made: list[Any]) -> None:
    """Each modality's vectors of the version are the model's outputs."""
    values: dict[str, list[Any]] = {
        "text": TEXTS,
        "audio": list(HEARD.values()),
        "video": list(films().values()),
    }
    samples = {
        modality: [
            Sample(id=str(number), **{modality: value})
            for number, value in enumerate(values[modality][: len(made)])
        ]
        for modality in outputs
    }
    with Embedder.load(version, device="cpu") as embedder:
        ours = {
            modality: np.stack([one.by[modality] for one in embedder.embed(some)])
            for modality, some in samples.items()
        }
    for modality, ours_BD in ours.items():
        theirs_BD = np.stack([one[outputs[modality]][0].numpy() for one in made[: len(ours_BD)]])
        assert cosines(ours_BD, theirs_BD) >= COSINE, modality
        assert float((ours_BD @ ours_BD.T).min()) < 0.999, f"all {modality} look the same"


@pytest.mark.slow
def test_texts_and_sounds_equal_those_of_transformers(tmp_path: Path) -> None:
    from transformers import PeAudioModel

    source, version = tmp_path / "source", tmp_path / "v"
    write_pe_audio(source)
    manifest = imported(source, version, classes=CLASSES)
    assert list(manifest.modalities) == ["text", "audio"]
    assert set(manifest.metrics["zero_shot"]["scale"]) == {"text", "audio", "fused"}
    net = PeAudioModel.from_pretrained(source).eval()
    outputs = {"text": "text_audio_embeds", "audio": "audio_embeds"}
    check(version, outputs, theirs(net, texts_of(source), sounds_of(source)))


@pytest.mark.slow
def test_texts_and_videos_equal_those_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PeVideoModel

    source, version = tmp_path / "source", tmp_path / "v"
    write_pe_video(source)
    capsys.readouterr()
    manifest = imported(source, version)
    assert capsys.readouterr().out == "", "a command prints JSON there"
    assert list(manifest.modalities) == ["text", "video"]
    assert "timm" in manifest.config["model"]["origin"]["libraries"]
    net = PeVideoModel.from_pretrained(source).eval()
    outputs = {"text": "text_video_embeds", "video": "video_embeds"}
    check(version, outputs, theirs(net, texts_of(source), videos_of(source)))


@pytest.mark.slow
def test_a_space_of_pe_av_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import PeAudioVideoModel

    source = tmp_path / "source"
    write_pe_av(source)
    net = PeAudioVideoModel.from_pretrained(source).eval()
    inputs = (texts_of(source), sounds_of(source), videos_of(source))
    made = theirs(net, *(one[:2] for one in inputs))
    for space in ("audio", "video"):
        version = tmp_path / space
        manifest = import_model(str(source), version, name="v", version=1, space=space)
        assert list(manifest.modalities) == ["text", space]
        outputs = {"text": f"text_{space}_embeds", space: f"{space}_embeds"}
        check(version, outputs, made)


@pytest.mark.parametrize(
    ("space", "why"),
    [(None, "space must be audio or video .* is None"), ("text", "is 'text'")],
)
def test_pe_av_needs_one_of_its_spaces(tmp_path: Path, space: str | None, why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "pe_audio_video"}))
    with pytest.raises(CheckpointError, match=why):
        import_model(str(tmp_path), tmp_path / "v", name="v", version=1, space=space)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="clip has one space only"):
        import_model(str(tmp_path), tmp_path / "v", name="v", version=1, space="audio")


def test_vectors_of_frames_of_a_sound_are_refused(tmp_path: Path) -> None:
    write_pe_audio(tmp_path / "source", "PeAudioFrameLevelModel")
    with pytest.raises(CheckpointError, match="a vector for each frame"):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)


def test_every_frame_of_a_video_is_refused(tmp_path: Path) -> None:
    write_pe_video(tmp_path / "source")
    path = tmp_path / "source" / "video_preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_frames": None}))
    with pytest.raises(CheckpointError, match="takes every frame"):
        import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pe_video(tmp_path / "source")
    import_model(str(tmp_path / "source"), tmp_path / "v", name="v", version=1)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"braid-stream\[timm\]"):
        import_model(str(tmp_path / "source"), tmp_path / "w", name="w", version=2)
    with pytest.raises(CheckpointError, match=r"braid-stream\[timm\]"):
        load(tmp_path / "v", device="cpu")
