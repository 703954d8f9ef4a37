"""The trial-to-image mapping, and every way in which design and responses can disagree."""

import pandas as pd
import pytest
import scipy.io

from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.trials import read_design, read_trials
from bitllm.data.prepare import prepare_nsd
from bitllm.errors import DataError


def change_design(mini, **changes) -> None:
    content = {key: value for key, value in scipy.io.loadmat(mini.design).items() if not key.startswith("__")}
    content |= changes
    scipy.io.savemat(mini.design, {key: value for key, value in content.items() if value is not None})


def change_responses(mini, subject: str, change) -> None:
    table = pd.read_csv(mini.responses(subject), sep="\t")
    change(table).to_csv(mini.responses(subject), sep="\t", index=False)


def trials_of(mini, subject: str, n_sessions: int = 2) -> pd.DataFrame:
    return read_trials(NsdRelease(mini.root), read_design(mini.design), subject, n_sessions)


def test_the_design_is_read_as_0_based(written_release):
    design = read_design(written_release.design)
    assert set(design.shared_ids) == set(written_release.shared)
    assert design.trials_per_session.tolist() == [12, 12, 12]
    assert design.n_shared == 4


def test_later_responses_than_the_betas_are_left_out(written_release):
    trials = trials_of(written_release, "subj01", 2)
    assert trials["nsd_id"].tolist() == written_release.nsd_id["subj01"][:24].tolist()


def test_a_design_that_is_not_matlab_is_named(release):
    release.design.write_bytes(b"<html>404</html>" * 20)
    with pytest.raises(DataError, match=r"nsd_expdesign.mat: expected a MATLAB 5 file, found another"):
        read_design(release.design)


def test_a_design_without_a_variable_is_named(release):
    change_design(release, sharedix=None)
    with pytest.raises(DataError, match="expected the variable `sharedix`, found none"):
        read_design(release.design)


def test_an_ordering_shorter_than_the_sessions_is_named(release):
    change_design(release, masterordering=scipy.io.loadmat(release.design)["masterordering"][:, :-1])
    with pytest.raises(DataError, match=r"expected 36 trials \(the sum of `stimpattern`\), found 35"):
        read_design(release.design)


def test_more_sessions_than_planned_are_refused(written_release):
    message = r"nsd_expdesign.mat: expected at least 4 sessions"
    with pytest.raises(DataError, match=message):
        trials_of(written_release, "subj01", 4)


@pytest.mark.parametrize("subject", ["subj04", "subjects"])
def test_a_subject_outside_the_design_is_refused(written_release, subject):
    message = f"expected a row of `subjectim` for {subject}, found subjects 1 to 3"
    with pytest.raises(DataError, match=message):
        trials_of(written_release, subject)


def test_responses_of_another_image_name_the_first_trial_and_both_ids(release):
    expected = int(release.nsd_id["subj01"][16]) + 1

    def replace(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[[16, 20], "73KID"] = 999
        return table

    change_responses(release, "subj01", replace)
    message = rf"responses.tsv: expected 73KID {expected} in trial 17, as in the design, found 999 \(2 trials"
    with pytest.raises(DataError, match=message):
        trials_of(release, "subj01")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop(columns="73KID"), "`73KID`"),
        (lambda t: t.assign(RUN="one"), "`RUN` .* `one` in row 1"),
        (lambda t: t.assign(RUN=1.5), "`RUN` .* `1.5` in row 1"),
    ],
)
def test_responses_without_their_columns_are_named(release, change, match):
    change_responses(release, "subj01", change)
    with pytest.raises(DataError, match=rf"responses\.tsv: .*{match}"):
        trials_of(release, "subj01")


def test_notes_on_the_responses_reach_the_user(release, tmp_path):
    path = release.responses("subj01")
    path.write_text(path.read_text().replace("\t", ","))
    notes: list[str] = []
    prepare_nsd(release.root, tmp_path / "store", subjects=["subj01"], note=notes.append)
    assert [note for note in notes if "responses.tsv" in note and "commas" in note]
