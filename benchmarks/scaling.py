"""What the three stages cost on 1, 8 and 64 GPUs: arithmetic, not a measurement.

    python benchmarks/scaling.py poster

Counts the products of each stage from the configuration, divides by what a GPU is taken to do, and adds the gradients'
way between processes. The share of the peak that is taken is the one measured on this project's machine for the frozen
LLM (72 % in an sft step), lowered to what such models reach on GPUs. Everything assumed stands in the table that it
prints. No GPU was at hand: nothing of this was tried.
"""

import argparse
from dataclasses import dataclass

from bitllm.pipeline.recipe import Recipe, read_recipe
from bitllm.preflight.cost import ParameterTable, count_parameters

PEAK = 312e12  # dense bfloat16 products of an A100, by its data sheet
SHARE = 0.35  # of the peak, for training
DECODE_BYTES = 1.5e12  # per second from the memory of an A100 (2.0e12 by its data sheet)
INSIDE, BETWEEN = 200e9, 20e9  # bytes per second of an all-reduce inside a node of 8, and between nodes
PROMPT, CAPTION = 30, 16  # tokens
TRIALS = 7 * 30_000 * 0.9  # seven subjects' training trials, a tenth of the images shared and so left out
ALIGN_EPOCHS, SFT_EPOCHS, RFT_INPUTS = 20, 3, 24_000


@dataclass(frozen=True)
class Cost:
    """One stage: products and bytes of one example, what learns, and how many examples."""

    name: str
    flop: float
    """Floating-point operations of one example, forward and backward."""
    decode_s: float
    """Seconds of decoding one example in a full batch, bound by memory."""
    n_learning: float
    n_examples: float
    per_gpu: int
    """Examples that a GPU computes in a step."""

    def hours(self, n_gpus: int) -> tuple[float, float]:
        """Hours in all, and the share of them that is not communication."""
        compute = self.per_gpu * (self.flop / (PEAK * SHARE) + self.decode_s)
        way = INSIDE if n_gpus <= 8 else BETWEEN
        exchange = 0.0 if n_gpus == 1 else 2 * 4 * self.n_learning * (n_gpus - 1) / n_gpus / way
        steps = self.n_examples / (self.per_gpu * n_gpus)
        return steps * (compute + exchange) / 3600, compute / (compute + exchange)


def costs(config: Recipe, table: ParameterTable) -> list[Cost]:
    """The three stages of a configuration."""
    llm, encoder = table.parts["llm"], table.parts["encoder"]
    voxels = sum(config.data.voxels.values()) / len(config.data.voxels)
    adapters = table.trainable["sft"]
    tokens, group = PROMPT + CAPTION, config.rft.n_captions
    rows = 16 * group  # captions that are decoded together
    return [
        Cost(
            "align",
            6 * encoder + 6 * config.encoder.n_queries * voxels,
            0.0,
            table.trainable["align"],
            TRIALS * ALIGN_EPOCHS,
            128,
        ),
        # frozen weights need no gradient of their own: 4 instead of 6 products a parameter and token
        Cost("sft", (4 * llm + 6 * adapters) * tokens, 0.0, adapters, TRIALS * SFT_EPOCHS, 32),
        Cost(
            "rft",
            # prompt once; reference forward; policy forward and backward
            group * (2 * (llm + adapters) * tokens + (2 + 4) * (llm + adapters) * tokens),
            group * CAPTION * 2 * llm / DECODE_BYTES / rows,
            table.trainable["rft"],
            RFT_INPUTS,
            16,
        ),
    ]


def memory_gb(config: Recipe, table: ParameterTable) -> dict[str, float]:
    """What a GPU holds before activations, in GB: frozen LLM in bfloat16, what learns with gradient and AdamW."""
    frozen = 2 * table.parts["llm"] + 4 * table.parts["encoder"]
    learning = table.trainable
    return {
        "align": 16 * learning["align"] / 1e9,
        "sft": (frozen + 16 * learning["sft"]) / 1e9,
        "rft": (frozen + 4 * learning["sft"] + 16 * learning["rft"]) / 1e9,
    }


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description="Time and memory on GPUs, estimated.")
    parser.add_argument("recipe", help="a packaged recipe or a YAML file")
    config = read_recipe(parser.parse_args().recipe)
    table = count_parameters(config)
    memory = memory_gb(config, table)
    print("| stage | examples | TFLOP an example | GB before activations | 1 GPU | 8 GPUs | 64 GPUs |")
    print("|---|---|---|---|---|---|---|")
    for cost in costs(config, table):
        shown = []
        for n_gpus in (1, 8, 64):
            hours, share = cost.hours(n_gpus)
            time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
            shown.append(time if n_gpus == 1 else f"{time} ({100 * share:.0f} %)")
        print(
            f"| {cost.name} | {cost.n_examples:,.0f} | {cost.flop / 1e12:.4f} | {memory[cost.name]:.1f} | "
            f"{' | '.join(shown)} |"
        )


if __name__ == "__main__":
    main()
