"""Greedy captions: temperature 0, top-p 1, the same input always gives the same text."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitllm.data.prompt import INSTRUCTIONS, Prompter, pad_left
from bitllm.model.end_tokens import before_end, end_token_ids
from bitllm.model.precision import computing

_BATCH = 256


@torch.no_grad()
def greedy_captions(
    model: Any,
    prompter: Prompter,
    brain_tokens: Float[Tensor, "n N width"] | None,
    *,
    max_new_tokens: int = 24,
    n: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Decode one caption for each brain input, in batches.

    Parameters
    ----------
    model
        A `BitLlmForCausalLM`.
    prompter
        Makes the prompt; the first instruction is used.
    brain_tokens
        Output of the encoder; None lets the LLM speak alone.
    max_new_tokens
        Longest caption, in tokens.
    n
        Number of captions where ``brain_tokens`` is None.
    on_batch
        Called with the number of captions done.
    """
    tokenizer = prompter.tokenizer
    ends = end_token_ids(model, tokenizer)
    prompt = (prompter if brain_tokens is not None else prompter.without_brain()).prompt_ids(INSTRUCTIONS[0])
    total = n if brain_tokens is None else len(brain_tokens)
    was_training = model.training
    model.eval()
    captions: list[str] = []
    for start in range(0, total, _BATCH):
        size = min(_BATCH, total - start)
        ids, mask = pad_left([prompt] * size, tokenizer.pad_token_id)
        brain = (
            {}
            if brain_tokens is None
            else {"brain_tokens": brain_tokens[start : start + size].to(model.device)}
        )
        with computing(model):
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=False,
                use_cache=True,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=ends,
                suppress_tokens=prompter.never_said,
                **brain,
            )
        said = [before_end(row, ends) for row in out[:, ids.shape[1] :].tolist()]
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        captions += [text.strip() for text in texts]
        if on_batch is not None:
            on_batch(len(captions))
    model.train(was_training)
    return captions
