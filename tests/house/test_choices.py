"""The page of choices says what the code does: its numbers are those of the classes and the packaged demos."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bitllm.pipeline.recipe import Recipe, read_recipe
from bitllm.training.loop import OptimizerConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "choices.md"


def _schedule(config: OptimizerConfig) -> list[float]:
    return [config.learning_rate, config.steps, config.batch_size]


ROWS: dict[str, Callable[[Recipe], Sequence[float]]] = {
    "adapters after layers (0-based)": lambda c: c.sft.adapter_layers,
    "initial gate": lambda c: [c.sft.gate_start],
    "brain tokens": lambda c: [c.encoder.n_brain_tokens, c.encoder.token_width],
    "encoder": lambda c: [c.encoder.n_queries, c.encoder.rank, c.encoder.n_blocks],
    "voxel coordinates": lambda c: [c.encoder.length_mm, c.encoder.n_frequencies],
    "initial τ": lambda c: [c.encoder.sharpness],
    "dropout": lambda c: [c.encoder.dropout],
    "align: learning rate, steps, batch": lambda c: _schedule(c.align.optimizer),
    "align: weight decay": lambda c: [c.align.optimizer.weight_decay],
    "sft: learning rate, steps, batch": lambda c: _schedule(c.sft.optimizer),
    "rft: G": lambda c: [c.rft.n_captions],
    "rft: α, β, γ": lambda c: [c.rft.rewards.cider, c.rft.rewards.bertscore, c.rft.rewards.ip],
    "rft: KL weight": lambda c: [c.rft.kl_weight],
    "rft: clip ε": lambda c: [c.rft.clip],
    "rft: learning rate, steps, batch": lambda c: _schedule(c.rft.optimizer),
    "rft: LoRA": lambda c: [c.rft.lora_rank, 2 * c.rft.lora_rank],
}


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """Cells of each row (default, demo, SmolLM2), with "same" and "as demo" filled in."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and len(cells) >= 5:
            default, demo, smollm2 = cells[2:5]
            demo = default if demo == "same" else demo
            rows[cells[0]] = [default, demo, {"same": default, "as demo": demo}.get(smollm2, smollm2)]
    return rows


@pytest.mark.parametrize("row", ROWS)
def test_the_page_of_choices_has_the_numbers_of_the_code(row: str, table: dict[str, list[str]]) -> None:
    for config, cell in zip(
        (Recipe(), read_recipe("demo"), read_recipe("demo-smollm2")), table[row], strict=True
    ):
        actual = [float(value) for value in ROWS[row](config)]
        written = _numbers(cell)[: len(actual)]
        assert written, f"{row}: no number in `{cell}`"
        assert written == actual[: len(written)], f"{row}: the page says {cell}, the code {actual}"


def _numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", cell)]
