"""The trials table of the general format: the image of each beta, and the parts of the images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bitllm.data.io.tables import read_table
from bitllm.data.store.complete import require_numbers, with_validation_images
from bitllm.data.store.contents import StoreSettings
from bitllm.errors import DataError
from bitllm.files import normalized_name

TRIAL_COLUMNS = ("trial_row", "subject", "session", "run", "stimulus_id")
_OPTIONAL = ("repeat", "split", "trial", "coco_id")
_PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_TEST_SHARE = 10
_BIDS_RUN = re.compile(r"run-?(?=\d)")
_PLAIN_SESSION = re.compile(r"(?:ses(?:sion)?-?)?0*(\d{1,5})(?:\.0)?")
"""A whole number, or BIDS's ``ses-01``."""
_LARGEST_SESSION = int(np.iinfo(np.int16).max)
_CONVENTION = 50
"""This many all-digit names of equal length are a convention; fewer may be chance."""


@dataclass(frozen=True)
class Trials:
    """Contents of a trials table.

    Parameters
    ----------
    table
        The trials with an image, in the order of the file: ``subject`` as in the header, ``session`` as a number, and
        ``session_name`` if sessions have other labels.
    n_betas
        Number of betas of each subject, including those of trials without an image.
    notes
        A line about each peculiarity of the table that is not an error.
    """

    table: pd.DataFrame
    n_betas: dict[str, int]
    notes: tuple[str, ...]

    def of(self, subject: str) -> pd.DataFrame:
        """The trials of one subject, sorted by session, within a session in the order of the betas."""
        own = self.table[self.table["subject"] == subject]
        return own.sort_values(["session", "trial_row"], ignore_index=True)


def read_trials(path: Path, *, subjects: tuple[str, ...]) -> Trials:
    """Read and check the trials table: every subject must have each row from 0 to n - 1 exactly once.

    Names are text. ``01`` and ``sub-01`` are the same subject, ``run-01`` is run 1. Sessions are labels (see
    `_numbered_sessions`). A trial without an image (blank, fixation) has a row of the betas, but is left out.
    """
    notes: list[str] = []
    table = read_table(
        path,
        needed=TRIAL_COLUMNS,
        optional=_OPTIONAL,
        numbers={"trial_row": "int64", "coco_id": "float64"},
        notes=notes,
        what="the trials",
        advice="write the row of the betas, from 0",
    )
    for column in ("subject", "session"):
        _require_filled(table, column, path)
    table["run"] = table["run"].str.replace(_BIDS_RUN, "", regex=True).mask(table["run"] == "", None)
    require_numbers(table, {"run": "int16"}, str(path), "the trials", advice="write the number, or run-01")
    table["run"] = pd.to_numeric(table["run"]).astype("int64")
    table["subject"] = _as_in_header(table["subject"], subjects, path)
    for name in subjects:
        _require_every_row(table["trial_row"][table["subject"] == name], name, path)
    table = table[table["subject"].isin(subjects)]
    n_betas = {name: int((table["subject"] == name).sum()) for name in subjects}
    table = _with_images(table, subjects, path, notes)
    table = _numbered_sessions(table, path, notes)
    return Trials(table, n_betas, tuple(notes))


def _as_in_header(written: pd.Series, subjects: Sequence[str], path: Path) -> pd.Series:
    """The table's subjects, with their names in the header."""
    keys: dict[str, str] = {}
    for name in subjects:
        if (other := keys.setdefault(_subject_key(name), name)) != name:
            raise DataError(
                f"{path}: expected subjects with different names, found `{other}` and `{name}`, which are one; "
                "name a subject once in the header"
            )
    found = written.map(lambda name: keys.get(_subject_key(name), name))
    for name in subjects:
        if not (found == name).any():
            raise DataError(
                f"{path}: expected trials of the subject `{name}`, found those of "
                f"{', '.join(sorted(set(written)))}; use the same names in header and table"
            )
    return found


def _subject_key(name: str) -> str:
    return normalized_name(name).removeprefix("sub-")


def _require_every_row(rows: pd.Series, name: str, path: Path) -> None:
    if rows.duplicated().any():
        raise DataError(
            f"{path}: expected every trial once, found the trial_row {rows[rows.duplicated()].iloc[0]} of `{name}` "
            "twice; remove the duplicate"
        )
    if sorted(rows) != list(range(len(rows))):
        raise DataError(
            f"{path}: expected trial_row 0 to {len(rows) - 1} for the {len(rows)} trials of `{name}`, found "
            f"{rows.min()} to {rows.max()}; trial_row counts from 0 in the order of the betas"
        )


def _with_images(table: pd.DataFrame, subjects: Sequence[str], path: Path, notes: list[str]) -> pd.DataFrame:
    is_blank = table["stimulus_id"] == ""
    if not is_blank.any():
        return table
    for name in subjects:
        if is_blank[table["subject"] == name].all():
            raise DataError(
                f"{path}: expected trials with an image of the subject `{name}`, found none with a stimulus_id; fill "
                "in that column"
            )
    notes.append(f"{path}: {is_blank.sum()} trials without an image (empty stimulus_id) are left out")
    return table[~is_blank]


def _numbered_sessions(table: pd.DataFrame, path: Path, notes: list[str]) -> pd.DataFrame:
    """Sessions as numbers, which the store needs.

    Plain numbers (including ``01`` and ``ses-01``) that ascend in every subject are not changed. All other labels,
    such as ``20230101`` or ``ses-pre``, are numbered from 1 in the order of the subject's trials (``trial_row``) and
    stored as ``session_name``.
    """
    labels: dict[str, list[str]] = {}
    in_order = table.sort_values("trial_row")  # a table may be shuffled, the betas are in the order of time
    for name, label in zip(in_order["subject"], in_order["session"], strict=True):
        if label not in (of_subject := labels.setdefault(name, [])):
            of_subject.append(label)
    numbers = {name: [_plain_session(label) for label in found] for name, found in labels.items()}
    for name, found in numbers.items():
        known = [number for number in found if number is not None]
        twice = next((number for number in known if known.count(number) > 1), None)
        if twice is not None:
            one, other = [labels[name][n] for n, number in enumerate(found) if number == twice][:2]
            raise DataError(
                f"{path}: expected one label for a session of `{name}`, found `{one}` and `{other}`; write one of them"
            )
    is_plain = all(None not in found and found == sorted(found) for found in numbers.values())  # type: ignore[type-var]
    if not is_plain:
        table = table.assign(session_name=table["session"])
        numbers = {name: [*range(1, len(found) + 1)] for name, found in labels.items()}
        notes.append(
            f"{path}: sessions are numbered in the order of the trials; the store has their labels as `session_name`"
        )
    of_label = {
        (name, label): number
        for name in labels
        for label, number in zip(labels[name], numbers[name], strict=True)
    }
    pairs = zip(table["subject"], table["session"], strict=True)
    session: list[Any] = [of_label[pair] for pair in pairs]
    return table.assign(session=session)


def _plain_session(label: str) -> int | None:
    found = _PLAIN_SESSION.fullmatch(label) if label.isascii() else None
    number = int(found[1]) if found else None
    return number if number is not None and number <= _LARGEST_SESSION else None


def stimuli_of(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The images of a trials table: numbers, which are shared, and the part according to `split`.

    If all names are plain whole numbers, these are the numbers of the images. Otherwise images are numbered in
    sorted order, and names are stored as ``stimulus_name``. ``coco_id`` comes from the table, or is -1. If `split`
    names no validation images, some training images become validation images.
    """
    names = sorted(set(table["stimulus_id"]))
    alike = _names_alike(names, path)
    is_number = all(_is_whole_number(name) for name in names)
    numbers = [int(name) for name in names] if is_number else list(range(len(names)))
    stimuli = pd.DataFrame({"stimulus_id": names, "nsd_id": numbers})
    if not is_number:
        stimuli["stimulus_name"] = names
    stimuli["coco_id"] = _coco_ids(table, names, path)
    stimuli, notes = _with_parts(stimuli, table, path)
    return stimuli, (*alike, *notes)


def _coco_ids(table: pd.DataFrame, names: Sequence[str], path: Path) -> list[int]:
    """COCO id of each image from the column of that name; -1 without the column."""
    if "coco_id" not in table:
        return [-1] * len(names)
    ids = table["coco_id"].groupby(table["stimulus_id"]).agg(["nunique", "first"]).loc[list(names)]
    wrong = ids.index[(ids["nunique"] != 1) | (ids["first"] < 0) | (ids["first"] % 1 != 0)]
    if len(wrong):
        raise DataError(
            f"{path}: expected one `coco_id` for each image, a whole number, found several or another value for the "
            f"image `{wrong[0]}` ({len(wrong)} such images); "
            "correct them, or remove the column"
        )
    return [int(coco_id) for coco_id in ids["first"]]


def _is_whole_number(name: str) -> bool:
    is_digits = name.isascii() and name.isdigit() and len(name) < len(str(2**63))
    return is_digits and str(int(name)) == name


def _names_alike(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """Refuse two spellings of the same name; add a note about names that may be the same.

    Names that differ only in spaces are refused. All-digit names that differ only in leading zeros, such as ``7``
    and ``0007``, are two images, and a note says so. They are refused if there are at least 50 other all-digit
    names, all as long as the longer one: then a program has probably read the shorter one as a number.
    """
    without_spaces: dict[str, str] = {}
    for name in names:
        if (other := without_spaces.setdefault("".join(name.split()), name)) != name:
            raise DataError(
                f"{path}: expected names that differ in more than spaces, found `{other}` and `{name}`; "
                "write one of them"
            )
    digits = [name for name in names if name.isascii() and name.isdigit()]
    without_zeros: dict[str, list[str]] = {}
    for name in digits:
        without_zeros.setdefault(name.lstrip("0"), []).append(name)
    pairs = [found for found in without_zeros.values() if len(found) > 1]
    if not pairs:
        return ()
    short, full = min(pairs[0], key=len), max(pairs[0], key=len)
    others = {name for name in digits if name not in {one for found in pairs for one in found}}
    if len(others) >= _CONVENTION and {len(name) for name in others} == {len(full)}:
        raise DataError(
            f"{path}: expected names of {len(full)} digits, as the other {len(others)} have, found `{short}` and "
            f"`{full}`, as if read as a number ({len(pairs)} such pairs); write `{full}` in both places"
        )
    return (f"{path}: `{short}` and `{full}` are two images ({len(pairs)} such pairs): names are text",)


def _with_parts(
    stimuli: pd.DataFrame, table: pd.DataFrame, path: Path
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    names = stimuli["stimulus_id"].tolist()
    if "split" in table:
        parts = table["split"].map(_PARTS)
        if parts.isna().any():
            raise DataError(
                f"{path}: expected `split` to be train, val or test, found `{table['split'][parts.isna()].iloc[0]}`; "
                "rename the parts, or remove the column"
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
    is_empty = table[column] == ""
    if is_empty.any():
        raise DataError(
            f"{path}: expected a name in the column `{column}` of the trials, found nothing in row "
            f"{int(np.flatnonzero(is_empty)[0]) + 1} ({is_empty.sum()} in all, the heading not counted); fill it in"
        )
