"""The command that hands a model on: export."""

from pathlib import Path

import tyro

from bitllm.cli.terminal import OUT, print_json


def export(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    *,
    system: str | None = None,
    llm: str | None = None,
    whole: bool = False,
    licence: str | None = None,
    push_to_hub: str | None = None,
    json: bool = False,
) -> None:
    """Write a run's model as a Hugging Face folder with a model card: data, split, metrics and controls.

    Args:
        run: A checkpoint of sft or rft, or the folder of a demo.
        out: New folder for the model.
        system: Which system of a demo's folder (rft, else sft).
        llm: Base LLM, a folder or hub id, where it does not lie beside the run.
        whole: Write the base LLM's weights, too; after rft they always are.
        licence: Of the base LLM, as the hub calls it, e.g. llama3.2; known for some.
        push_to_hub: Upload to a private repository of this id. Without it nothing leaves the machine.
        json: Print what was written as JSON.
    """
    from bitllm.export.export import export_run
    from bitllm.export.export import push_to_hub as push

    made = export_run(run, out, system=system, llm=llm, whole=whole, licence=licence)
    address = push(out, push_to_hub, licence=made.licence) if push_to_hub is not None else None
    if json:
        print_json({**made._asdict(), "out": str(out), "address": address})
        return
    weights = "with its base LLM" if made.is_whole else "without its base LLM"
    OUT.print(
        f"{out}: {made.system}, {weights}; read its card: {out / 'README.md'}", markup=False, soft_wrap=True
    )
    if not made.was_judged:
        OUT.print("It was never judged: run bitllm ground, then export again.")
    if address is not None:
        OUT.print(address, markup=False, soft_wrap=True)
