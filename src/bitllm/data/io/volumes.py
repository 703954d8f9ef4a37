"""Volumes (NIfTI), surface maps (MGH, FreeSurfer) and grayordinates (CIFTI), with errors that name the file."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bitllm.data.io.values import require_real
from bitllm.errors import DataError
from bitllm.files import require_file

Image = nib.Nifti1Image | nib.MGHImage | nib.Cifti2Image

_MGH = (".mgh", ".mgz")

_GRID_TOLERANCE_MM = 1e-3
"""Largest distance of the same voxel in two files: headers are float32, with errors below 1e-4 mm within a brain."""

_SMALLEST_DETERMINANT = 1e-9
"""Volume of a voxel in mm³; an affine with less is degenerate (10 µm voxels have 1e-6)."""

_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
"""NIfTI's units of length; files without a unit are in mm."""

_SPACES = ("unknown", "scanner", "aligned", "talairach", "mni", "template")
"""NIfTI's codes of an sform or qform, from 0."""

IMAGE_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
)
"""Errors that nibabel raises for files that are not images or incomplete (a TypeError for a short MGH header)."""


@dataclass(frozen=True)
class Grid:
    """Shape and affine of a volume."""

    path: Path
    """The file of this grid."""
    shape: tuple[int, ...]
    affine: np.ndarray | None
    """From voxel indices to mm; ``None`` if the header has no position."""
    space: str = "unknown"
    """Space according to the NIfTI code of the affine: scanner, aligned, talairach, mni or template."""
    notes: tuple[str, ...] = ()
    """A note if sform and qform disagree."""

    def mm(self, ijk: np.ndarray) -> np.ndarray:
        """Coordinates in mm of 0-based voxels."""
        assert self.affine is not None, f"{self.path}: no affine"
        return ijk @ self.affine[:3, :3].T + self.affine[:3, 3]


def open_volume(path: Path, what: str) -> Image:
    """Open a NIfTI, MGH or CIFTI file without reading its values."""
    require_file(path, what)
    with _damage_named(path, what):
        image = _loaded(path)
    if not isinstance(image, Image):
        raise DataError(
            f"{path}: expected {what} as NIfTI, MGH or CIFTI, found {type(image).__name__}; convert it"
        )
    require_real(image.get_data_dtype(), path, what)
    return image


def _loaded(path: Path) -> nib.filebasedimages.FileBasedImage:
    try:
        return nib.load(path)
    except FileNotFoundError:  # nibabel looks for `.nii` where the ending is `.Nii`
        kinds = [kind for kind in nib.imageclasses.all_image_classes if issubclass(kind, Image)]
        kind = next((kind for kind in kinds if kind.path_maybe_image(path)[0]), None)
        if kind is None:
            raise
        return kind.from_file_map({"image": nib.FileHolder(str(path))})


def volume_values(image: Image, path: Path, what: str) -> np.ndarray:
    """The values of an open volume, in their stored type unless the header scales them."""
    with _damage_named(path, what):
        return np.asanyarray(image.dataobj)


def read_volume(path: Path, what: str, *, n_axes: int = 3) -> tuple[np.ndarray, Grid]:
    """The values of a volume, scaled according to its header, and its grid.

    Axes of length 1 after the third are removed while there are more than ``n_axes``, as in (x, y, z, 1) or in
    NIfTI's vectors (x, y, z, 1, 3).
    """
    image = open_volume(path, what)
    values = volume_values(image, path, what)
    return values.reshape(without_single_axes(values.shape, n_axes)), grid_of(image, path)


def without_single_axes(shape: tuple[int, ...], n_axes: int) -> tuple[int, ...]:
    """A shape reduced to ``n_axes`` by removing axes of length 1 after the third, as far as there are any."""
    axes = list(shape)
    while len(axes) > n_axes and 1 in axes[3:]:
        del axes[3 + axes[3:].index(1)]
    return tuple(axes)


def grid_of(image: Image, path: Path) -> Grid:
    """The grid of an open volume; its affine is that of the header's codes, never nibabel's default."""
    if isinstance(image, nib.Cifti2Image):
        return Grid(path, (), None)
    shape = tuple(map(int, image.shape[:3]))
    if isinstance(image, nib.Nifti1Image):
        return _nifti_grid(path, image.header, shape)
    affine = image.affine if _states_directions(path) else None
    return Grid(path, shape, affine if _is_whole(affine) else None)


def require_same_grid(found: Grid, expected: Grid, what: str) -> None:
    """Refuse two volumes that would be combined voxel by voxel although their headers disagree.

    Shapes must be equal, and corresponding corners at most 0.001 mm apart. The distance of the corners bounds that
    of every voxel, whatever the rotation; comparing the entries of the affines would need separate tolerances for
    angles and offsets. If a file has no position, only shapes are compared.
    """
    if found.shape != expected.shape:
        raise DataError(
            f"{found.path}: expected {what} on the grid {expected.shape} of {expected.path}, found {found.shape}; "
            "check that both are of one subject and space"
        )
    if found.affine is None or expected.affine is None:
        return
    apart = _mm_apart(found, expected)
    if apart > _GRID_TOLERANCE_MM:
        raise DataError(
            f"{found.path}: expected {what} with the affine {affine_text(expected.affine)} of {expected.path}, found "
            f"{affine_text(found.affine)}; voxels are matched by index and would lie up to {apart:.4g} mm apart, so "
            "resample one onto the grid of the other"
        )


def _mm_apart(one: Grid, other: Grid) -> float:
    """Largest distance between corresponding voxels of two grids of the same shape."""
    # The distance of two affine maps is convex in the voxel, so it is largest at a corner.
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in one.shape])).reshape(3, -1).T
    return float(np.linalg.norm(one.mm(corners) - other.mm(corners), axis=1).max())


def affine_text(affine: np.ndarray) -> str:
    """The three rows of an affine, on one line."""
    rows = (" ".join(f"{value:.6g}" for value in row) for row in affine[:3])
    return f"[{'; '.join(rows)}]"


def read_surface(path: Path, what: str, *, hemisphere: str) -> np.ndarray:
    """Coordinates in mm of the vertices of one hemisphere (``lh`` or ``rh``), from FreeSurfer's geometry."""
    require_file(path, what)
    try:
        mm = np.asarray(nib.freesurfer.read_geometry(path)[0])
    except (ValueError, OSError, IndexError) as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{path}: expected {what} as a surface of FreeSurfer, found a damaged file ({reason}); copy it again from "
            "FreeSurfer's subjects/fsaverage/surf"
        ) from None
    mean_x = float(mm[:, 0].mean())
    if (mean_x > 0) == (hemisphere == "lh"):
        raise DataError(
            f"{path}: expected {what}, {'left' if hemisphere == 'lh' else 'right'} hemisphere, found vertices on the "
            f"other side (mean x {mean_x:.1f} mm); lh and rh are swapped: give each file its own name"
        )
    return mm


def stored_volumes(image: Image, path: Path, what: str) -> Iterator[np.ndarray]:
    """The volumes of an open series as stored, one after the other, flat (first axis fastest).

    One volume at a time is in memory, and a compressed file is decompressed once.
    """
    assert isinstance(image.dataobj, ArrayProxy), f"{path}: not read from a file"
    n_values = int(np.prod(image.shape[:3]))
    dtype = image.get_data_dtype()
    # nibabel's proxy would decompress a .gz file from its start for every volume.
    with _damage_named(path, what), _opened(path) as file:
        file.seek(image.dataobj.offset)
        for number in range(image.shape[3]):
            content = file.read(n_values * dtype.itemsize)
            if len(content) < n_values * dtype.itemsize:
                raise EOFError(f"it ends in volume {number + 1} of {image.shape[3]}")
            yield np.frombuffer(content, dtype)


def scaled_volumes(image: Image, path: Path, what: str) -> Iterator[np.ndarray]:
    """The same volumes, scaled according to the header."""
    proxy = image.dataobj
    assert isinstance(proxy, ArrayProxy), f"{path}: not read from a file"
    for volume in stored_volumes(image, path, what):
        yield volume * proxy.slope + proxy.inter


def _opened(path: Path):  # type: ignore[no-untyped-def]  # gzip and plain files share no public type
    return gzip.open(path, "rb") if path.suffix.lower() in (".gz", ".mgz") else path.open("rb")


def _nifti_grid(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...]) -> Grid:
    """Grid by the sform, or by the qform if the sform is not set."""
    grids = []
    for affine, code in (header.get_sform(coded=True), _qform(header)):
        # Both are read even if only one is used, to report a disagreement.
        if _is_whole(affine):
            in_mm = np.array(affine, np.float64)
            in_mm[:3] *= _mm_per_unit(header)
            space = _SPACES[int(code)] if int(code) < len(_SPACES) else "unknown"
            grids.append(Grid(path, shape, in_mm, space))
    if not grids:
        return Grid(path, shape, None)
    if len(grids) == 1 or (apart := _mm_apart(*grids)) <= _GRID_TOLERANCE_MM:
        return grids[0]
    return replace(
        grids[0], notes=(f"{path}: sform and qform lie up to {apart:.4g} mm apart; the sform is used",)
    )


def _mm_per_unit(header: nib.Nifti1Header) -> float:
    try:
        return _MM_PER_UNIT[header.get_xyzt_units()[0]]
    except KeyError:  # a code that NIfTI does not define
        return 1.0


def _qform(header: nib.Nifti1Header) -> tuple[np.ndarray | None, int]:
    try:
        return header.get_qform(coded=True)
    except (HeaderDataError, ValueError):  # not a unit quaternion
        return None, 0


def _is_whole(affine: np.ndarray | None) -> bool:
    if affine is None or not np.isfinite(affine).all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3])) > _SMALLEST_DETERMINANT)


def _states_directions(path: Path) -> bool:
    """MGH's flag goodRASFlag, the int16 at byte 28; without it nibabel fills in FreeSurfer's default directions."""
    with _opened(path) as file:
        return bool(int.from_bytes(file.read(30)[28:30], "big"))


@contextmanager
def _damage_named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except IMAGE_DAMAGE as error:
        reason = str(error).replace("\n", " ")
        kind = "MGH" if path.suffix.lower() in _MGH else "NIfTI"
        raise DataError(
            f"{path}: expected {what} as {kind}, found a damaged file ({reason}); download it again"
        ) from None
