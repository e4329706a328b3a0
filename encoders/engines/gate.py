"""Whether an engine's vectors may stand for those of torch: the golden batch and frozen queries.

Shapes: B queries, N records, D the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import EngineError
from ..model.frozen_queries import PART, FrozenQueries, Vectors, encoded, only, query_inputs
from ..model.golden import compared_values, golden_sample
from ..model.torch_model import TorchModel
from ..types import Embedding, Prepared

TOLERANCES = {"float32": 1e-4, "bf16": 0.045, "int8": 0.15}
"""The largest distance of an engine's golden output from torch's, of vectors of length 1. float32:
sums in another order differ by 1e-6 a value; a wrong padding or a missing weight shows as 1e-2 and
more. bf16: a cosine of 0.999, eight bits of mantissa through some tens of layers. int8: a cosine of
0.989; what it costs in recall is for the frozen queries to show."""
K = 10
RECALL_DROP = 0.005


class Gate:
    """The outputs of a model with torch, to compare those of engines with.

    Args:
        model: encodes with torch, and has passed `check`.
        folder: of the version.
    """

    def __init__(self, model: TorchModel, folder: Path) -> None:
        self._golden = [golden_sample(raw) for raw in model.manifest.golden["inputs"]]
        self._expected = self._outputs(model)
        self._queries = FrozenQueries.read(folder, model.manifest)
        self._inputs: dict[str, dict[str, list[Prepared]]] = {}

    def check(self, model: TorchModel, modality: str, precision: str) -> None:
        """Compare a model with the encoder of one modality on an engine.

        Raises:
            EngineError: a golden output is further off than the precision's tolerance, or
                recall@10 of the frozen queries falls by more than RECALL_DROP: of the engine's
                vectors among its own, or among torch's.
        """
        for embedding, want in zip(self._outputs(model), self._expected, strict=True):
            expected = compared_values(want)
            for name, value in compared_values(embedding).items():
                off = float(np.linalg.norm(value - expected[name]))
                if not off <= TOLERANCES[precision]:
                    raise EngineError(
                        f"golden output {embedding.id}.{name} is off by {off:.2g}, allowed "
                        f"{TOLERANCES[precision]:g} in {precision}"
                    )
        stored = self._queries.vectors
        pairs = compared_pairs(stored, modality)
        if not pairs:
            return
        with model.exact():
            inputs = self._inputs_of(model, modality)
            own = {**stored, **{name: encoded(model, some) for name, some in inputs.items()}}
        before = recall(stored, stored, pairs)
        for among, which in ((own, "its own"), (stored, "torch's")):
            if not (after := recall(own, among, pairs)) >= before - RECALL_DROP:
                raise EngineError(
                    f"recall@{K} of the frozen queries among {which} vectors is {after:.3f}, "
                    f"with torch {before:.3f}"
                )

    def _inputs_of(self, model: TorchModel, modality: str) -> dict[str, list[Prepared]]:
        """The frozen queries' inputs of a modality, prepared once for all engines."""
        if modality not in self._inputs:
            inputs: dict[str, list[Prepared]] = {}
            for sample in self._queries.samples:
                if modality in sample.present:
                    own = query_inputs(model, only(sample, (modality,)))
                    for name, prepared in own.items():
                        inputs.setdefault(name, []).append(prepared)
            self._inputs[modality] = inputs
        return self._inputs[modality]

    def _outputs(self, model: TorchModel) -> list[Embedding]:
        with model.exact():
            return model.encode([model.prepare(sample) for sample in self._golden])


def compared_pairs(vectors: Vectors, modality: str) -> list[tuple[str, str]]:
    """Pairs of the names of queries and targets whose recall depends on a modality's encoder.

    Between modalities where more than K records have both; else a half of each text and the text.
    """
    several = [
        name
        for name in vectors
        if name not in (modality, PART)
        and len(vectors[name].keys() & vectors.get(modality, {}).keys()) > K
    ]
    if modality == "text" and not several and len(vectors.get(PART, ())) > K:
        return [(PART, modality)]
    return [pair for name in several for pair in ((modality, name), (name, modality))]


def recall(asked: Vectors, stored: Vectors, pairs: Sequence[tuple[str, str]]) -> float:
    """recall@10 of a record's vector in finding another vector of it, the mean over `pairs`."""
    found: list[float] = []
    for query, target in pairs:
        stored_ND = np.stack(list(stored[target].values()))
        row = {id_: number for number, id_ in enumerate(stored[target])}
        ids = [id_ for id_ in asked[query] if id_ in row]
        score_BN = np.stack([asked[query][id_] for id_ in ids]) @ stored_ND.T
        right_B1 = np.take_along_axis(score_BN, np.array([[row[id_]] for id_ in ids]), axis=1)
        rank_B = (score_BN >= right_B1).sum(1) - 1  # after its equals
        found.append(float((rank_B < K).mean()))
    return float(np.mean(found))
