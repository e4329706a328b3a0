"""Each kind of import behind a worker on Apache Kafka: the vectors are those of `Embedder`, which
tests/encoders/test_importing*.py compare with the library that the model comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from braid.encoders import load
from braid.encoders.importing import KINDS
from braid.stream.kafka.schemas import decode_vector
from tests.encoders.dual_models import write_aimv2, write_altclip, write_naflex
from tests.encoders.joint_models import write_clap, write_clip, write_siglip
from tests.encoders.perception_models import write_pe_audio, write_pe_video
from tests.encoders.test_importing import COSINE, cosines, imported, write_sentence_transformer
from tests.encoders.test_importing_joint import PICTURES, SOUNDS, TEXTS, vectors
from tests.encoders.test_importing_libraries import write_open_clip, write_timm
from tests.encoders.test_importing_single import write_network, write_speech
from tests.encoders.test_importing_videos import films, write_videomae, write_xclip
from tests.stream.harness import Deployment
from tests.stream.running import running, wait_until_idle

SOURCES: dict[str, Callable[[Path], Any]] = {
    "sentence-transformers": write_sentence_transformer,
    "clip": write_clip,
    "siglip": write_siglip,
    "siglip2": write_naflex,
    "clap": write_clap,
    "altclip": write_altclip,
    "open_clip": lambda folder: write_open_clip(folder, "clip"),
    "timm": lambda folder: write_timm(folder, "test_vit"),
    "vit": lambda folder: write_network(folder, "vit"),
    "hubert": lambda folder: write_speech(folder, "hubert"),
    "xclip": write_xclip,
    "videomae": write_videomae,
    "aimv2": write_aimv2,
    "pe_audio": write_pe_audio,
    "pe_video": write_pe_video,
}


def test_every_kind_of_encoder_is_served() -> None:
    def encoders(kinds: Any) -> set[str]:
        return {encoder for kind in kinds for encoder in KINDS[kind].values()}

    assert encoders(SOURCES) == encoders(KINDS)


@pytest.mark.kafka
@pytest.mark.slow
def test_vectors_of_each_kind_on_kafka(deployment: Deployment, tmp_path: Path) -> None:
    all_values: dict[str, dict[str, Any]] = {
        "text": {str(number): text for number, text in enumerate(TEXTS)},
        "image": PICTURES,
        "audio": SOUNDS,
        "video": films(),
    }
    for kind, write in SOURCES.items():
        write(tmp_path / kind)
        manifest = imported(tmp_path / kind, tmp_path / f"{kind}-v")
        values = {
            f"{kind} {modality} {name}": (modality, value)
            for modality in manifest.modalities
            for name, value in all_values[modality].items()
        }
        deployment.produce(
            {"id": id_, modality: value} for id_, (modality, value) in values.items()
        )
        with running(deployment.settings, load(tmp_path / f"{kind}-v", device="cpu")) as run:
            wait_until_idle(run, deployment.lag)
        rows = [decode_vector(message.value or b"") for message in deployment.vectors()]
        served = {row.id: row for row in rows if row.space == manifest.space}
        assert served.keys() == values.keys()
        for modality in manifest.modalities:
            ids = [id_ for id_, (named, _) in values.items() if named == modality]
            by_BD = np.stack([served[id_].by[modality] for id_ in ids])
            fused_BD = np.stack([served[id_].fused for id_ in ids])
            ours_BD = vectors(tmp_path / f"{kind}-v", modality, [values[id_][1] for id_ in ids])
            assert cosines(by_BD, ours_BD) >= COSINE, (kind, modality)
            assert cosines(fused_BD, ours_BD) >= COSINE, (kind, modality)
    assert not deployment.read("dead-letters")
