"""The cache of features: the same vectors with it as without it, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.encoders import Embedding, Sample, load, preset
from braid.encoders.feature_cache import ENTRY_BYTES, FeatureCache, Row, content_digest
from braid.encoders.model.checkpoint import make_net, save
from braid.encoders.model.torch_model import TorchModel
from braid.encoders.tasks import Task
from tests.encoders.material import png, wav

MIB = 1 << 20
TEXTS = ["", "a red bird", "a green bird sings on a branch", "bird", "two words"]
PICTURES = [png((200, 0, 0)), png((0, 200, 0), (20, 50)), png((9, 9, 200))]
SOUNDS = [wav(300), wav(900, 0.9), wav(2000, 0.2)]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A version of the tiny preset for each fusion."""
    folders = {}
    for fusion in ("mean", "early", "intermediate"):
        torch.manual_seed(0)
        config = preset("tiny")
        config = replace(config, model=replace(config.model, fusion=fusion))
        net = make_net(config, {"kind": Task(classes=("a", "b", "c"))})
        with torch.no_grad():
            for weight in net.fusion.parameters():  # the last layers start at 0
                weight.add_(0.1 * torch.randn_like(weight))
        folders[fusion] = tmp_path_factory.mktemp(fusion) / "v"
        save(net.eval(), folders[fusion], config=config, name="v", version_number=1)
    return folders


def loaded(folder: Path, cache: FeatureCache | None = None) -> TorchModel:
    return cast(TorchModel, load(folder, device="cpu", cache=cache))


def embedded(model: TorchModel, samples: Sequence[Sample]) -> list[Embedding]:
    return model.encode([model.prepare(sample) for sample in samples])


def values(embedding: Embedding) -> dict[str, np.ndarray]:
    probs = embedding.tasks["kind"].probs
    return {
        "fused": embedding.fused,
        **embedding.by,
        "task": np.array([probs[name] for name in sorted(probs)]),
    }


def assert_same(ours: Sequence[Embedding], plain: Sequence[Embedding]) -> None:
    for one, other in zip(ours, plain, strict=True):
        mine, theirs = values(one), values(other)
        assert mine.keys() == theirs.keys()
        for name, vector in mine.items():
            np.testing.assert_allclose(vector, theirs[name], atol=1e-5, rtol=0, err_msg=name)


records = st.builds(
    lambda text, image, audio: Sample(id="r", text=text, image=image, audio=audio),
    st.none() | st.sampled_from(TEXTS),
    st.none() | st.sampled_from(PICTURES),
    st.none() | st.sampled_from(SOUNDS),
).filter(lambda sample: bool(sample.present))


@pytest.mark.parametrize("fusion", ["mean", "early", "intermediate"])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(records, min_size=1, max_size=6), min_size=1, max_size=4),
    room=st.sampled_from([0, 2000, MIB]),
)
def test_vectors_are_those_without_a_cache(
    versions: dict[str, Path], fusion: str, batches: list[list[Sample]], room: int
) -> None:
    plain, ours = _models(versions[fusion])
    ours.use(FeatureCache(room))
    for batch in batches:
        assert_same(embedded(ours, batch), embedded(plain, batch))


_loaded: dict[Path, tuple[TorchModel, TorchModel]] = {}


def _models(folder: Path) -> tuple[TorchModel, TorchModel]:
    if folder not in _loaded:
        _loaded[folder] = loaded(folder), loaded(folder)
    return _loaded[folder]


class Calls:
    """Counts the inputs that encoders get."""

    def __init__(self, model: TorchModel) -> None:
        self.inputs: dict[str, int] = dict.fromkeys(model.modalities, 0)
        for name in model.modalities:
            encoder = model.net.encoder(name)
            encoder.collate = self._counted(name, encoder.collate)  # type: ignore[method-assign]

    def _counted(self, name: str, collate):  # type: ignore[no-untyped-def]
        def call(inputs: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
            self.inputs[name] += len(inputs)
            return cast(tuple[torch.Tensor, ...], collate(inputs))

        return call


def test_what_was_encoded_before_is_not_encoded_again(versions: dict[str, Path]) -> None:
    cache = FeatureCache(MIB)
    model = loaded(versions["mean"], cache)
    calls = Calls(model)
    record = Sample(id="a", text="a red bird", image=PICTURES[0])
    first = embedded(model, [record, replace(record, id="b"), replace(record, image=None)])
    assert calls.inputs == {"text": 1, "image": 1, "audio": 0}
    assert [embedding.cached for embedding in first] == [False] * 3
    again = embedded(model, [replace(record, id="c"), replace(record, text="bird")])
    assert calls.inputs == {"text": 2, "image": 1, "audio": 0}
    assert [embedding.cached for embedding in again] == [True, False]
    (query,) = model.encode_queries([model.prepare(Sample(id="q", text="bird"))])
    assert query.cached
    assert calls.inputs["text"] == 2
    assert (cache.hits, cache.misses) == ({"text": 2, "image": 2}, {"text": 4, "image": 2})


def test_a_version_with_the_same_encoder_uses_its_features(
    versions: dict[str, Path], tmp_path: Path
) -> None:
    """Another projection and other heads; the encoder of pictures differs."""
    cache = FeatureCache(MIB)
    model = loaded(versions["mean"], cache)
    net = loaded(versions["mean"]).net
    with torch.no_grad():
        for part in (net.projectors, net.heads, net.encoder("image")):
            for weight in part.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    save(net, tmp_path / "v", config=preset("tiny"), name="w", version_number=2)
    other = loaded(tmp_path / "v", cache)
    records = [Sample(id="a", text="a red bird", image=PICTURES[0], audio=SOUNDS[0])]
    embedded(model, records)
    calls = Calls(other)
    ours = embedded(other, records)
    assert calls.inputs == {"text": 0, "image": 1, "audio": 0}
    assert_same(ours, embedded(loaded(tmp_path / "v"), records))


def test_the_golden_batch_is_always_computed(versions: dict[str, Path]) -> None:
    model = loaded(versions["mean"], FeatureCache(MIB))
    model.check()
    calls = Calls(model)
    model.check()
    assert calls.inputs == {"text": 2, "image": 2, "audio": 2}


def row(value: float, size: int = 4) -> Row:
    return np.full(size, value, np.float32)


def test_the_least_recently_used_is_dropped_first() -> None:
    cache = FeatureCache(3 * (16 + ENTRY_BYTES))
    cache.put({b"a": row(1), b"b": row(2), b"c": row(3)})
    cache.get("text", [b"a"], 4, 0)
    cache.put({b"d": row(4)})
    found = cache.get("text", [b"a", b"b", b"c", b"d"], 4, 0)
    assert [one is not None for one in found] == [True, False, True, True]
    assert (len(cache), cache.nbytes) == (3, 3 * (16 + ENTRY_BYTES))
    cache.put({b"d": row(5), b"huge": row(0, 1000)})
    assert cache.nbytes <= cache.max_bytes


class Store:
    """Answers at once, with whatever it has."""

    def __init__(self, cache: FeatureCache, rows: Mapping[bytes, Row]) -> None:
        self.cache, self.rows = cache, dict(rows)
        self.asked: list[bytes] = []
        cache.store = self

    def fetch(self, keys: Sequence[bytes]) -> None:
        self.asked += keys
        self.cache.add({key: self.rows[key] for key in keys if key in self.rows})

    def keep(self, rows: Mapping[bytes, Row]) -> None:
        self.rows.update(rows)

    def close(self) -> None: ...


def test_a_store_behind_it_is_asked_for_what_is_not_in_memory(versions: dict[str, Path]) -> None:
    before = FeatureCache(MIB)
    store = Store(before, {})
    record = Sample(id="a", text="a red bird", image=PICTURES[0])
    plain = embedded(loaded(versions["mean"], before), [record])
    assert len(store.rows) == 2
    cache = FeatureCache(MIB)
    behind = Store(cache, store.rows)
    model = loaded(versions["mean"], cache)
    calls = Calls(model)
    for _ in range(2):
        assert_same(embedded(model, [record]), plain)
    assert calls.inputs == {"text": 0, "image": 0, "audio": 0}
    assert len(behind.asked) == 2


@pytest.mark.parametrize("fusion", ["mean", "intermediate"])
@pytest.mark.parametrize("damage", ["short", "long", "empty", "nan"])
def test_a_damaged_row_is_a_miss(versions: dict[str, Path], fusion: str, damage: str) -> None:
    plain = loaded(versions[fusion])
    records = [Sample(id="a", text="a red bird", image=PICTURES[0])]
    first = FeatureCache(MIB)
    good = Store(first, {})
    embedded(loaded(versions[fusion], first), records)
    change = {
        "short": lambda row: row[:-1],
        "long": lambda row: np.append(row, np.float32(0.5)),
        "empty": lambda row: row[:0],
        "nan": lambda row: np.where(np.arange(row.size) == 3, np.float32(np.nan), row),
    }[damage]
    cache = FeatureCache(MIB)
    Store(cache, {key: change(one) for key, one in good.rows.items()})
    assert_same(embedded(loaded(versions[fusion], cache), records), embedded(plain, records))
    assert cache.hits.total() == 0


def test_a_digest_depends_on_values_type_and_shape() -> None:
    value = np.arange(6, dtype=np.int32)
    others = [value.reshape(2, 3), value.view(np.uint32), value[::-1], value[:5]]
    digests = {content_digest(one) for one in [value, *others]}
    assert len(digests) == 5
    assert content_digest(value[::2]) == content_digest(value[::2].copy())
