"""A trained system, ready to decode: sft or rft checkpoint with its base LLM."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from bitllm.data.io.models import model_loading
from bitllm.data.prompt import Prompter
from bitllm.errors import CheckpointError
from bitllm.files import read_json
from bitllm.model.build import load_trained
from bitllm.model.checkpoint.base import BaseLlm
from bitllm.model.checkpoint.rft import RFT_CARD, sft_beneath
from bitllm.model.decode import greedy_captions
from bitllm.model.encoder import BrainEncoder
from bitllm.model.precision import Precision, base_dtype


@dataclass(frozen=True)
class System:
    """What decodes: the model in evaluation mode, and how it is asked."""

    name: str
    model: Any
    prompter: Prompter
    atlases: tuple[str, ...]
    split_sha256: str
    """Split that it was trained on."""

    @property
    def encoder(self) -> BrainEncoder:
        """Its brain encoder."""
        return self.model.model.encoder

    def captions(
        self,
        brain_tokens: Float[Tensor, "m N width"] | None,
        *,
        n: int,
        max_new_tokens: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Greedy captions of ``n`` inputs; where all inputs are equal (or none is given) one is decoded."""
        if brain_tokens is None or bool((brain_tokens == brain_tokens[:1]).all()):
            one = None if brain_tokens is None else brain_tokens[:1]
            return greedy_captions(self.model, self.prompter, one, max_new_tokens=max_new_tokens) * n
        return greedy_captions(
            self.model, self.prompter, brain_tokens, max_new_tokens=max_new_tokens, on_batch=on_batch
        )


def with_lora(model: Any, folder: Path) -> Any:
    """The model of an sft checkpoint with the LoRA weights of the rft checkpoint in ``folder``.

    Raises
    ------
    CheckpointError
        If the LoRA weights are missing, damaged or of another model.
    """
    with model_loading(folder, "the LoRA weights of rft", error=CheckpointError):
        return PeftModel.from_pretrained(model, str(folder))


def load_system(name: str, folder: Path, base: BaseLlm, *, precision: Precision = "fp32") -> System:
    """Load a checkpoint of sft, or of rft on top of its sft checkpoint.

    Raises
    ------
    CheckpointError
        If the folder holds neither, or something that does not fit.
    """
    folder = Path(folder)
    if (folder / RFT_CARD).is_file():
        card = read_json(folder / RFT_CARD)
        sft = load_system(name, sft_beneath(folder), base, precision=precision)
        model = with_lora(sft.model, folder).get_base_model().eval()
        return System(name, model, sft.prompter, sft.atlases, card["split"])
    if not (folder / "bitllm.json").is_file():
        raise CheckpointError(
            f"{folder}: expected a checkpoint of sft (bitllm.json) or rft (rft.json), found neither; "
            "train the stage first"
        )
    card = read_json(folder / "bitllm.json")
    model = load_trained(folder, base, base_dtype=base_dtype(precision)).eval()
    is_prefix = model.config.interface != "cross_attention"
    prompter = Prompter(
        base.tokenizer, model.model.encoder.n_brain_tokens if is_prefix else 0, model.config.brain_token_id
    )
    return System(name, model, prompter, tuple(card["atlases"]), card["split"])
