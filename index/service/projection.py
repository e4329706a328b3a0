"""Two-dimensional PCA projection whose axes stay stable between fits.

Shapes: R rows, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..store import Array

SPREAD = 98.0  # percentile of the distances from the mean that maps to 1
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Projection:
    """Mean, two axes, and the distance that maps to 1."""

    mean_D: Array
    axes_2D: Array
    scale: float

    def __call__(self, rows_RD: Array) -> Array:
        """Coordinates on the map, float32[R, 2]; most are within 1 of the origin."""
        placed: Array = ((rows_RD - self.mean_D) @ self.axes_2D.T / self.scale).astype(np.float32)
        return placed


def fit(rows_RD: Array, before: Projection | None = None) -> Projection:
    """The two principal components of the rows.

    The sign of a component is arbitrary, and so is a rotation between components of similar
    variance. With `before`, the components are rotated and reflected within their plane to match
    its axes, an orthogonal Procrustes problem (Schoenemann 1966).

    Raises:
        ValueError: no rows.
    """
    if len(rows_RD) == 0:
        raise ValueError("rows: a map needs at least one row")
    rows_RD = np.asarray(rows_RD, dtype=np.float64)
    mean_D = rows_RD.mean(axis=0)
    centred_RD = rows_RD - mean_D
    axes_2D = _components(centred_RD)
    if before is not None and before.axes_2D.shape == axes_2D.shape:
        left_22, _, right_22 = np.linalg.svd(before.axes_2D.astype(np.float64) @ axes_2D.T)
        axes_2D = left_22 @ right_22 @ axes_2D
    far = np.percentile(np.linalg.norm(centred_RD @ axes_2D.T, axis=1), SPREAD)
    return Projection(
        mean_D.astype(np.float32),
        axes_2D.astype(np.float32),
        float(far) if far > TINY else 1.0,
    )


def _components(centred_RD: np.ndarray) -> np.ndarray:
    """Two orthonormal axes [2, D] of the largest variance; the sign of each is fixed."""
    _, vectors_DD = np.linalg.eigh(centred_RD.T @ centred_RD)
    axes_2D = np.zeros((2, centred_RD.shape[1]))
    largest_2D = vectors_DD.T[::-1][:2]
    axes_2D[: len(largest_2D)] = largest_2D
    largest = np.abs(axes_2D).argmax(axis=1)
    sign = np.sign(axes_2D[np.arange(2), largest])
    return axes_2D * np.where(sign == 0, 1.0, sign)[:, None]
