"""Commands about a system's size and cost: params, preflight."""

from typing import TYPE_CHECKING

from rich.console import Console

from bitllm.cli.terminal import OUT, print_json

if TYPE_CHECKING:
    from bitllm.pipeline.recipe import Recipe


def params(json: bool = False, *, recipe: "Recipe") -> None:
    """Count the parameters of every part and stage, from a recipe alone.

    Args:
        json: Print JSON instead of a table.
        recipe: Values of the recipe.
    """
    from bitllm.preflight.cost import count_parameters, render_parameters

    table = count_parameters(recipe)
    print_json(table.to_json()) if json else OUT.print(render_parameters(table))


def preflight(
    align_batch: int = 16,
    sft_batch: int = 2,
    rft_batch: int = 1,
    limit_gb: float | None = None,
    json: bool = False,
    *,
    recipe: "Recipe",
) -> None:
    """Run one step of every stage at full size with random weights: time, memory, and what would not fit.

    Args:
        align_batch: Trials in the step of align.
        sft_batch: Captions in the step of sft and in the decode.
        rft_batch: Brain inputs in the step of rft.
        limit_gb: Largest memory to use, in GB; by default what is free.
        json: Print JSON instead of tables.
        recipe: Values of the recipe.
    """
    from bitllm.preflight.steps import render_preflight, run_preflight

    found = run_preflight(
        recipe,
        align_batch=align_batch,
        sft_batch=sft_batch,
        rft_batch=rft_batch,
        limit_gb=limit_gb,
        console=Console(stderr=True) if json else OUT,
    )
    print_json(found.to_json()) if json else OUT.print(render_preflight(found))
