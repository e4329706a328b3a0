"""The documentation's screenshots: how their colours are reduced."""

from __future__ import annotations

import importlib.util
import io
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.documents import DOCS


@pytest.fixture(scope="module")
def screenshots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshots", DOCS / "screenshots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reduced(screenshots: ModuleType, rgb_HWC: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(rgb_HWC).save(file, "PNG")
    return np.asarray(Image.open(io.BytesIO(screenshots.small(file.getvalue()))).convert("RGB"))


def test_rare_greys_become_no_colour_and_common_colours_are_exact(screenshots: ModuleType) -> None:
    """The page's greys have a trace of yellow, which must not become pink."""
    rng = np.random.default_rng(0)
    grey_HW1 = rng.integers(8, 246, (100, 100, 1))
    before_HWC = (grey_HW1 + rng.integers(-3, 4, (100, 100, 3)) * [1, 0, 1]).astype(np.uint8)
    after_HWC = reduced(screenshots, before_HWC).astype(int)
    assert np.abs(after_HWC - before_HWC).max() <= screenshots.STEP
    assert (after_HWC.max(axis=2) == after_HWC.min(axis=2)).all()
    assert len(np.unique(after_HWC)) <= 256 // screenshots.STEP
    before_HWC[:60] = (250, 249, 247)
    assert (reduced(screenshots, before_HWC)[:60] == (250, 249, 247)).all()
