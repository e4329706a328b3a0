"""Zero-shot heads: the weights of a class are the vector of its name.

As in section 3.1 of Radford et al. (2021), arXiv 2103.00020.

Shapes: C classes, D the shared space.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from ..backbones.sub_batches import encode_all
from ..manifest import Manifest
from ..tasks import Task
from .heads import SCALE
from .net import Net

KEY = "zero_shot"


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """The zero-shot tasks of a version.

    Attributes:
        tasks: by name.
        prompt: what a class name is written into, at "{}".
        scale: source to the factor of its cosines.
    """

    tasks: Mapping[str, Task]
    prompt: str
    scale: Mapping[str, float]

    @classmethod
    def of(cls, manifest: Manifest) -> Self | None:
        """Those of a version, as its `metrics` have them; None: it has none."""
        raw = manifest.metrics.get(KEY)
        if raw is None:
            return None
        names = raw.get("tasks", list(manifest.tasks))  # absent in old versions
        tasks = {name: Task.from_dict(manifest.tasks[name]) for name in names}
        return cls(tasks=tasks, prompt=raw["prompt"], scale=raw["scale"])

    def but(self, names: Collection[str]) -> Self:
        """All but the tasks in `names`."""
        return replace(
            self, tasks={name: task for name, task in self.tasks.items() if name not in names}
        )

    def metrics(self) -> dict[str, Any]:
        """What the `metrics` of a version have of it; empty without a task."""
        if not self.tasks:
            return {}
        return {KEY: {"prompt": self.prompt, "scale": dict(self.scale), "tasks": list(self.tasks)}}

    def add_to(self, net: Net) -> None:
        """Add the tasks to those of `net`, with the vectors that it gives the class names."""
        device = next(net.parameters()).device
        net.add_heads(self.tasks)
        net.to(device).eval()
        encoder = net.encoder("text")
        with torch.no_grad():
            for name, task in self.tasks.items():
                inputs = [
                    encoder.prepare_query(self.prompt.replace("{}", one), net.config.limits)[0]
                    for one in task.classes
                ]
                features = encode_all(encoder, inputs, device)
                unit_CD = net.projectors["text"](features.pooled_BF)
                for source in net.sources:
                    linear = net.heads.head(name, source).linear
                    linear.weight.copy_(self.scale[source] / SCALE * unit_CD)
                    linear.bias.zero_()
