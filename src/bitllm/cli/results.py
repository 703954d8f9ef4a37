"""Commands for finished runs: report, ask, explore, export."""

from pathlib import Path
from typing import Literal

import tyro

from bitllm.cli.terminal import OUT, print_json


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    out: Path = Path("report.html"),
    store: Path | None = None,
    pictures: bool | None = None,
    json: bool = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side.

    Args:
        runs: Folders of demos, or of other runs after `bitllm evaluate`.
        out: Path of the page.
        store: The evaluated store, if it is not in the run folder; for images and brain maps.
        pictures: Show the images that the subject saw; by default only simulated ones.
        json: Print the numbers as JSON.
    """
    from bitllm.errors import ConfigError
    from bitllm.evaluation.results import to_json
    from bitllm.files import require_place

    if not runs:
        raise ConfigError("report: expected the folder of a run, found none; name one or more")
    require_place(out)
    from bitllm.report import read_run, write_comparison, write_report

    read = [read_run(run, pictures=pictures, store=store) for run in runs]
    if len(read) == 1:
        write_report(read[0], out)
    else:
        write_comparison(read, out)
    if json:
        print_json([to_json(one.results) for one in read] if len(read) > 1 else to_json(read[0].results))
    else:
        OUT.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", markup=False, soft_wrap=True)


def ask(
    run: tyro.conf.Positional[Path],
    questions: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    image: int,
    subject: str | None = None,
    repetition: int | None = None,
    system: str | None = None,
    store: Path | None = None,
    json: bool = False,
) -> None:
    """Ask a system about the image that a subject saw; each answer is shown with its controls.

    Args:
        run: A run folder, or a checkpoint of sft or rft (then name the store).
        questions: One or more questions; each one follows the answers to the earlier ones.
        image: The image (nsd_id).
        subject: The subject; by default the test subject.
        repetition: A single trial, counted from 1; by default the mean over all trials of the image.
        system: Name of the system (default: one that was trained on questions, else rft, else sft).
        store: The store that the run was trained on; by default that of the run.
        json: Print JSON instead of a table.
    """
    from bitllm.explore.answers import ask as answer
    from bitllm.explore.answers import render_answers

    found = answer(
        run, questions, nsd_id=image, subject=subject, repetition=repetition, system=system, store=store
    )
    print_json(found.to_json()) if json else OUT.print(render_answers(found))


def explore(
    run: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path],
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8421,
    names: tuple[str, ...] = (),
    llm: str | None = None,
    split: Path | None = None,
    precision: Literal["fp32", "bf16", "auto"] | None = None,
) -> None:
    """Open a local page: choose a trial, see it decoded word by word, silence a region, decode again.

    Args:
        run: A checkpoint of sft or rft, or the folder of a demo with all systems.
        store: The store that the run was trained on.
        host: Address to listen on; any other than 127.0.0.1 exposes the data to the network.
        port: Port; 0 for any free one.
        names: Further host names of this server.
        llm: Base LLM, a folder or hub id, if it is not in the folder of the run.
        split: Split of the run, if it is not in its folder.
        precision: Precision of the frozen LLM (that of the training).
    """
    from bitllm.explore.server import listen, serve
    from bitllm.explore.work import open_session

    with listen(host, port) as listening:
        session = open_session(run, store, llm=llm, split=split, precision=precision)
        serve(
            session,
            listening,
            host=host,
            names=names,
            tell=lambda line: OUT.print(line, markup=False, soft_wrap=True),
        )


def export(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    *,
    system: str | None = None,
    llm: str | None = None,
    whole: bool = False,
    license: str | None = None,
    push_to_hub: str | None = None,
    json: bool = False,
) -> None:
    """Write a model of a run as a Hugging Face folder with a model card: data, split, scores and controls.

    Args:
        run: A checkpoint of sft or rft, or the folder of a demo.
        out: New folder for the model.
        system: Name of the system (default: rft, else sft).
        llm: Base LLM, a folder or hub id, if it is not in the folder of the run.
        whole: Write the base LLM's weights too; a model of rft always contains them.
        license: The hub's name of the base LLM's license, e.g. llama3.2; known for some LLMs.
        push_to_hub: Upload to a private repository of this id. Without it nothing leaves the machine.
        json: Print what was written as JSON.
    """
    from bitllm.export import export_run
    from bitllm.export import push_to_hub as push

    made = export_run(run, out, system=system, llm=llm, whole=whole, license_name=license)
    address = push(out, push_to_hub, license_name=made.license) if push_to_hub is not None else None
    if json:
        print_json({**made._asdict(), "out": str(out), "address": address})
        return
    weights = "with its base LLM" if made.is_whole else "without its base LLM"
    OUT.print(
        f"{out}: {made.system}, {weights}; model card: {out / 'README.md'}", markup=False, soft_wrap=True
    )
    if not made.was_evaluated:
        OUT.print("It was not evaluated: run bitllm evaluate, then export again.")
    if address is not None:
        OUT.print(address, markup=False, soft_wrap=True)
