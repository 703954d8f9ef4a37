"""Copy a run's results into the folders of their questions, compressed: ``make publish RUN=reproduce/small``.

All rows are copied, including those of incomplete waves. Measures are stored as float32, counts as short integers.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from bitllm.errors import BitLlmError, DataError
from bitllm.experiments.config import experiment_names, read_experiment
from bitllm.experiments.question import complete_waves, n_complete_waves
from bitllm.experiments.record import RECORD, ROWS, read_run, require_same
from bitllm.files import file_written_whole, read_json, write_json

_EXACT = ("learning_rate",)  # a setting, not a measure


def publish(run: Path, folder: Path, names: tuple[str, ...] = ()) -> dict[str, int]:
    """Copy results of a run into the folder of experiments; by default those of all questions that are ready.

    Returns
    -------
    dict
        Bytes of every question's Parquet file.
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
    """Rows and record of a question; refused if they are incomplete or do not match the configuration."""
    rows, record = read_run(run / name)
    complete_waves(rows, record, run / name)  # refuses results without any
    require_same(read_experiment(name, folder), record, folder / name)
    published = read_json(folder / name / RECORD)["worlds"] if (folder / name / RECORD).exists() else []
    if lost := [world for world in published if world not in record["worlds"]]:
        raise DataError(
            f"{run / name}: expected all worlds that are published, found none of {', '.join(lost)}; let the run "
            f"finish, or remove {folder / name / RECORD} to start over"
        )
    return rows, record


def is_ready(folder: Path) -> bool:
    """Whether the folder of a run has a complete wave of a question."""
    if not (folder / ROWS).exists():
        return False
    rows, record = read_run(folder)
    return n_complete_waves(rows, record) > 0


def write_small(rows: pd.DataFrame, path: Path) -> None:
    """Write rows as a small Parquet file, completely or not at all."""
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


def main(
    run: tyro.conf.Positional[Path],
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    experiments: Path = Path("experiments"),
) -> None:
    """Copy a run's results into the folders of their questions.

    Args:
        run: Folder of the run, with NAME/results.parquet.
        names: Questions; all that are ready by default.
        experiments: Folder of all experiments.
    """
    for name, size in publish(run, experiments, names).items():
        print(f"{experiments / name / ROWS}: {size / 1e6:.2f} MB")
    print("next: make results")


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="publish")
    except BitLlmError as error:
        sys.exit(str(error))
