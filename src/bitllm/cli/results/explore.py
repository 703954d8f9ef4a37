"""The command that opens the local page: explore."""

from pathlib import Path
from typing import Literal

import tyro

from bitllm.cli.terminal import OUT


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
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
) -> None:
    """Open a local page: choose a trial, see it decoded word by word, silence a region, decode again.

    Args:
        run: A checkpoint of sft or rft, or the folder of a demo with all its systems.
        store: The store that the run was trained on.
        host: Where to listen; any other than 127.0.0.1 shows the data to the network.
        port: On which port; 0 takes a free one.
        names: Further names by which the page may be called, where host is not one.
        llm: Base LLM, a folder or hub id, where it does not lie beside the run.
        split: Split of the run, where it does not lie beside it.
        precision: Of the frozen LLM.
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
