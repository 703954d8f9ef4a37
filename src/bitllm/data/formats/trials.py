"""The trials table of the general contract: which image each beta is a response to, and the parts of the images."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from bitllm.data.io.tables import read_table
from bitllm.data.store.complete import require_numbers, with_validation_images
from bitllm.data.store.contents import StoreSettings
from bitllm.errors import DataError

TRIAL_COLUMNS = ("trial_row", "subject", "session", "run", "stimulus_id")
_OPTIONAL = ("repeat", "split", "trial")
_PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_TEST_SHARE = 10
_LABEL = {"session": re.compile(r"^ses(?:sion)?-?(?=\d)"), "run": re.compile(r"^run-?(?=\d)")}
"""What BIDS writes before the number: ``ses-01``, ``run-01``."""
_TYPES = {"trial_row": "int64", "session": "int16", "run": "int16"}


def read_trials(path: Path, *, subjects: tuple[str, ...]) -> pd.DataFrame:
    """The trials table, checked: every subject's rows are 0 to n - 1, once each.

    ``ses-01`` and ``run-01`` count as their number.

    Raises
    ------
    DataError
        If a column lacks, a value is empty or no number, a subject has no trial, or a row is missing or there twice.
    """
    table = read_table(path, needed=TRIAL_COLUMNS, admitted=_OPTIONAL)
    for column in ("subject", "stimulus_id"):
        _require_filled(table, column, path)
        table[column] = table[column].astype(str)
    for column, label in _LABEL.items():
        if table[column].dtype.kind not in "iuf":
            table[column] = table[column].map(lambda value, label=label: label.sub("", str(value).strip()))
    require_numbers(
        table, _TYPES, str(path), "the trials", advice="write the number, or for example ses-01, run-01"
    )
    for column in _TYPES:
        table[column] = pd.to_numeric(table[column]).astype("int64")
    for name in subjects:
        rows = table["trial_row"][table["subject"] == name]
        if rows.empty:
            raise DataError(
                f"{path}: expected trials of the subject `{name}`, found those of "
                f"{', '.join(sorted(set(table['subject'])))}; name the subjects alike in header and table"
            )
        if rows.duplicated().any():
            raise DataError(
                f"{path}: expected every trial once, found the trial_row {rows[rows.duplicated()].iloc[0]} of `{name}` "
                "twice; take the duplicate out"
            )
        if sorted(rows) != list(range(len(rows))):
            raise DataError(
                f"{path}: expected trial_row 0 to {len(rows) - 1} for the {len(rows)} trials of `{name}`, found "
                f"{rows.min()} to {rows.max()}; trial_row counts from 0 in the order of the betas"
            )
    return table[table["subject"].isin(subjects)]


def stimuli_of(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The images of a trials table: their numbers, which are shared, and the part where `split` tells.

    Whole numbers are kept; other names are numbered in sorted order, and stay as ``stimulus_name``. Where `split`
    names no image for validation, some of the training images are.

    Raises
    ------
    DataError
        If an image is in two parts, or a part is unknown.
    """
    names = sorted(set(table["stimulus_id"]))
    is_number = all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names)
    numbers = [int(name) for name in names] if is_number else list(range(len(names)))
    stimuli = pd.DataFrame({"stimulus_id": names, "nsd_id": numbers})
    if not is_number:
        stimuli["stimulus_name"] = names
    if "split" in table:
        parts = table["split"].map(_PARTS)
        if parts.isna().any():
            raise DataError(
                f"{path}: expected `split` to be train, val or test, found `{table['split'][parts.isna()].iloc[0]}`; "
                "name the parts so, or take the column out"
            )
        of_image = parts.groupby(table["stimulus_id"]).agg(["nunique", "first"])
        if (of_image["nunique"] > 1).any():
            raise DataError(
                f"{path}: expected an image in one part only, found "
                f"`{of_image.index[of_image['nunique'] > 1][0]}` in several; split by image, not by trial"
            )
        stimuli["part"] = of_image["first"].loc[names].to_numpy()
        stimuli["shared"] = stimuli["part"] == "test"
        defaults = StoreSettings(source="table")
        return with_validation_images(
            stimuli, validation_fraction=defaults.validation_fraction, seed=defaults.seed
        )
    n_subjects = table.groupby("stimulus_id")["subject"].nunique()
    stimuli["shared"] = (n_subjects.loc[names] > 1).to_numpy()
    if stimuli["shared"].any() and not stimuli["shared"].all():
        return stimuli, ("no column `split`: images that several subjects saw are the test part",)
    stimuli["shared"] = np.arange(len(names)) % _TEST_SHARE == 0
    return stimuli, (f"no column `split`: every {_TEST_SHARE}th image in sorted order is the test part",)


def _require_filled(table: pd.DataFrame, column: str, path: Path) -> None:
    is_empty = table[column].isna() | (table[column].astype(str).str.strip() == "")
    if is_empty.any():
        raise DataError(
            f"{path}: expected a name in the column `{column}` of the trials, found nothing in row "
            f"{int(np.flatnonzero(is_empty)[0]) + 1} ({is_empty.sum()} in all, the heading not counted); fill it in "
            "(the names NA, nan, null and None count as empty), or leave those trials out"
        )
