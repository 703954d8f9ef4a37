"""What questions a store has: numbers by task and part, and the license of each source."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bitllm.data.store import Store

_PARTS = ("train", "validation", "test")


def summary_of_tasks(store: Store) -> list[dict[str, Any]]:
    """For each task and source: answer types, license, and number of exchanges in each part.

    Raises
    ------
    DataError
        If the store has no tasks.
    """
    table = store.tasks.assign(part=store.stimuli["part"].reindex(store.tasks.index).to_numpy())
    return [
        {
            "task": task,
            "source": source,
            "license": ", ".join(sorted(rows["license"].unique())),
            "answer_types": sorted(rows["answer_type"].unique()),
            "n_exchanges": {part: int((rows["part"] == part).sum()) for part in _PARTS},
        }
        for (task, source), rows in table.groupby(["task", "source"], sort=True)
    ]


def licenses_of_tasks(store: Store, tasks: set[str] | frozenset[str]) -> dict[str, str]:
    """License of each source of some tasks."""
    return {one["source"]: one["license"] for one in summary_of_tasks(store) if one["task"] in tasks}


def render_tasks(summary: list[dict[str, Any]]) -> Table:
    """The summary as a table for the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for heading in ("task", "source", "answers"):
        table.add_column(heading, overflow="fold")
    for part in _PARTS:
        table.add_column(part, justify="right", no_wrap=True)
    table.add_column("license", overflow="fold")
    for one in summary:
        words = (one["task"], one["source"], ", ".join(one["answer_types"]))
        counts = (f"{n:,}" for n in one["n_exchanges"].values())
        table.add_row(*map(escape, words), *counts, escape(one["license"]))
    return table
