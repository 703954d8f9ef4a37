"""`normalization` of the general contract and of GLMsingle: the remedy for a session that holds test trials alone."""

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
