"""The tokens that end a caption: the tokenizer's own and those that the LLM's ``generation_config`` names."""

from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import Any

from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerBase


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a caption, in ascending order.

    Parameters
    ----------
    model
        A `BitLlmForCausalLM` or a Llama.
    tokenizer
        The LLM's tokenizer.
    """
    found = model.generation_config
    # `transformers` writes the default of `LlamaConfig` into every config.json, whatever token has that id
    is_default = found._from_model_config and found.eos_token_id == LlamaConfig.eos_token_id
    named = [] if is_default else _ids(found.eos_token_id)
    return sorted({*named, *_ids(tokenizer.eos_token_id)})


def before_end(ids: Iterable[int], ends: Collection[int]) -> list[int]:
    """The generated tokens up to the first end token, without it: not every end token is a special token."""
    return list(takewhile(lambda token: token not in ends, ids))


def token_ids_of_generation(llm: Any, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The token ids of the LLM's ``generation_config``, with all its end tokens, and nothing else of it.

    Captions are greedy, or sampled from the plain softmax: a temperature or repetition penalty of the LLM's must not
    reach them.
    """
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_token_ids(llm, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def _ids(named: int | list[int] | None) -> list[int]:
    return [] if named is None else [named] if isinstance(named, int) else list(named)
