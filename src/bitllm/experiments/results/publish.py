"""Put a run's results beside their questions, small: ``make publish RUN=reproduce/small``.

Everything is kept: every row and caption, also of waves that are not whole yet. Measures become single precision and
counts short integers, and zstd packs them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bitllm.errors import BitLlmError, DataError
from bitllm.experiments.config import experiment_names, read_experiment
from bitllm.experiments.record import RECORD, ROWS, read_run, require_same
from bitllm.experiments.results.read import n_whole_waves, whole_waves
from bitllm.files import file_written_whole, read_json, write_json

_EXACT = ("learning_rate",)  # a setting, not a measure


def publish(run: Path, folder: Path, names: tuple[str, ...] = ()) -> dict[str, int]:
    """Copy results of a run into the folder of experiments; without names those of all questions that have any.

    Returns
    -------
    dict
        Bytes of every question's Parquet file.

    Raises
    ------
    DataError
        If there is nothing to publish, or results are quick, have no whole wave, are of another configuration or lack
        worlds that are published; then nothing is.
    """
    chosen = names or tuple(name for name in experiment_names(folder) if is_ready(run / name))
    if not chosen:
        raise DataError(
            f"{run}: expected a question with all brains of a model seed, found none; let the run finish"
        )
    sizes = {}
    for name, (rows, record) in {name: _fit_to_publish(name, run, folder) for name in chosen}.items():
        write_small(rows, folder / name / ROWS)
        write_json(folder / name / RECORD, record)
        sizes[name] = (folder / name / ROWS).stat().st_size
    return sizes


def _fit_to_publish(name: str, run: Path, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and record of a question; refused before anything of any question is written."""
    rows, record = read_run(run / name)
    whole_waves(rows, record, run / name)  # refuses what has none
    require_same(read_experiment(name, folder), record, folder / name)
    published = read_json(folder / name / RECORD)["worlds"] if (folder / name / RECORD).exists() else []
    if lost := [world for world in published if world not in record["worlds"]]:
        raise DataError(
            f"{run / name}: expected all worlds that are published, found none of {', '.join(lost)}; let the run "
            f"finish, or remove {folder / name / RECORD} to start over"
        )
    return rows, record


def is_ready(folder: Path) -> bool:
    """Whether a question has a whole wave in a run's folder; a quick run counts, and is then refused by name."""
    if not (folder / ROWS).exists():
        return False
    rows, record = read_run(folder)
    return n_whole_waves(rows, record) > 0


def write_small(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as a small Parquet file, whole or not at all."""
    floats = [name for name in rows.select_dtypes("float64") if name not in _EXACT]
    small = rows.astype(dict.fromkeys(floats, "float32")).reset_index(drop=True)
    table = pa.Table.from_pandas(small, preserve_index=False)
    for place, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            short = table.column(place).cast(pa.list_(pa.int16()))
            table = table.set_column(place, field.name, short)
    with file_written_whole(path) as unfinished:
        pq.write_table(
            table,
            unfinished,
            compression="zstd",
            compression_level=19,
            use_dictionary=[name for name in table.column_names if name not in floats],
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        )


def main(arguments: list[str] | None = None) -> int:
    """Publish from the project's folder; one line for each question with the size of its file."""
    parser = argparse.ArgumentParser(
        prog="publish", description="Put a run's results beside their questions."
    )
    parser.add_argument("run", type=Path, help="folder of the run, with NAME/results.parquet")
    parser.add_argument("names", nargs="*", help="questions; all that are ready by default")
    parser.add_argument(
        "--experiments", type=Path, default=Path("experiments"), help="folder of all experiments"
    )
    chosen = parser.parse_args(arguments)
    try:
        sizes = publish(chosen.run, chosen.experiments, tuple(chosen.names))
    except BitLlmError as error:
        print(error, file=sys.stderr)
        return 1
    for name, size in sizes.items():
        print(f"{chosen.experiments / name / ROWS}: {size / 1e6:.2f} MB")
    print("next: make results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
