"""The general contract against the arrays that were put into it."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from bitllm.data.formats.custom import read_custom
from bitllm.errors import DataError


def test_betas_order_captions_and_pictures_are_the_sources(table, prepared, require_equal):
    store = prepared(read_custom(table.root / "header.yaml"))
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
        (lambda t: t.rename(columns={"split": "Split"}), r"found `Split`; did you mean `split`"),
        (lambda t: t.assign(trial_row=t["trial_row"] + 1), r"expected trial_row 0 to 23"),
        (lambda t: t.drop(columns="run"), r"expected a column `run`"),
    ],
)
def test_odd_trials_are_refused(table, change, match):
    path = table.root / "trials.tsv"
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match=match):
        read_custom(table.root / "header.yaml")


@pytest.mark.parametrize(
    ("captions", "match"),
    [
        ('{"0": ["a"]}', r"expected captions of the image `1`, found none"),
        ('{"0": [" "]}', r"expected a text as caption of `0`"),
        ("[1]", r"captions\.json: .*found another \(list\)"),
    ],
)
def test_odd_captions_are_refused(table, captions, match):
    table.captions_file.write_text(captions)
    with pytest.raises(DataError, match=match):
        read_custom(table.root / "header.yaml")


def test_axes_in_another_order_are_refused(table, change_header):
    with pytest.raises(DataError, match=r"expected axes trials-zyx on the mask's grid"):
        read_custom(change_header(axis_order="trials-zyx"))


def test_names_that_are_no_numbers_stay_in_the_store(table, prepared):
    path = table.root / "trials.tsv"
    trials = pd.read_csv(path, sep="\t", dtype={"stimulus_id": str})
    name = {one: f"scene {9 - int(one)}/{one}" for one in trials["stimulus_id"]}
    trials.assign(stimulus_id=trials["stimulus_id"].map(name)).to_csv(path, sep="\t", index=False)
    captions = json.loads(table.captions_file.read_text())
    table.captions_file.write_text(json.dumps({name[one]: found for one, found in captions.items()}))
    header = yaml.safe_load((table.root / "header.yaml").read_text())
    header.pop("pictures", None)
    (table.root / "header.yaml").write_text(yaml.safe_dump(header))
    store = prepared(read_custom(table.root / "header.yaml"))
    assert store.stimuli["stimulus_name"].tolist() == sorted(name.values())
    shown = store.stimuli["stimulus_name"].loc[store.subject("s1").trials["nsd_id"]].tolist()
    assert shown == [name[str(one)] for one in table.nsd_id]
    assert {store.stimuli["stimulus_name"][n]: list(c) for n, c in store.captions.items()} == {
        name[one]: found for one, found in captions.items() if one in name
    }


def test_images_with_numbers_have_no_other_name(table, prepared):
    assert "stimulus_name" not in prepared(read_custom(table.root / "header.yaml")).stimuli
