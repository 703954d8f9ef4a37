"""The general contract against the arrays that were put into it."""

import numpy as np
import pandas as pd
import pytest

from bitllm.data.formats.contract import read_contract
from bitllm.errors import DataError


def test_betas_order_captions_and_pictures_are_the_sources(table, prepared, require_equal):
    store = prepared(read_contract(table.root / "header.yaml"))
    expected = np.empty_like(table.betas)
    for rows in (slice(0, 12), slice(12, 24)):
        training = table.betas[rows][table.nsd_id[rows] < 8]
        expected[rows] = (table.betas[rows] - training.mean(0)) / training.std(0)
    require_equal(store, "s1", table, expected)
    assert store.stimuli["part"].tolist() == ["train"] * 8 + ["validation"] * 2 + ["test"] * 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.iloc[:-1], r"betas.nii.gz: expected 23 trials, as in the trials table, found 24"),
        (lambda t: pd.concat([t, t.tail(1)]), r"the trial_row 23 of `s1` twice"),
        (lambda t: t.assign(color=1), r"expected known columns, found `color`"),
        (lambda t: t.assign(trial_row=t["trial_row"] + 1), r"expected trial_row 0 to 23"),
        (lambda t: t.drop(columns="run"), r"expected a column `run`"),
    ],
)
def test_odd_trials_are_refused(table, change, match):
    path = table.root / "trials.tsv"
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match=match):
        read_contract(table.root / "header.yaml")


@pytest.mark.parametrize(
    ("captions", "match"),
    [
        ('{"0": ["a"]}', r"expected captions of the image `1`, found none"),
        ('{"0": [" "]}', r"expected a text as caption of `0`"),
        ("[1]", r"expected \{image"),
    ],
)
def test_odd_captions_are_refused(table, captions, match):
    table.captions_file.write_text(captions)
    with pytest.raises(DataError, match=match):
        read_contract(table.root / "header.yaml")


def test_axes_in_another_order_are_refused(table, change_header):
    with pytest.raises(DataError, match=r"expected axes trials-zyx on the mask's grid"):
        read_contract(change_header(axis_order="trials-zyx"))
