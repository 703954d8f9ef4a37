"""Commands about a model's size and cost: params, preflight."""

from pathlib import Path

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json


def params(config: tyro.conf.Positional[Path], /, json: bool = False) -> None:
    """Count the parameters of every part and stage, from a configuration alone.

    Args:
        config: A system's YAML, e.g. configs/paper/cross_attention.yaml.
        json: Print JSON instead of a table.
    """
    from bitllm.preflight.config import read_system_config
    from bitllm.preflight.parameters import count_parameters, render_parameters

    table = count_parameters(read_system_config(config))
    print_json(table.to_json()) if json else OUT.print(render_parameters(table))


def preflight(
    config: tyro.conf.Positional[Path],
    /,
    align_batch: int = 16,
    sft_batch: int = 2,
    rft_batch: int = 1,
    limit_gb: float | None = None,
    json: bool = False,
) -> None:
    """Try one step of every stage at full size with random weights: time, memory, what would not fit.

    Args:
        config: A system's YAML, e.g. configs/paper/cross_attention.yaml.
        align_batch: Trials in the step of align.
        sft_batch: Captions in the step of sft and in the decode.
        rft_batch: Brain inputs in the step of rft.
        limit_gb: Memory that may be used, in GB; what is free by default.
        json: Print JSON instead of tables.
    """
    from bitllm.preflight.config import read_system_config
    from bitllm.preflight.report import render_preflight, run_preflight

    found = run_preflight(
        read_system_config(config),
        align_batch=align_batch,
        sft_batch=sft_batch,
        rft_batch=rft_batch,
        limit_gb=limit_gb,
        console=Console(stderr=True) if json else OUT,
    )
    print_json(found.to_json()) if json else OUT.print(render_preflight(found))
