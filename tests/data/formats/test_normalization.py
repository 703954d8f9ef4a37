"""`normalization` of the general contract and of GLMsingle: the remedy for a session that holds test trials alone."""

import json

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.formats.custom import read_custom
from bitllm.data.store import open_store
from bitllm.data.store.write import write_store
from bitllm.errors import ConfigError, DataError


@pytest.fixture(name="nsd_id")
def _nsd_id(table) -> np.ndarray:
    """The images of 24 trials; those of session 2 are images of the test part alone."""
    trials = pd.read_csv(table.root / "trials.tsv", sep="\t")
    in_second = trials["session"] == 2
    trials.loc[in_second, "stimulus_id"] = np.tile([10, 11], 6)
    trials.loc[in_second, "split"] = "test"
    trials.to_csv(table.root / "trials.tsv", sep="\t", index=False)
    return trials["stimulus_id"].to_numpy()


def test_a_session_of_test_trials_is_refused_with_the_remedy_and_read_with_it(
    table, nsd_id, change_header, tmp_path
):
    reading = read_custom(change_header())
    with pytest.raises(DataError, match=r"found 0 in session 2.*`across-sessions`"):
        write_store(tmp_path / "refused", reading.contents, reading.settings)
    main(["prepare", "table", str(change_header(normalization="across-sessions")), str(tmp_path / "store")])
    store = open_store(tmp_path / "store")
    assert store.manifest.statistics == "across-sessions"
    part = store.stimuli["part"].loc[nsd_id].to_numpy()
    training = table.betas[part == "train"]
    expected = (table.betas - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(store.subject("s1").betas, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("already_zscored", "normalization", "expected"),
    [
        (False, None, "training"),
        (False, "none", "none"),
        (False, "not-shared", "not-shared"),
        (True, None, "as-delivered"),
        (True, "as-delivered", "as-delivered"),
    ],
)
def test_the_header_names_the_normalization(table, change_header, already_zscored, normalization, expected):
    named = {} if normalization is None else {"normalization": normalization}
    reading = read_custom(change_header(already_zscored=already_zscored, **named))
    assert reading.settings.normalization == expected


@pytest.mark.parametrize(
    ("already_zscored", "normalization"),
    [(True, "training"), (True, "none"), (False, "as-delivered"), (False, "z-score")],
)
def test_a_normalization_that_contradicts_the_header_is_one_line(
    table, change_header, already_zscored, normalization
):
    header = change_header(already_zscored=already_zscored, normalization=normalization)
    with pytest.raises(ConfigError, match=rf"header\.yaml: .*normalization.*{normalization}") as caught:
        read_custom(header)
    assert "\n" not in str(caught.value)


def test_the_command_of_glmsingle_takes_a_normalization(tmp_path, make, capsys):
    rng = np.random.default_rng(3)
    values = rng.normal(1.5, 2.0, (7, 24)).astype(np.float32)
    make.write_h5(tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", betasmd=values)
    places = pd.DataFrame(rng.normal(0, 40, (7, 3)), columns=["x_mm", "y_mm", "z_mm"])
    places.to_csv(tmp_path / "places.tsv", sep="\t", index=False)
    shown = np.concatenate([np.arange(12) % 8, 10 + np.arange(12) % 2])
    trials = pd.DataFrame(
        {"trial_row": range(24), "subject": "s1", "session": np.repeat([1, 2], 12), "run": 1}
    )
    trials = trials.assign(stimulus_id=[f"img{n}" for n in shown], split=np.where(shown < 8, "train", "test"))
    trials.to_csv(tmp_path / "trials.tsv", sep="\t", index=False)
    (tmp_path / "captions.json").write_text(json.dumps({f"img{n}": ["a thing"] for n in range(12)}))
    named = {
        "trials": "trials.tsv",
        "subject": "s1",
        "captions": "captions.json",
        "places": "places.tsv",
        "normalization": "across-sessions",
    }
    options = [
        part
        for key, value in named.items()
        for part in (f"--{key}", str(tmp_path / value) if "." in value else value)
    ]
    betas = str(tmp_path / "TYPED_FITHRF_GLMDENOISE_RR.hdf5")
    main(["prepare", "glmsingle", betas, str(tmp_path / "store"), *options])
    store = open_store(tmp_path / "store")
    part = store.stimuli["part"].loc[store.subject("s1").trials["nsd_id"]].to_numpy()
    training = values.T[part == "train"].astype(np.float64)
    expected = (values.T - training.mean(0)) / training.std(0)
    np.testing.assert_allclose(store.subject("s1").betas, expected, rtol=2e-3, atol=1e-3)
    assert "--design" in capsys.readouterr().out
