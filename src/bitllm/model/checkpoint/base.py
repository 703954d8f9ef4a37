"""The base LLM: any Llama from a local folder, a GGUF file or a hub id, with its name and checksum."""

import hashlib
from collections.abc import Collection, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.utils.quantization_config import GgufConfig

from bitllm.data.io.models import model_loading
from bitllm.errors import ConfigError

# a special token that captions never contain: of the demo's Llama, of Llama 3, of SmolLM2, and of older Llamas
_PLACEHOLDERS = ("<brain>", "<|reserved_special_token_0|>", "<file_sep>", "<unk>")


class BaseLlm(NamedTuple):
    """A frozen Llama with its tokenizer, name and checksum."""

    llm: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Hub id, or the name of the local folder."""
    sha256: str
    """Checksum of its weights (`weights_hash`)."""
    revision: str | None = None
    """Commit of a hub model."""

    def reference(self) -> dict[str, Any]:
        """The entry of a checkpoint that identifies its base LLM."""
        return {"name": self.name, "revision": self.revision, "sha256": self.sha256}


def load_llm(
    path_or_hub_id: str | Path, *, dtype: torch.dtype | None = torch.float32, revision: str | None = None
) -> BaseLlm:
    """A frozen Llama and its tokenizer from a local folder, a GGUF file or a hub id.

    Parameters
    ----------
    path_or_hub_id
        Folder, GGUF file or hub id.
    dtype
        Precision of the loaded LLM; None for the stored one. The checksum is always that of the stored weights.
    revision
        Branch, tag or commit of a hub model.

    Raises
    ------
    ConfigError
        If there is no such model, or if its ``model_type`` is not llama.
    """
    source = Path(path_or_hub_id)
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path_or_hub_id)}
    how: dict[str, Any] = {"dtype": "auto"}
    if source.suffix == ".gguf":
        place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        # quantized weights cannot be saved, and adapters cannot be trained through them
        how = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    elif revision is not None:
        place["revision"] = revision
    what = "a folder or hub id of a Llama with its tokenizer"
    with model_loading(path_or_hub_id, what, error=ConfigError):
        _require_llama(AutoConfig.from_pretrained(**place).model_type, str(path_or_hub_id))
        tokenizer = AutoTokenizer.from_pretrained(**place)
        llm = AutoModelForCausalLM.from_pretrained(**place, **how)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    llm.generation_config = token_ids_of_generation(llm, tokenizer)
    # only the name of a local folder: a checkpoint must not contain a path of this machine
    name = source.name if source.exists() else str(path_or_hub_id)
    sha256, commit = weights_hash(llm), getattr(llm.config, "_commit_hash", None)
    return BaseLlm(llm.eval().to(dtype or llm.dtype), tokenizer, name, sha256, commit)


def _require_llama(model_type: str, where: str) -> None:
    if model_type != "llama":
        raise ConfigError(
            f"{where}: expected model_type llama, found {model_type}; choose a "
            "Llama, e.g. Llama-3.2-3B-Instruct or SmolLM2"
        )


def placeholder_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The placeholder of brain tokens for a prefix interface: a special token that no caption contains."""
    vocabulary = tokenizer.get_vocab()
    found = [vocabulary[token] for token in _PLACEHOLDERS if token in vocabulary]
    if not found:
        raise ConfigError(
            f"tokenizer: expected one of {', '.join(_PLACEHOLDERS)} as placeholder of brain tokens, "
            "found none; add a special token `<brain>` to the tokenizer"
        )
    return found[0]


def weights_hash(llm: nn.Module) -> str:
    """Checksum of a model's weights that does not depend on the file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(llm.state_dict().items()):
        digest.update(name.encode())
        # float32, so that a bfloat16 checkpoint and its exact float32 copy have the same checksum.
        digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All end tokens of a caption: the tokenizer's, and those in the LLM's ``generation_config``."""
    found = model.generation_config
    # `transformers` fills in the default id of `LlamaConfig` (2), which may be an ordinary token of this tokenizer
    is_default = found._from_model_config and found.eos_token_id == LlamaConfig.eos_token_id
    named = [] if is_default else _ids(found.eos_token_id)
    return sorted({*named, *_ids(tokenizer.eos_token_id)})


def before_end(ids: Iterable[int], ends: Collection[int]) -> list[int]:
    """The generated tokens before the first end token. Not every end token is a special token that decoding skips."""
    return list(takewhile(lambda token: token not in ends, ids))


def token_ids_of_generation(llm: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The token ids of the LLM's ``generation_config``, with all end tokens, and none of its other settings.

    Captions are greedy or sampled from the plain softmax: the LLM's temperature or repetition penalty must not
    apply.
    """
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_token_ids(llm, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def _ids(named: int | list[int] | None) -> list[int]:
    return [] if named is None else [named] if isinstance(named, int) else list(named)
