"""An sft step on SmolLM2-135M-Instruct, batch 16, compared with a plain one: encoder in every step, logits everywhere.

    make smollm2 && python benchmarks/sft_step.py

Encoder and LLM are frozen, so brain tokens do not change from step to step: ours takes the kept ones, and multiplies
by the head over 49,152 words only where an answer token is due. The plain way encodes the betas in every step (with our
own encoder, already fast, at the poster's size: 15,724 voxels, 1024 queries, 128 × 1024 tokens; 16 trials of 4
subjects) and takes the loss of transformers over the logits of every position. Prompts have 48 tokens, answers 12.

Prediction, written before this script first ran: forward and backward of the backbone 2 · 2 · 106M · 960 positions =
0.4 TFLOP in both; the head 3 · 2 · 28M · 960 = 0.16 TFLOP against 0.03, with 190 MB of float32 logits read and written
several times; the encoder 4 · 10 GFLOP of pooling and 4 of its head. So 1.6 to 2 times in float32.

Measured (2 threads, float32 235 and bfloat16 997 GFLOP/s; median of 5 pairs): float32 1.34 times (2.36 s against 3.13
s), bfloat16 1.56 times (1.02 s against 1.58 s). The 2 times asked for are NOT met: forward and backward of the frozen
backbone, which both need, are 72 % of the machine's rate in float32 and most of the step. Against the plain way of
published code, whose encoder computes its weights for every trial (`encoder.py`), the ratio would be larger; that was
not timed here.

With `sft.compile_layers` (the plain way stays as it is): norms, rotations and activations, not products, took most of
the step in bfloat16 in a profile on a busy machine. One trial of the compiled layers took 1.9 s of processor time
instead of 4.1 s, which predicts 2.2 times. Measured here (processor time on a busy machine, 1 thread, median of 3
pairs): 1.98 times [1.70, 2.34], and 1.27 times without compiling; compiling took two to four minutes. On a machine
without fast bfloat16 (177 and 417 GFLOP/s; idle, two threads): float32 1.41 times [1.30, 1.42], bfloat16 1.39 [1.37,
1.46], compiled 1.53 [1.51, 1.75].
"""

import sys
import tempfile
from pathlib import Path

import torch
from machine import matrix_gflops, print_ceilings, ratio_of_medians
from transformers import LlamaForCausalLM

from bitllm.data.batch import pad_answers
from bitllm.model.build import build_bit_llm, train_interface
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.embed import encode_betas
from bitllm.model.precision import base_dtype, computing
from bitllm.model.voxels import Anatomy
from bitllm.stages.sft import answer_loss
from bitllm.toy_models import unpack_smollm2

BATCH, PROMPT, ANSWER, V, SUBJECTS = 16, 48, 12, 15_724, 4
LEAST_RATIO = 2.0
REPEATS = 3
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
ENCODER = {
    "n_queries": 1024,
    "rank": 128,
    "n_brain_tokens": 128,
    "token_width": 1024,
    "n_labels": [7, 5, 3, 4, 5, 7],
}


def compare(llm: LlamaForCausalLM, dtype: torch.dtype) -> float:
    """Check that loss and gradients are equal in this precision of the LLM, then print and return the ratio."""
    torch.manual_seed(0)
    model = build_bit_llm(llm, base_dtype=dtype, encoder=ENCODER, adapter_layers=[3, 7, 11, 15]).eval()
    train_interface(model)
    anatomy = Anatomy(
        60 * (torch.rand(SUBJECTS, V, 3) - 0.5),
        torch.randint(0, 4, (SUBJECTS, V, 6)),
        torch.ones(SUBJECTS, V, dtype=torch.bool),
    )
    betas, subject_index = torch.randn(BATCH, V), torch.arange(BATCH) % SUBJECTS
    words = torch.randint(10, 40_000, (BATCH, PROMPT + ANSWER)).tolist()
    batch = pad_answers([row[:PROMPT] for row in words], [row[PROMPT:] for row in words], 2)
    kept = encode_betas(model.model.encoder, betas, subject_index, anatomy)
    model.model.encoder.train()  # lets go of the maps kept in evaluation; without dropout it is the same function
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def ours() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = answer_loss(model, {**batch, "brain_tokens": kept})
        loss.backward()
        return loss.detach()

    def plain() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            brain_tokens = model.model.encoder(betas, subject_index, anatomy)
        with computing(model):
            loss = model(**batch, brain_tokens=brain_tokens, use_cache=False).loss
        loss.backward()
        return loss.detach()

    found = []
    for step in (ours, plain):
        loss = step()
        found.append([loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    # of all numbers of a tensor, in units of their own size: bfloat16 has 8 bits
    worst = max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in zip(*found, strict=True))
    name = str(dtype).removeprefix("torch.")
    print(f"{name}: loss and {len(found[0]) - 1} gradients differ by at most {worst:.1e} of their norm")
    if worst > TOLERANCE[dtype]:
        print(f"not equal: expected at most {TOLERANCE[dtype]:.0e}")
        return 0.0
    time = ratio_of_medians(ours, plain, repeats=REPEATS)
    share = 4e-9 * 106e6 * BATCH * (PROMPT + ANSWER) / time["ours_s"] / matrix_gflops(dtype)
    print(
        f"{name}: {time['ours_s']:.2f} s against {time['theirs_s']:.2f} s, ratio {time['ratio']:.2f} "
        f"[{time['ratio_range'][0]:.2f}, {time['ratio_range'][1]:.2f}]; ours does its backbone's products at "
        f"{100 * share:.0f} % of the machine's rate"
    )
    if dtype is not base_dtype("auto"):
        return time["ratio"]
    expected = ours()
    model.model.language_model.compile_layers()

    def uncompiled() -> torch.Tensor:
        with torch.compiler.set_stance("force_eager"):
            return plain()

    error = float((ours() - expected).abs() / expected.abs())
    time = ratio_of_medians(ours, uncompiled, repeats=REPEATS)
    print(
        f"{name}, layers compiled: {time['ours_s']:.2f} s against {time['theirs_s']:.2f} s, ratio {time['ratio']:.2f} "
        f"[{time['ratio_range'][0]:.2f}, {time['ratio_range'][1]:.2f}]; loss differs by {error:.1e}"
    )
    return time["ratio"] if error <= TOLERANCE[dtype] else 0.0


def main() -> int:
    """Compare in both precisions; the one that counts is what `precision: auto` takes here."""
    print_ceilings()
    with tempfile.TemporaryDirectory() as folder:
        unpack_smollm2(Path(folder) / "smollm2")
        llm = load_llm(Path(folder) / "smollm2").llm
    ratios = {dtype: compare(llm, dtype) for dtype in TOLERANCE}
    chosen = base_dtype("auto")
    print(
        f"`precision: auto` is {chosen} here: ratio {ratios[chosen]:.2f} (asked for: at least {LEAST_RATIO:.0f})"
    )
    return 0 if ratios[chosen] >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
