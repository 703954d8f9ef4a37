"""Per-voxel files of a subject: the encoder's fixed pooling map, and the attribution of its trials.

The pooling weights depend on where a voxel lies and how atlases name it, never on its beta: they are the same for every
trial of a subject. So they are a map of where the encoder looks at all, not an explanation of a trial.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from bitllm.data.batch import Anatomies
from bitllm.evaluation.grounding.inputs.held_out import HeldOut
from bitllm.evaluation.grounding.regions.attribution import Attribution
from bitllm.evaluation.grounding.system import System
from bitllm.files import folder_written_whole, write_json
from bitllm.model.encoder import BrainEncoder

_ABOUT = {
    "pooling_map.npy": "queries x voxels: the encoder's pooling weights, each row sums to 1. A fixed map of this "
    "subject: it does not depend on the betas and explains no trial.",
    "voxels.parquet": "voxels in the order of the store: place, atlas labels, pooling (mean weight over queries), "
    "attribution (gradient x input, mean over images, bits), attribution_absolute, and both for a randomised model.",
}


def write_maps(system: System, held_out: HeldOut, found: Attribution, folder: Path) -> None:
    """Write ``pooling_map.npy``, ``voxels.parquet`` and ``about.json`` into a new folder.

    Raises
    ------
    OutputError
        If the folder is not empty, or the disk is full.
    """
    weights = pooling_map(system.encoder, held_out, system.atlases)
    table = held_out.store.subject(held_out.subject).voxels.copy()
    table["pooling"] = weights.mean(axis=0)
    for name, values in (("", found.trained), ("_of_randomised_model", found.randomised)):
        table[f"attribution{name}"] = values.mean(axis=0)
        table[f"attribution_absolute{name}"] = np.abs(values).mean(axis=0)
    with folder_written_whole(folder) as unfinished:
        np.save(unfinished / "pooling_map.npy", weights)
        table.to_parquet(unfinished / "voxels.parquet")
        write_json(unfinished / "about.json", {"subject": held_out.subject, **_ABOUT})


@torch.no_grad()
def pooling_map(
    encoder: BrainEncoder, held_out: HeldOut, atlases: tuple[str, ...]
) -> Float[np.ndarray, "queries voxels"]:
    """The encoder's weight of each voxel in each query, for one subject."""
    anatomies = Anatomies.of(held_out.store, [held_out.subject], atlases)
    device = encoder.queries.device
    return (
        encoder.pooling_map(anatomies.coords_mm[0].to(device), anatomies.atlas_labels[0].to(device))
        .cpu()
        .numpy()
    )
