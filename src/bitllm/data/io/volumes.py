"""Volumes (NIfTI), maps of surfaces (MGH) and grayordinates (CIFTI), opened with errors that name the file."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bitllm.errors import DataError
from bitllm.files import require_file

Image = nib.Nifti1Image | nib.MGHImage | nib.Cifti2Image

_MGH = (".mgh", ".mgz")

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
"""What nibabel raises for files that are no images, or not whole (a short MGH header is a TypeError)."""


def open_volume(path: Path, what: str) -> Image:
    """Open a NIfTI, MGH or CIFTI file without reading its values.

    Raises
    ------
    DataError
        If the file is missing, damaged or of another kind.
    """
    require_file(path, what)
    with _damage_named(path, what):
        image = nib.load(path)
    if not isinstance(image, Image):
        raise DataError(
            f"{path}: expected {what} as NIfTI, MGH or CIFTI, found {type(image).__name__}; convert it"
        )
    return image


def volume_values(image: Image, path: Path, what: str) -> np.ndarray:
    """The values of an open volume, in the type they are stored in unless the header scales them.

    Raises
    ------
    DataError
        If the file ends too soon or does not unpack.
    """
    with _damage_named(path, what):
        return np.asanyarray(image.dataobj)


def read_volume(path: Path, what: str) -> np.ndarray:
    """Open an image and return all its values, scaled by its own header."""
    return volume_values(open_volume(path, what), path, what)


def stored_volumes(image: Image, path: Path, what: str) -> Iterator[np.ndarray]:
    """The volumes of an open series as they are stored, one after the other, flat (first axis fastest).

    One volume is in memory at a time, and a compressed file is unpacked once.

    Raises
    ------
    DataError
        If the file ends too soon or does not unpack.
    """
    assert isinstance(image.dataobj, ArrayProxy), f"{path}: not read from a file"
    n_values = int(np.prod(image.shape[:3]))
    dtype = image.get_data_dtype()
    opener = gzip.open if path.suffix in (".gz", ".mgz") else open
    with _damage_named(path, what), opener(path, "rb") as file:
        file.seek(image.dataobj.offset)
        for number in range(image.shape[3]):
            content = file.read(n_values * dtype.itemsize)
            if len(content) < n_values * dtype.itemsize:
                raise EOFError(f"it ends in volume {number + 1} of {image.shape[3]}")
            yield np.frombuffer(content, dtype)


@contextmanager
def _damage_named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except IMAGE_DAMAGE as error:
        reason = str(error).replace("\n", " ")
        kind = "MGH" if path.suffix in _MGH else "NIfTI"
        raise DataError(
            f"{path}: expected {what} as {kind}, found a damaged file ({reason}); download it again"
        ) from None
