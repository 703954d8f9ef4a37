"""``bitllm preflight``: run what fits, say what does not, and estimate the memory of a GPU."""

from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from bitllm.config import require_number
from bitllm.pipeline.recipe import Recipe
from bitllm.preflight.memory import GPUS_GB, StageMemory, available_gb, estimate_memory
from bitllm.preflight.parameters import ParameterTable, count_parameters
from bitllm.preflight.steps import CAPTION_TOKENS, PROMPT_TOKENS, Measured, align_step, llm_steps

STAGES = ("align", "sft", "decode", "rft")
_LARGEST_BATCH = 2**20
_USABLE = 0.9
"""Share of a GPU that weights and activations may take; the rest is for the libraries and fragmentation."""


class Preflight(NamedTuple):
    """What was measured here and what a GPU would need."""

    parameters: ParameterTable
    measured: dict[str, Measured]
    not_run: dict[str, str]
    """Stages that were not run, with the reason."""
    planned: dict[str, StageMemory]
    """Memory of each stage by arithmetic, at the configuration's own batch."""
    planned_batch: dict[str, int]
    largest_batch: dict[str, dict[str, int]]
    """For each stage and size of GPU (GB), the largest batch that fits; 0 where not even one does."""

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            **self.parameters.to_json(),
            "measured": {name: one._asdict() for name, one in self.measured.items()},
            "not_run": self.not_run,
            "gpu_estimate_gb": {stage: round(memory.gb, 2) for stage, memory in self.planned.items()},
            "planned_batch": self.planned_batch,
            "largest_batch": self.largest_batch,
        }


def run_preflight(
    config: Recipe,
    *,
    sft_batch: int = 2,
    rft_batch: int = 1,
    align_batch: int = 16,
    limit_gb: float | None = None,
    console: Console,
) -> Preflight:
    """Run one step of each stage at full size where it fits, printing each as it ends.

    Parameters
    ----------
    sft_batch, rft_batch, align_batch
        Examples in the steps that are run here (rft: brain inputs, each with its G captions).
    limit_gb
        Memory that may be used; what the machine has free by default.
    """
    here = {"align": align_batch, "sft": sft_batch, "rft": rft_batch}
    for stage, batch in here.items():
        require_number(f"--{stage}-batch", batch, least=1, most=_LARGEST_BATCH)
    if limit_gb is not None:
        require_number("--limit-gb", limit_gb, least=0)
    table = count_parameters(config)
    planned_batch = {stage: getattr(config, stage).optimizer.batch_size for stage in ("align", "sft", "rft")}
    n_tokens = PROMPT_TOKENS + CAPTION_TOKENS + _prefix_tokens(config)
    needed = estimate_memory(config, table, n_tokens=n_tokens, batch=here)
    limit = available_gb() if limit_gb is None else limit_gb
    not_run = {
        stage: f"would not fit: needs about {memory.gb:.1f} GB, {limit:.1f} GB are free; run it on a larger machine"
        for stage, memory in needed.items()
        if memory.gb > limit
    }
    if "sft" in not_run:
        not_run["decode"] = not_run["sft"]
    measured: dict[str, Measured] = {}

    def tell(name: str, one: Measured) -> None:
        measured[name] = one
        console.print(f"{name:<7} {one.seconds:8.1f} s   peak {one.peak_gb:5.1f} GB   batch {one.batch}")

    if "align" not in not_run:
        tell("align", align_step(config, batch=align_batch))
    stages = tuple(stage for stage in STAGES if stage not in not_run and stage != "align")
    if stages:
        llm_steps(config, sft_batch=sft_batch, rft_batch=rft_batch, stages=stages, tell=tell)
    planned = estimate_memory(config, table, n_tokens=n_tokens, batch=planned_batch)
    largest = {
        stage: {str(gpu): _largest_batch(memory, planned_batch[stage], gpu) for gpu in GPUS_GB}
        for stage, memory in planned.items()
    }
    return Preflight(table, measured, not_run, planned, planned_batch, largest)


def _prefix_tokens(config: Recipe) -> int:
    return 0 if config.sft.interface == "cross_attention" else config.encoder.n_brain_tokens


def _largest_batch(memory: StageMemory, batch: int, gpu_gb: int) -> int:
    free = _USABLE * gpu_gb * 1e9 - memory.weights - memory.learning
    return max(0, int(free / (memory.activations / batch)))


def render_preflight(found: Preflight) -> Group:
    """The tables as something rich can print, 80 columns wide."""
    here = Table(title="Measured here, random weights", box=None, title_justify="left")
    here.add_column("step")
    for column in ("trainable", "batch", "s / step", "peak GB"):
        here.add_column(column, justify="right")
    for name, one in found.measured.items():
        here.add_row(name, f"{one.n_trainable:,}", str(one.batch), f"{one.seconds:.1f}", f"{one.peak_gb:.1f}")
    gpu = Table(title="Memory of one GPU, estimated by arithmetic", box=None, title_justify="left")
    gpu.add_column("stage")
    for column in ("weights", "learning", "activations", "GB in all", "batch"):
        gpu.add_column(column, justify="right")
    gpu.add_column(f"largest batch on {' / '.join(map(str, GPUS_GB))} GB", justify="right")
    for stage, memory in found.planned.items():
        parts = [f"{part / 1e9:.1f}" for part in memory]
        batch = found.planned_batch[stage]
        largest = " / ".join(str(n) if n else "—" for n in found.largest_batch[stage].values())
        gpu.add_row(stage, *parts, f"{memory.gb:.1f}", str(batch), largest)
    said = [Text(f"{stage}: {reason}", style="yellow") for stage, reason in found.not_run.items()]
    return Group(here, Text(), gpu, *said, Text(_sentence(found)))


def _sentence(found: Preflight) -> str:
    too_large = [
        f"{stage} (batch {found.planned_batch[stage]}) on {gpu} GB"
        for stage, of_gpu in found.largest_batch.items()
        for gpu, largest in of_gpu.items()
        if largest < found.planned_batch[stage]
    ]
    if not too_large:
        return "Every stage fits on every one of these GPUs at the configuration's batch."
    return (
        f"Would not fit at the configuration's batch: {'; '.join(too_large)}. Take a smaller batch and accumulate "
        "gradients (— : not even one example)."
    )
