"""Predicted cost of the three stages on one and on eight GPUs; nothing here is a measurement.

    python benchmarks/scaling.py poster

A step takes as long as the slower of the GPU (matrix products, memory traffic) and the host (kernel launches), plus
what does not overlap: synchronization, collating, rewards, checkpoints. `tests/stages/test_waiting.py` counts kernels
and synchronizations, which are scaled to the number of layers. The rates of the GPUs below are assumptions. No GPU was
available; `benchmarks/gpu.py` measures the parts.
"""

import argparse
from dataclasses import dataclass

from bitllm.pipeline.recipe import Recipe, read_recipe
from bitllm.preflight.cost import ParameterTable, count_parameters


@dataclass(frozen=True)
class Card:
    """Rates that a card is taken to reach: products in FLOP/s, memory in bytes/s."""

    name: str
    bf16: float
    tf32: float
    memory: float


CARDS = (Card("H100", 400e12, 250e12, 3.0e12), Card("A100", 150e12, 90e12, 1.5e12))
LAUNCH_S = 8e-6  # of the host, for one kernel
WAIT_S = 20e-6  # the host waits for the device
UPLOAD = 5e9  # bytes/s to the device, pageable
ALL_REDUCE = 200e9  # bytes/s between the GPUs of a node
CHECKPOINT = 250e6  # bytes/s, with fsync and checksum
SAVE_S = 600.0  # between two checkpoints
PROMPT, CAPTION, LONGEST = 45, 12, 24  # tokens
REWARD_FLOP_PER_CAPTION = (
    34e9  # DeBERTa-xlarge on a caption and its share of new references, CLIP's text model
)
PRODUCTS = 0.8  # share of the time in products; the rest are norms, rotary embeddings, activations
PER_LAYER = {"sft": 105, "lora": 86}  # kernels of a decoder layer, bf16


@dataclass(frozen=True)
class Step:
    """One step of a stage on one GPU, in seconds; ``serial`` is not shared among GPUs."""

    name: str
    n_steps: int
    gpu: float
    host: float
    serial: float
    trained: int
    """Trained parameters, exchanged between GPUs and saved."""

    def minutes(self, n_gpus: int) -> float:
        """Of the whole stage with the same batch shared among GPUs, checkpoints included."""
        exchange = 0.0 if n_gpus == 1 else 8 * self.trained * (n_gpus - 1) / n_gpus / ALL_REDUCE
        step = max(self.gpu / n_gpus + exchange, self.host) + self.serial
        save = 12 * self.trained / CHECKPOINT
        return self.n_steps * step * (1 + save / SAVE_S) / 60


def steps(config: Recipe, table: ParameterTable, card: Card) -> list[Step]:
    """A step of each stage."""
    return [_align(config, table, card), _sft(config, table, card), _rft(config, table, card)]


def _align(config: Recipe, table: ParameterTable, card: Card) -> Step:
    encoder, optimizer = config.encoder, config.align.optimizer
    subjects, voxels = len(config.data.voxels) - 1, max(config.data.voxels.values())
    batch, trained = optimizer.batch_size, table.trainable["align"]
    pooling = encoder.n_queries * voxels * (6 * subjects * encoder.rank + 4 * batch)
    maps = 11 * 4 * subjects * encoder.n_queries * voxels  # read or written 11 times, forward and backward
    gpu = (pooling + 6 * batch * trained) / card.tf32 + (maps + 28 * trained) / card.memory
    return Step("align", optimizer.steps, gpu, 260 * LAUNCH_S, WAIT_S + 0.5e-3, trained)


def _sft(config: Recipe, table: ParameterTable, card: Card) -> Step:
    optimizer, trained = config.sft.optimizer, table.trainable["sft"]
    tokens = optimizer.batch_size * (PROMPT + CAPTION)
    # frozen weights need no gradient of their own: 4 instead of 6 products for a parameter and token
    flop = (4 * _backbone(config, table) + 6 * trained) * tokens
    gpu = flop / card.bf16 / PRODUCTS + 28 * trained / card.memory
    host = (PER_LAYER["sft"] * config.llm.published_sizes().num_hidden_layers + 300) * LAUNCH_S
    return Step("sft", optimizer.steps, gpu, host, 2 * WAIT_S + 0.5e-3, trained)


def _rft(config: Recipe, table: ParameterTable, card: Card) -> Step:
    optimizer, llm = config.rft.optimizer, _backbone(config, table) + table.trainable["sft"]
    rows = optimizer.batch_size * config.rft.n_captions
    tokens, n_layers = rows * (PROMPT + CAPTION), config.llm.published_sizes().num_hidden_layers
    passes = (
        2 + 2 + 4 + (2 if config.rft.gradient_checkpointing else 0)
    )  # reference, policy, backward, recompute
    prefill = 2 * llm * rows * PROMPT / card.bf16
    decode = LONGEST * max(2 * llm / card.memory, (PER_LAYER["lora"] * n_layers + 50) * LAUNCH_S + WAIT_S)
    rewards = rows * REWARD_FLOP_PER_CAPTION / (card.bf16 / 4)
    gpu = prefill + passes * llm * tokens / card.bf16 / PRODUCTS + rewards
    host = 3 * (PER_LAYER["sft"] + PER_LAYER["lora"]) * n_layers * LAUNCH_S
    return Step("rft", optimizer.steps, gpu, host, decode, table.trainable["rft"])


def _backbone(config: Recipe, table: ParameterTable) -> int:
    """Parameters of the LLM without the embedding, which as a head runs on few positions."""
    sizes = config.llm.published_sizes()
    return table.parts["llm"] - sizes.vocab_size * sizes.hidden_size


def memory_gb(table: ParameterTable) -> dict[str, float]:
    """What a GPU holds without activations, in GB: frozen LLM in bfloat16, trained parameters, gradients, AdamW."""
    frozen, trained = 2 * table.parts["llm"] + 4 * table.parts["encoder"], table.trainable
    return {
        "align": 16 * trained["align"] / 1e9,
        "sft": (frozen + 16 * trained["sft"]) / 1e9,
        "rft": (frozen + 4 * trained["sft"] + 16 * trained["rft"]) / 1e9,
    }


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description="Time and memory on GPUs, predicted.")
    parser.add_argument("recipe", help="a packaged recipe or a YAML file")
    config = read_recipe(parser.parse_args().recipe)
    table = count_parameters(config)
    memory = memory_gb(table)
    print(
        "| stage | steps | card | GPU, ms | host, ms | rest, ms | 1 GPU | 8 GPUs | GB without activations |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for card in CARDS:
        for one in steps(config, table, card):
            times = " | ".join(f"{1e3 * part:.1f}" for part in (one.gpu, one.host, one.serial))
            print(
                f"| {one.name} | {one.n_steps:,} | {card.name} | {times} | {one.minutes(1):.0f} min | "
                f"{one.minutes(8):.0f} min | {memory[one.name]:.1f} |"
            )


if __name__ == "__main__":
    main()
