"""GLMsingle's ``.npy`` is a pickle: read only with consent, and then only numpy arrays and plain containers."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from bitllm.errors import DataError
from bitllm.files import require_file

_ADMITTED = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in ((f"{core}.multiarray", "_reconstruct"), (f"{core}.multiarray", "scalar"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"`{module}.{name}`")
        return super().find_class(module, name)


def read_pickled_dict(path: Path, *, is_trusted: bool) -> dict[str, Any]:
    """The dictionary in a ``.npy`` file pickled by ``np.save``, if the user consents (``is_trusted``).

    Even then only arrays, numbers, text and plain containers are created.
    """
    require_file(path, "GLMsingle's output")
    if not is_trusted:
        raise DataError(
            f"{path}: expected GLMsingle's output as .hdf5 (wanthdf5=1), found .npy, which is a pickle and can "
            "run code; if you made it yourself add --trust-pickle, or save as .hdf5"
        )
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(file)
            rest = io.BytesIO(file.read())
        if dtype != np.dtype(object) or shape != ():
            raise ValueError("it is a plain array")
        content = _Restricted(rest).load()
        content = content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: expected numpy arrays and plain containers, found a pickle that asks for {error}; "
            "do not open this file, ask for .hdf5"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        raise DataError(
            f"{path}: expected a dictionary that GLMsingle saved, found another or a damaged file ({error}); "
            "save it again as .hdf5"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected a dictionary that GLMsingle saved, found {type(content).__name__}; save it "
            "again as .hdf5"
        )
    return content
