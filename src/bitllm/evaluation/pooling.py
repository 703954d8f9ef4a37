"""The encoder's pooling map of every subject: the weight of each voxel, the same for all trials.

``evaluation_maps.npz`` contains one array per subject of the store, so that the report needs no model.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from bitllm.data.batch import Anatomies
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.files import file_written_whole
from bitllm.model.encoder import BrainEncoder

MAPS = "evaluation_maps.npz"


@torch.no_grad()
def pooling_map(
    encoder: BrainEncoder, store: Store, subject: str, atlases: Sequence[str]
) -> Float[np.ndarray, "queries voxels"]:
    """The encoder's weight of each voxel in each query, for one subject."""
    anatomy, device = Anatomies.of(store, [subject], atlases), encoder.queries.device
    weights = encoder.pooling_map(anatomy.coords_mm[0].to(device), anatomy.atlas_labels[0].to(device))
    return weights.float().cpu().numpy()


def pooling_maps(
    encoder: BrainEncoder, store: Store, atlases: Sequence[str]
) -> dict[str, Float[np.ndarray, " voxels"]]:
    """Pooling weights of every subject's voxels: mean over queries, relative to the mean over voxels."""
    maps = {subject: pooling_map(encoder, store, subject, atlases) for subject in store.subjects}
    return {subject: weights.mean(axis=0) * weights.shape[1] for subject, weights in maps.items()}


def write_maps(folder: Path, maps: dict[str, Float[np.ndarray, " voxels"]]) -> None:
    """Write ``evaluation_maps.npz``, completely or not at all."""
    with file_written_whole(folder / MAPS) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **maps)  # type: ignore[arg-type]


def read_maps(folder: Path) -> dict[str, Float[np.ndarray, " voxels"]]:
    """Read the maps of an evaluation; empty if it has none."""
    path = folder / MAPS
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name].astype(np.float64) for name in file}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: expected the maps of an evaluation, found a damaged file ({error}); run `bitllm evaluate` again"
        ) from None
