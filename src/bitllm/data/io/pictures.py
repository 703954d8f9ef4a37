"""Images of the stimuli, found by name in a folder and decoded to RGB."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from bitllm.errors import DataError
from bitllm.files import normalized_name

_DARK = 2**12
"""Cameras and converters that use fewer bits in 16-bit files produce only values below this."""
_COCO_DIGITS = 12
"""COCO names its images by id, padded with zeros to twelve digits."""


class PictureFolder:
    """The images of a folder by their names, without extension.

    Names are compared in Unicode's composed form. Extensions are those of all formats that Pillow reads, in upper or
    lower case. Hidden files are ignored.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of pictures, found none; check the path")
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        endings = Image.registered_extensions()  # also loads Pillow's plug-ins
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in endings and not path.name.startswith("."):
                self._files.setdefault(normalized_name(path.stem), []).append(path)

    def find(self, names: Sequence[str]) -> Path:
        """The image with one of these names, in order of preference; a name may include the extension."""
        return self._find_each([names])[0]

    def find_all(self, names: Iterable[Sequence[str]], notes: list[str] | None = None) -> list[Path]:
        """The image of each stimulus, found by `find`; only headers are read, and the values of 16-bit grayscale
        images.

        ``notes`` receives a line if 16-bit grayscale images are almost black.
        """
        found = self._find_each(names)
        dark = []
        for path in found:
            with _damage_named(path), Image.open(path) as picture:
                if picture.mode.startswith("I;16") and np.asarray(picture).max() < _DARK:
                    dark.append(path)
        if dark and notes is not None:
            notes.append(
                f"{dark[0]}: 16-bit gray without a value of {_DARK} or more comes out almost black ({len(dark)} such "
                "pictures); stretch them to 0 to 65535, or save them with 8 bits"
            )
        return found

    def _find_each(self, names: Iterable[Sequence[str]]) -> list[Path]:
        wanted = list(names)
        found = [next((path for name in of_one if (path := self._file(name))), None) for of_one in wanted]
        missing = [of_one[0] for of_one, path in zip(wanted, found, strict=True) if path is None]
        if missing:
            raise DataError(
                f"{self.folder}: expected a picture of `{missing[0]}` ({missing[0]}.png, .jpg or another format), "
                f"found none ({len(missing)} of {len(wanted)} are missing); add it or correct its name"
            )
        return [path for path in found if path is not None]

    def _file(self, name: str) -> Path | None:
        given = normalized_name(name)
        # `a.b` may be a name without an ending: the whole of it is tried first
        found = self._files.get(given) or [
            path
            for path in self._files.get(normalized_name(Path(given).stem), [])
            if normalized_name(path.name) == given
        ]
        if len(found) > 1:
            raise DataError(
                f"{self.folder}: expected one picture of `{name}`, found {found[0].name} and {found[1].name}; remove "
                "or rename one"
            )
        return found[0] if found and found[0].is_file() else None


def names_of(identity: str, coco_id: int = -1) -> list[str]:
    """Possible names of a stimulus's image: its own name, and those that COCO gives to an id (-1: none)."""
    numbers = (
        [int(identity)]
        if identity.isascii() and identity.isdigit() and str(int(identity)) == identity
        else []
    )
    numbers += [coco_id] if coco_id >= 0 else []
    coco = [name for number in numbers for name in (f"{number:0{_COCO_DIGITS}d}", str(number))]
    return list(dict.fromkeys([identity, *coco]))


def picture_reader(
    folder: Path | None, stimuli: pd.DataFrame, notes: list[str] | None = None
) -> Callable[[int], np.ndarray]:
    """A function that reads the image of an ``nsd_id`` from a folder, by the name of the stimulus.

    ``stimuli`` has ``nsd_id``, ``stimulus_id`` (the name) and ``coco_id`` (-1 if unknown). ``notes`` receives a line
    if images are almost black.
    """
    if folder is None:
        raise DataError(
            "--pictures: expected the folder of the stimuli, found none; this format holds no pictures"
        )
    rows = zip(stimuli["stimulus_id"].astype(str).tolist(), stimuli["coco_id"].tolist(), strict=True)
    files = PictureFolder(folder).find_all((names_of(name, int(coco_id)) for name, coco_id in rows), notes)
    paths = dict(zip(stimuli["nsd_id"].tolist(), files, strict=True))
    return lambda nsd_id: decode_picture(paths[nsd_id], paths[nsd_id])


def decode_picture(file: Any, path: Path) -> np.ndarray:
    """RGB values (uint8) of an image, as a viewer would show it; ``file`` is a path or an open file, errors name
    ``path``.

    The EXIF orientation is applied, transparency is composited on white, 16-bit grayscale is scaled to 8 bits, and
    animations are reduced to their first frame.
    """
    with _damage_named(path), Image.open(file) as picture:
        turned = ImageOps.exif_transpose(picture)
        if turned.mode.startswith("I;16"):
            # Pillow clips 16-bit gray to 255 instead of scaling it
            gray = np.round(np.asarray(turned).astype(np.float64) / 257).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        if turned.mode in ("I", "F"):
            return _scaled_gray(np.asarray(turned).astype(np.float64), path)
        if "A" in turned.getbands() or "transparency" in turned.info:
            over = turned.convert("RGBA")
            white = Image.new("RGBA", over.size, "white")
            return np.asarray(Image.alpha_composite(white, over).convert("RGB"))
        return np.asarray(turned.convert("RGB"))


def _scaled_gray(values: np.ndarray, path: Path) -> np.ndarray:
    """32-bit grayscale scaled to 8 bits; its range (0 to 1, 255 or 65,535) is inferred from the values."""
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise DataError(
            f"{path}: expected gray values from 0 to 65535, found {values.min():g} to {values.max():g}; save the "
            "picture with 8 bits"
        )
    largest = next(limit for limit in (1, 255, 65535) if values.max() <= limit)
    gray = np.round(values * (255 / largest)).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: expected a picture, found a file that does not decode ({error}); copy it again"
        ) from None
