"""The encoder with the heads of the align stage: brain embeddings in CLIP's image and text spaces.

References
----------
The poster, stage 1: multi-modal contrastive pre-training. The temperature is learned and clamped as in CLIP
(Radford et al. 2021, section 2.5).
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from safetensors.torch import save_file
from torch import Tensor, nn

from bitllm.errors import CheckpointError
from bitllm.files import read_record, write_json
from bitllm.losses.contrastive import info_nce, mixed_images, same_image
from bitllm.model.checkpoint.weights import read_weights
from bitllm.model.encoder import BrainEncoder
from bitllm.model.voxels import Anatomy

_MAX_SCALE = 100.0  # CLIP's bound of the inverse temperature
_WEIGHTS, _CARD = "aligner.safetensors", "aligner.json"


class BrainAligner(nn.Module):
    """Betas → one unit vector in the image space and one in the text space.

    Parameters
    ----------
    encoder
        The brain encoder; its tokens are averaged.
    embedding_width
        Width of the CLIP embeddings.
    """

    def __init__(self, encoder: BrainEncoder, *, embedding_width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.token_width)
        self.image_head = nn.Linear(encoder.token_width, embedding_width)
        self.text_head = nn.Linear(encoder.token_width, embedding_width)
        self.log_scale = nn.Parameter(torch.tensor([1 / 0.07]).log())  # FSDP2 shards no scalars

    def embed(
        self, brain_tokens: Float[Tensor, "B N width"]
    ) -> tuple[Float[Tensor, "B d"], Float[Tensor, "B d"]]:
        """Unit embeddings of brain tokens in the image space and in the text space."""
        pooled = self.norm(brain_tokens.mean(dim=1))
        return F.normalize(self.image_head(pooled), dim=-1), F.normalize(self.text_head(pooled), dim=-1)

    def forward(  # noqa: PLR0913 - the fields of a batch
        self,
        betas: Float[Tensor, "B V"],
        subject_index: Int[Tensor, " B"],
        coords_mm: Float[Tensor, "S V 3"],
        atlas_labels: Int[Tensor, "S V A"],
        voxel_mask: Bool[Tensor, "S V"],
        *,
        image: Float[Tensor, "B d"],
        text: Float[Tensor, "B d"],
        nsd_id: Int[Tensor, " B"],
        per_subject: int | None = None,
        **mixture: Shaped[Tensor, " B"],
    ) -> dict[str, Tensor]:
        """The align loss: mean of symmetric InfoNCE (brain, image) and (brain, text).

        With several processes, the trials of all processes are negatives of each other, with gradients: every
        process computes the loss of the whole batch. If the betas are mixtures of two trials, ``mixture`` contains
        the image of the second trial (``mixed_with``) and the ``share`` of the first. For ``per_subject`` see
        `BrainEncoder.forward`.
        """
        anatomy = Anatomy(coords_mm, atlas_labels, voxel_mask)
        brain_tokens = self.encoder(betas, subject_index, anatomy, per_subject=per_subject)
        brain_image, brain_text = (_of_all_processes(brain) for brain in self.embed(brain_tokens))
        image, text, nsd_id = (_of_all_processes(one) for one in (image, text, nsd_id))
        scale = self.log_scale.exp().clamp(max=_MAX_SCALE)[0]
        positives = same_image(nsd_id)
        if mixture:
            second, share = (_of_all_processes(mixture[name]) for name in ("mixed_with", "share"))
            positives = mixed_images(nsd_id, second, share)
        image_loss = info_nce(brain_image, image, scale=scale, positives=positives)
        text_loss = info_nce(brain_text, text, scale=scale, positives=positives)
        return {
            "loss": (image_loss + text_loss) / 2,
            "image_loss": image_loss.detach(),
            "text_loss": text_loss.detach(),
        }


def _of_all_processes(rows: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "all ..."]:
    """The rows of all processes in the order of ranks; gradients return to the process of each row."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    return _Gathered.apply(rows)  # type: ignore[no-untyped-call]


class _Gathered(torch.autograd.Function):
    """Concatenation over processes; the gradient of a row is the sum of its gradients in all processes."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        context.n_rows = len(rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        # A sum, not a mean: every process computes the whole loss, and DDP then averages parameter gradients.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank() * context.n_rows :][: context.n_rows]


def save_aligner(
    aligner: BrainAligner,
    folder: Path,
    *,
    encoder: dict[str, Any],
    about: dict[str, Any],
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write weights (by default the aligner's own) and settings into ``folder``."""
    named = aligner.state_dict() if state is None else state
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}, folder / _WEIGHTS)
    write_json(
        folder / _CARD, {"encoder": encoder, "embedding_width": aligner.image_head.out_features, **about}
    )


def load_aligner(folder: Path) -> BrainAligner:
    """Read a checkpoint of the align stage."""
    folder = Path(folder)
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint of the align stage with {_WEIGHTS}, found none; "
            "train the align stage first"
        )
    card = read_record(folder / _CARD, "encoder", "embedding_width")
    settings = {**card["encoder"], "n_labels": tuple(card["encoder"]["n_labels"])}
    aligner = BrainAligner(BrainEncoder(**settings), embedding_width=card["embedding_width"])
    try:
        aligner.load_state_dict(read_weights(folder / _WEIGHTS), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder / _WEIGHTS}: expected the weights that {_CARD} describes, found others ({reason}); train the "
            "align stage again"
        ) from None
    return aligner
