"""Imported versions that are trained further: projections, low-rank adapters, last blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from braid.encoders import Embedder, Sample, TrainingError, train
from braid.encoders.backbones.imported.networks import blocks_of
from braid.encoders.bridging import bridge
from braid.encoders.config import EncoderConfig, TrainConfig, from_dict
from braid.encoders.evaluation.examine import Gates, examiner
from braid.encoders.further import own_config, trained_further, trains_heads_only, unlike
from braid.encoders.importing import import_model
from braid.encoders.lora import Lora
from braid.encoders.manifest import WEIGHTS, Manifest, read_manifest
from braid.encoders.model.net import Net
from braid.encoders.training import low_rank
from braid.encoders.training.data import frozen_encoders
from braid.encoders.training.parallel import processes
from braid.stream.local.child import free_port
from tests.encoders.dual_models import write_aimv2
from tests.encoders.joint_models import DIM, write_clap, write_clip, write_siglip
from tests.encoders.material import samples
from tests.encoders.test_bridging import captions
from tests.encoders.test_importing import write_sentence_transformer
from tests.encoders.test_importing_single import write_speech

ROOT = Path(__file__).parents[2]
SAMPLES = [one for one in samples(72) if one.text and one.image]
STILL: dict[str, Any] = {"lr": 0.0, "start_lr": 0.0, "encoder_lr": 0.0}
# Any difference is within these margins.
EASY = Gates(min_records=2, accuracy=1.0, recall=1.0, latency=1e6, resamples=100, rounds=1)


def imported(write: Callable[[Path], None], folder: Path, **options: Any) -> Path:
    write(folder / "source")
    import_model(str(folder / "source"), folder / "v1", name="v1", version=1, **options)
    return folder / "v1"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(write_clip, tmp_path_factory.mktemp("clip"))


def config_of(parent: Path, *, dim: int | None = None, **further: Any) -> TrainConfig:
    config = trained_further(own_config(from_dict(read_manifest(parent).config)), **further)
    model = config.model if dim is None else replace(config.model, dim=dim)
    return replace(config, model=model, epochs=2, batch=16, encoder_batch=16, refit=False)


def with_encoders(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The configuration with these fields changed in every encoder."""
    encoders = {name: replace(one, **changes) for name, one in config.model.encoders.items()}
    return replace(config, model=replace(config.model, encoders=encoders))


def trained(
    parent: Path,
    config: TrainConfig,
    out: Path,
    *,
    data: list[Sample] = SAMPLES,
    **options: Any,
) -> Manifest:
    return train(
        data,
        config,
        parent=parent,
        out=out,
        name=out.name,
        version=2,
        seed=0,
        device="cpu",
        **options,
    )


def vectors(folder: Path, modality: str, made: list[Sample] = SAMPLES) -> np.ndarray:
    """float32[N, D] of records that have the modality alone."""
    some = [Sample(id=one.id, **{modality: getattr(one, modality)}) for one in made]
    with Embedder.load(folder, device="cpu") as embedder:
        return np.stack([one.by[modality] for one in embedder.embed(some)])


def changed(before: Path, after: Path) -> set[str]:
    """The names of the encoders' weights that differ, of two versions with the same names."""
    old, new = (
        {name: one for name, one in load_file(v / WEIGHTS).items() if name.startswith("encoders.")}
        for v in (before, after)
    )
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


CLASSES = {"colour": ["red", "green", "blue"], "kind": ["a bird", "a frog"]}
PROMPT = "a photo of {}"


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero-shot")
    return imported(write_clip, folder, classes=CLASSES, prompt=PROMPT)


def without_labels(task: str) -> list[Sample]:
    return [
        replace(one, labels={name: label for name, label in one.labels.items() if name != task})
        for one in SAMPLES
    ]


def check_predicts_by_names(folder: Path, task: str) -> None:
    """Check each source's probabilities: the scaled cosines to the version's own vectors of the
    class names."""
    manifest = read_manifest(folder)
    scale = manifest.metrics["zero_shot"]["scale"]
    names = manifest.tasks[task]["classes"]
    prompted = [Sample(id=name, text=PROMPT.replace("{}", name)) for name in names]
    one = SAMPLES[0]
    with Embedder.load(folder, device="cpu") as embedder:
        name_CD = np.stack([made.fused for made in embedder.embed(prompted)])
        made = embedder.embed([one])[0]
    for source, vector_D in (*made.by.items(), ("fused", made.fused)):
        exact_C = np.exp(scale[source] * name_CD @ vector_D)
        best = int(exact_C.argmax())
        shown = made.tasks[task].by[source]
        assert shown["label"] == names[best], source
        assert shown["prob"] == pytest.approx(exact_C[best] / exact_C.sum(), abs=1e-4), source


@pytest.mark.slow
@pytest.mark.parametrize("dim", [DIM, 2 * DIM, DIM // 2])
def test_projections_start_at_the_identity(tmp_path: Path, clip: Path, dim: int) -> None:
    config = replace(config_of(clip, projections=True, dim=dim), **STILL)
    made = trained(clip, config, tmp_path / "v2")
    assert (made.dim, made.parent) == (dim, "v1")
    assert made.space != read_manifest(clip).space
    for modality in ("text", "image"):
        theirs_ND = vectors(clip, modality)[:, :dim]
        theirs_ND = theirs_ND / np.linalg.norm(theirs_ND, axis=1, keepdims=True)
        ours_ND = vectors(tmp_path / "v2", modality)
        np.testing.assert_allclose(ours_ND[:, :DIM], theirs_ND, atol=1e-5)
        assert not np.any(ours_ND[:, DIM:])


@pytest.mark.slow
def test_projections_align_and_leave_the_encoders_as_they_are(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from braid.encoders.backbones.text_towers import ClipText

    encoded: list[int] = []
    forward = ClipText.forward

    def counted(self: ClipText, *batch: torch.Tensor) -> Any:
        encoded.append(len(batch[0]))
        return forward(self, *batch)

    monkeypatch.setattr(ClipText, "forward", counted)
    config = replace(config_of(clip, projections=True), task=0.0, fuse=0.0)
    moving = replace(config, **{**STILL, "start_lr": 0.02}, epochs=8)  # the temperature stays
    trained(clip, replace(config, epochs=1), tmp_path / "short")
    counts = len(encoded)
    made = trained(clip, moving, tmp_path / "v2")
    assert len(encoded) == 2 * counts, "features are computed once, however many epochs there are"
    assert made.metrics["losses"][-1] < made.metrics["losses"][0] - 0.05
    assert changed(clip, tmp_path / "v2") == set()
    assert np.abs(vectors(tmp_path / "v2", "text") - vectors(clip, "text")).max() > 1e-3
    again = trained(tmp_path / "v2", replace(config_of(tmp_path / "v2"), **STILL), tmp_path / "v3")
    np.testing.assert_allclose(
        vectors(tmp_path / "v3", "text"), vectors(tmp_path / "v2", "text"), atol=1e-5
    )
    assert again.parent == "v2"


@pytest.mark.slow
def test_the_judge_compares_another_width_with_the_imported_champion(
    tmp_path: Path, clip: Path
) -> None:
    config = config_of(clip, projections=True, dim=DIM // 2)
    made = trained(clip, config, tmp_path / "v2", examine=examiner(clip, gates=EASY, device="cpu"))
    assert made.verdict["champion"] == "v1"
    assert made.verdict["decision"] in ("passed", "failed")
    judged = {gate["metric"] for gate in made.verdict["gates"]}
    assert any("recall" in metric for metric in judged), judged


@pytest.mark.slow
def test_the_map_of_a_bridge_is_where_its_projection_starts(
    tmp_path: Path, zero_shot: Path
) -> None:
    clap = imported(write_clap, tmp_path)
    both = tmp_path / "both"
    bridge(zero_shot, clap, captions(120), both, name="both", version=3, force=True)
    config = replace(config_of(both, projections=True, dim=DIM + 8), **STILL, epochs=1)
    trained(both, config, tmp_path / "v2")
    check_predicts_by_names(both, "kind")
    check_predicts_by_names(tmp_path / "v2", "kind")
    for modality in ("image", "audio"):
        ours_ND = vectors(tmp_path / "v2", modality, SAMPLES[:3])
        theirs_ND = vectors(both, modality, SAMPLES[:3])
        np.testing.assert_allclose(ours_ND[:, :DIM], theirs_ND, atol=1e-5)


@pytest.mark.slow
def test_zero_shot_tasks_stay_with_the_new_vectors_of_their_class_names(
    tmp_path: Path, zero_shot: Path
) -> None:
    config = config_of(zero_shot, projections=True)
    config = replace(with_encoders(config, frozen=False, train_last=1), encoder_lr=1e-2)
    judged = examiner(zero_shot, gates=EASY, device="cpu")
    made = trained(
        zero_shot, config, tmp_path / "v2", data=without_labels("colour"), examine=judged
    )
    assert list(made.tasks) == ["colour", "kind"]
    assert made.metrics["zero_shot"] == read_manifest(zero_shot).metrics["zero_shot"]
    assert made.verdict["decision"] in ("passed", "failed"), made.verdict["reason"]
    assert set(made.reference["tasks"]) == {"colour", "kind"}
    for task in CLASSES:
        check_predicts_by_names(tmp_path / "v2", task)
    assert np.abs(vectors(tmp_path / "v2", "text") - vectors(zero_shot, "text")).max() > 1e-3


@pytest.mark.slow
def test_labels_train_the_head_of_a_zero_shot_task(tmp_path: Path, zero_shot: Path) -> None:
    config = replace(config_of(zero_shot), lr=0.05)
    made = trained(zero_shot, config, tmp_path / "v2", heads_only=True)
    assert made.space == read_manifest(zero_shot).space
    assert (list(made.tasks), made.metrics["zero_shot"]["tasks"]) == (["colour", "kind"], ["kind"])
    assert made.tasks["colour"]["classes"] == ["blue", "green", "red", "white"]
    assert list(made.metrics["validation"]["accuracy"]) == ["colour"]
    check_predicts_by_names(tmp_path / "v2", "kind")
    again = trained(tmp_path / "v2", config, tmp_path / "v3", heads_only=True)
    assert again.metrics["zero_shot"] == made.metrics["zero_shot"]
    old, new = (load_file(tmp_path / v / WEIGHTS) for v in ("v2", "v3"))
    heads = [name for name in old if name.startswith("heads.by_task.1.")]
    assert heads
    for name in heads:
        assert torch.equal(old[name], new[name]), name


def test_zero_shot_tasks_need_heads_on_vectors_of_the_space(
    tmp_path: Path, zero_shot: Path
) -> None:
    config = config_of(zero_shot, projections=True)
    config = replace(config, model=replace(config.model, heads_on="features"))
    with pytest.raises(TrainingError, match=r"heads_on must be .* is 'features'.* kind"):
        trained(zero_shot, config, tmp_path / "v2")


def write_bert(folder: Path) -> None:
    write_sentence_transformer(folder, layers=["Normalize"])


def write_roberta(folder: Path) -> None:
    write_sentence_transformer(folder, layers=["Normalize"], family="roberta")


def write_hubert(folder: Path) -> None:
    write_speech(folder, "hubert")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "blocks", "maps"),
    [
        (write_clip, {"text": "net.text_model.encoder.layers", "image": ".encoder.layers"}, 6),
        (write_siglip, {"text": "net.encoder.layers", "image": "net.encoder.layers"}, 6),
        (write_clap, {"text": "net.text_model.encoder.layer", "audio": ".layers"}, 6),
        (write_bert, {"text": "net.encoder.layer"}, 6),
        (write_roberta, {"text": "net.encoder.layer"}, 6),
        (write_hubert, {"audio": "net.encoder.layers"}, 6),
        (write_aimv2, {"text": ".encoder.layers", "image": ".encoder.layers"}, 6),
    ],
)
def test_adapters_change_the_linear_maps_of_the_blocks_and_are_merged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    blocks: dict[str, str],
    maps: int,
) -> None:
    parent = imported(write, tmp_path)
    unmerged: dict[str, np.ndarray] = {}
    merge = low_rank.merge

    def seen(net: Net, config: Any) -> None:
        net.eval()
        for name in blocks:
            encoder = net.encoder(name)
            inputs = [
                encoder.prepare(getattr(one, name), net.config.limits)[0] for one in SAMPLES[:4]
            ]
            with torch.no_grad():
                features = encoder(*encoder.collate(inputs))
                unmerged[name] = net.projectors[name](features.pooled_BF).numpy()
        merge(net, config)

    monkeypatch.setattr(low_rank, "merge", seen)
    made = trained(parent, replace(config_of(parent, lora=2), encoder_lr=1e-2), tmp_path / "v2")
    for name in blocks:
        ours_BD = vectors(tmp_path / "v2", name, SAMPLES[:4])
        np.testing.assert_allclose(ours_BD, unmerged[name], atol=1e-5)
        assert np.abs(ours_BD - vectors(parent, name, SAMPLES[:4])).max() > 1e-3
    for name in changed(parent, tmp_path / "v2"):
        modality = name.split(".")[1]
        assert blocks[modality] + "." in name, name
        assert name.endswith(".weight"), name
        assert load_file(tmp_path / "v2" / WEIGHTS)[name].ndim == 2, name
    for modality, place in blocks.items():
        layer = [
            name
            for name in changed(parent, tmp_path / "v2")
            if name.startswith(f"encoders.{modality}.") and f"{place}.0." in name
        ]
        assert len(layer) >= maps, layer
    encoders = made.config["model"]["encoders"].values()
    assert {(one["lora"], one["frozen"]) for one in encoders} == {(None, True)}


@pytest.mark.slow
def test_only_the_targets_get_an_adapter_and_a_version_needs_no_peft(
    tmp_path: Path, clip: Path
) -> None:
    config = replace(config_of(clip, lora=1), encoder_lr=1e-2)
    text = replace(
        config.model.encoders["text"], lora=Lora(rank=1, alpha=4, targets=("q_proj", "v_proj"))
    )
    image = replace(config.model.encoders["image"], lora=None)
    model = replace(config.model, encoders={"text": text, "image": image})
    trained(clip, replace(config, model=model), tmp_path / "v2")
    names = changed(clip, tmp_path / "v2")
    assert {name.split(".")[-2] for name in names} == {"q_proj", "v_proj"}
    assert {name.split(".")[1] for name in names} == {"text"}
    old, new = (load_file(v / WEIGHTS) for v in (clip, tmp_path / "v2"))
    for name in names:
        singular = torch.linalg.svdvals(new[name] - old[name])
        assert float(singular[1]) < 1e-3 * float(singular[0]), "of rank 1"
    loads = (
        "import sys; sys.modules['peft'] = None\n"
        "from braid.encoders import load\n"
        f"load({str(tmp_path / 'v2')!r}, device='cpu').check()"
    )
    subprocess.run([sys.executable, "-c", loads], check=True, timeout=200)


WAYS: dict[str, dict[str, Any]] = {"lora": {"lora": 2}, "projections": {"projections": True}}


def train_ways(parent: Path, place: Path) -> None:
    """Train in each of `WAYS`, with the other process where the environment names one."""
    with processes(torch.device("cpu"), timedelta(seconds=120)):
        for name, further in WAYS.items():
            config = replace(config_of(parent, **further), encoder_lr=3e-2, start_lr=3e-2)
            trained(parent, config, place / name)


@pytest.mark.slow
def test_two_processes_train_further_as_one_does(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them; the first is this one."""
    train_ways(clip, tmp_path / "one")
    started = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    code = (
        "import sys; from pathlib import Path; from tests.encoders.test_further import train_ways\n"
        "train_ways(*map(Path, sys.argv[1:]))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, clip, tmp_path / "two"],
        cwd=ROOT,
        env={**os.environ, **started, "RANK": "1", "PYTHONPATH": str(ROOT)},
    )
    try:
        for name, value in {**started, "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        train_ways(clip, tmp_path / "two")
        assert other.wait(60) == 0
    finally:
        other.kill()
        other.wait()
    for name in WAYS:
        one, two = (tmp_path / count / name for count in ("one", "two"))
        assert read_manifest(two).metrics["losses"] == pytest.approx(
            read_manifest(one).metrics["losses"], abs=1e-4
        )
        for modality in ("text", "image"):
            ours_ND = vectors(two, modality)
            np.testing.assert_allclose(ours_ND, vectors(one, modality), atol=1e-3)
            assert np.abs(ours_ND - vectors(clip, modality)).max() > 1e-2, "it was trained"


def test_a_shared_network_gets_one_adapter_and_its_videos_are_not_kept(tmp_path: Path) -> None:
    write_clip(tmp_path / "source")
    import_model(str(tmp_path / "source"), tmp_path / "v1", name="v1", version=1, video=True)
    config = trained_further(own_config(from_dict(read_manifest(tmp_path / "v1").config)), lora=2)
    assert config.model.encoders["image"].lora is not None
    assert config.model.encoders["video"].lora is None
    assert frozen_encoders(config, ["text", "image", "video"]) == dict.fromkeys(
        ("text", "image", "video"), False
    )


def test_blocks_of_networks_in_stages_end_with_the_last_stage() -> None:
    from transformers import SwinConfig, SwinModel

    net = SwinModel(SwinConfig(embed_dim=12, depths=[1, 1, 3, 1], num_heads=[1, 1, 2, 2]))
    blocks = blocks_of(net)
    assert len(blocks) == 4
    assert blocks[-1] is net.encoder.layers[-1]
    stages = torch.nn.Module()  # as timm's ResNet has them
    for number, length in enumerate((1, 3, 2)):
        layers = [torch.nn.ReLU() for _ in range(length)]
        stages.add_module(f"layer{number}", torch.nn.Sequential(*layers))
    assert len(blocks_of(stages)) == 6


def test_a_target_that_there_is_not_is_named(tmp_path: Path, clip: Path) -> None:
    config = with_encoders(config_of(clip, lora=1), lora=Lora(targets=("q_proj", "query")))
    message = r"encoders\.text\.lora\.targets: 'query': no such .* k_proj, out_proj, q_proj, v_proj"
    with pytest.raises(TrainingError, match=message):
        trained(clip, config, tmp_path / "v2")
    assert not (tmp_path / "v2").exists()


def test_a_missing_package_is_named_by_its_extra(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install 'braid-stream\[lora\]'"):
        trained(clip, config_of(clip, lora=1), tmp_path / "v2")


@pytest.mark.slow
def test_last_blocks_of_every_imported_encoder_are_trained(tmp_path: Path, clip: Path) -> None:
    for name, write in (("clip", None), ("clap", write_clap), ("text", write_bert)):
        parent = clip if write is None else imported(write, tmp_path / name)
        config = with_encoders(config_of(parent), frozen=False, train_last=1)
        trained(parent, replace(config, epochs=1), tmp_path / name / "v2")
        names = changed(parent, tmp_path / name / "v2")
        modalities = read_manifest(parent).modalities
        assert {one.split(".")[1] for one in names} == set(modalities)
        for one in names:
            assert ".1." in one.partition(".layer")[2], one


def test_an_imported_version_has_values_for_pretrained_weights(clip: Path) -> None:
    theirs = from_dict(read_manifest(clip).config)
    own = own_config(theirs)
    assert (own.encoder_lr, own.start, own.model) == (3e-5, "identity", theirs.model)
    assert own_config(replace(own, epochs=3)) == replace(own, epochs=3), "trained: as it was"
    assert trains_heads_only(own.model)
    assert not trains_heads_only(trained_further(own, projections=True).model)
    assert not trains_heads_only(trained_further(own, lora=2).model)
    with pytest.raises(ValueError, match=r"model\.projection is 'learnt' already"):
        trained_further(trained_further(own, projections=True), projections=True)


def test_what_does_not_fit_is_named_with_both_values(clip: Path) -> None:
    theirs = from_dict(read_manifest(clip).config).model
    learnt = replace(theirs, projection="learnt")
    text = EncoderConfig(kind="hashed")
    for ours, why in (
        (theirs, None),
        (replace(learnt, dim=8, fusion="early", dropout=0.5), None),
        (replace(theirs, dim=8), "model.dim is 8, there it is 24"),
        (replace(learnt, hidden=8), "model.projection is 'learnt', there it is 'none'"),
        (replace(theirs, encoders={**theirs.encoders, "text": text}), "model.encoders.text.kind"),
        (replace(theirs, encoders={"text": theirs.encoders["text"]}), "model.encoders.image is No"),
    ):
        said = unlike(theirs, ours)
        assert said == why or (said is not None and why is not None and said.startswith(why))
    assert unlike(learnt, theirs) == "model.projection is 'none', there it is 'learnt'"
    assert unlike(learnt, replace(learnt, dim=8)) == "model.dim is 8, there it is 24"
