"""The cortex of one simulated subject: a folded ribbon in a volume, its MNI coordinates, its areas.

Both hemispheres are half of a pair of head-sized ellipsoids with folded surfaces. All subjects share the shape in
MNI space and the layout of functions on the sheet. Each subject has its own size and shape of the head, and a smooth
displacement of functions along the sheet, so that anatomy predicts function only roughly.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bitllm.simulation import atlases
from bitllm.simulation.parameters import SimulationConfig, stream

SHEET_RADIUS_MM = 60.0
"""Converts distances along the cortex in mm into angles on the sphere."""

_CENTRE_MM = np.array([35.0, -18.0, 10.0])
_SEMI_AXES_MM = np.array([31.0, 84.0, 54.0])
_RIBBON_MM = (-1.5, 0.0, 1.5)
_INVALID = 9999.0
LEFT, RIGHT = 0, 1


@dataclass(frozen=True)
class Cortex:
    """Anatomy of one subject, with voxels in C order of the volume."""

    shape: tuple[int, int, int]
    """Size of the functional volume (X, Y, Z), first voxel left, posterior, inferior."""
    voxel_mm: float
    brain: Bool[np.ndarray, "x y z"]
    """NSD's brain mask."""
    mni_mm: Float[np.ndarray, "x y z 3"]
    """MNI position of every voxel's center, in mm (right, anterior, superior)."""
    cortical: Bool[np.ndarray, "x y z"]
    """Voxels that contain a part of the cortical ribbon."""
    hemisphere: Int[np.ndarray, " cortical"]
    """0 left, 1 right, of each cortical voxel."""
    places: Float[np.ndarray, "cortical 3"]
    """Functional position of each cortical voxel: a unit vector, see ``bitllm.simulation.atlases``."""

    def atlas(self, name: str, hemisphere: int | None = None) -> Float[np.ndarray, "x y z"]:
        """Volume of an atlas in NSD's convention: −1 outside (this hemisphere's) cortex, 0 without a label, 1, 2, …
        labels.
        """
        volume = np.full(self.shape, -1.0)
        values = atlases.atlas_labels(name, self.places).astype(np.float64)
        if hemisphere is not None:
            values[self.hemisphere != hemisphere] = -1
        volume[self.cortical] = values
        return volume

    @property
    def nsdgeneral(self) -> Bool[np.ndarray, " cortical"]:
        """Which cortical voxels are in nsdgeneral."""
        return atlases.atlas_labels("nsdgeneral", self.places) > 0

    def mni_transform(self) -> Float[np.ndarray, "x y z 3"]:
        """NSD's ``MNI-to-func1pt8``: 1-based voxels of the 1 mm MNI template, 9999 outside the brain.

        The template is FSL's, 182 × 218 × 182, with the first axis from right to left: voxel (i, j, k) is at x = 91
        − i, y = j − 127, z = k − 73 mm.
        """
        voxels = np.stack([91 - self.mni_mm[..., 0], self.mni_mm[..., 1] + 127, self.mni_mm[..., 2] + 73], -1)
        return np.where(self.brain[..., None], voxels, _INVALID)


def make_cortex(config: SimulationConfig, subject: int, *, seed: int) -> Cortex:
    """Anatomy of the subject with this index (0-based)."""
    head = _Head(stream(seed, "head", subject))
    sphere = even_sphere(int(1.5 * 41_000 / (config.voxel_mm / 4) ** 2))
    function = displaced(sphere, config.misalignment_mm, stream(seed, "misalignment", subject))
    depths = [sheet_mm(sphere, depth) for depth in _RIBBON_MM]
    native = {
        side: head.from_mni(np.concatenate(depths) * ([-1, 1, 1] if side == LEFT else [1, 1, 1]))
        for side in (LEFT, RIGHT)
    }
    low = np.min([points.min(0) for points in native.values()], 0) - config.voxel_mm
    high = np.max([points.max(0) for points in native.values()], 0) + config.voxel_mm
    shape = tuple(int(n) for n in np.ceil((high - low) / config.voxel_mm))
    centres = low + (np.moveaxis(np.indices(shape), 0, -1) + 0.5) * config.voxel_mm
    mni_mm = head.to_mni(centres.reshape(-1, 3)).reshape(*shape, 3)

    counts, sums = _rasterised(native, np.tile(function, (len(depths), 1)), low, config.voxel_mm, shape)
    total = counts.sum(0)
    cortical = total >= 0.25 * np.median(total[total > 0])
    hemisphere = counts[:, cortical].argmax(0)
    places = np.take_along_axis(sums[:, cortical], hemisphere[None, :, None], 0)[0]
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    return Cortex(
        shape=(shape[0], shape[1], shape[2]),
        voxel_mm=config.voxel_mm,
        brain=cortical | _inside_head(mni_mm),
        mni_mm=mni_mm,
        cortical=cortical,
        hemisphere=hemisphere,
        places=places,
    )


class _Head:
    """A subject's head: an affine map and a smooth warp from its own space (mm) to MNI space."""

    def __init__(self, rng: np.random.Generator) -> None:
        tilt = rng.normal(0, 0.04, (3, 3))
        self._affine = np.diag(rng.uniform(0.9, 1.1, 3)) + (tilt - tilt.T) / 2
        self._waves = rng.normal(0, 1 / 60, (3, 3))
        self._phases = rng.uniform(0, 2 * np.pi, 3)

    def to_mni(self, native_mm: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
        return native_mm @ self._affine + 2.0 * np.sin(native_mm @ self._waves + self._phases)

    def from_mni(self, mni_mm: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
        native = mni_mm.copy()
        for _ in range(15):  # contracts by about ten at each step
            native -= self.to_mni(native) - mni_mm
        return native


def even_sphere(n_points: int) -> Float[np.ndarray, "points 3"]:
    """Points evenly distributed over the unit sphere (Fibonacci spiral)."""
    index = np.arange(n_points) + 0.5
    y = 1 - 2 * index / n_points
    turn = np.pi * (1 + 5**0.5) * index
    radius = np.sqrt(1 - y**2)
    return np.stack([radius * np.cos(turn), y, radius * np.sin(turn)], 1)


def sheet_mm(sphere: Float[np.ndarray, "points 3"], depth_mm: float) -> Float[np.ndarray, "points 3"]:
    """MNI coordinates of the right hemisphere's sheet: an ellipsoid with a fold about every 27 mm."""
    rng = np.random.default_rng(27)  # the folds belong to the template: every seed has the same
    waves = rng.normal(size=(8, 3))
    waves *= (2 * np.pi * SHEET_RADIUS_MM / 27) / np.linalg.norm(waves, axis=1, keepdims=True)
    fold = np.cos(sphere @ waves.T + rng.uniform(0, 2 * np.pi, 8)).sum(1) / 2
    radial = _SEMI_AXES_MM * sphere
    outward = radial / np.linalg.norm(radial, axis=1, keepdims=True)
    return _CENTRE_MM + radial + outward * (4.5 * fold + depth_mm)[:, None]


def displaced(
    sphere: Float[np.ndarray, "points 3"], typical_mm: float, rng: np.random.Generator
) -> Float[np.ndarray, "points 3"]:
    """Functional positions: the anatomical ones displaced along the sheet by a smooth field of this size."""
    waves = rng.normal(0, 2.0, (3, 60))
    field = (
        np.cos(sphere @ waves + rng.uniform(0, 2 * np.pi, 60)) @ rng.normal(size=(60, 3)) * np.sqrt(2 / 60)
    )
    field -= (field * sphere).sum(1, keepdims=True) * sphere
    moved = sphere + field * (typical_mm / SHEET_RADIUS_MM / np.sqrt(2))
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _rasterised(
    native: dict[int, Float[np.ndarray, "points 3"]],
    places: Float[np.ndarray, "points 3"],
    low: Float[np.ndarray, " 3"],
    voxel_mm: float,
    shape: tuple[int, ...],
) -> tuple[Float[np.ndarray, "2 x y z"], Float[np.ndarray, "2 x y z 3"]]:
    """For each voxel, the number of points of each hemisphere's ribbon, and the sum of their positions."""
    counts, sums = [], []
    for side in (LEFT, RIGHT):
        index = np.ravel_multi_index(tuple(((native[side] - low) / voxel_mm).astype(int).T), shape)
        counts.append(np.bincount(index, minlength=int(np.prod(shape))).reshape(shape).astype(np.float64))
        sums.append(np.stack([np.bincount(index, places[:, axis], int(np.prod(shape))).reshape(shape)
                              for axis in range(3)], -1))  # fmt: skip
    return np.stack(counts), np.stack(sums)


def _inside_head(mni_mm: Float[np.ndarray, "x y z 3"]) -> Bool[np.ndarray, "x y z"]:
    """Voxels inside either hemisphere."""
    offset = np.stack([np.abs(mni_mm[..., 0]), mni_mm[..., 1], mni_mm[..., 2]], -1) - _CENTRE_MM
    return ((offset / (_SEMI_AXES_MM + 3)) ** 2).sum(-1) < 1
