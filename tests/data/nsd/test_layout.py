"""Which subjects and sessions of a release are there, and what is said when one is not."""

import pytest

from bitllm.data.nsd.layout import NsdRelease
from bitllm.errors import DataError
from bitllm.files import require_file


def test_subjects_and_sessions_come_from_the_files(written_release):
    release = NsdRelease(written_release.root)
    assert release.subjects() == ("subj01", "subj02", "subj03")
    assert release.subjects(["subj02"]) == ("subj02",)
    files = [path.name for path in release.session_files("subj03")]
    assert files == ["betas_session01.hdf5", "betas_session02.hdf5"]
    assert release.atlases("subj01", besides="nsdgeneral") == ("prf-visualrois", "streams")


def test_hdf5_is_preferred_where_both_formats_are_there(release):
    release.session("subj01", 1, "nii.gz").touch()
    assert NsdRelease(release.root).session_files("subj01")[0].name == "betas_session01.hdf5"


def test_versions_of_the_betas_are_folders(release):
    folder = release.session("subj02", 1).parent
    folder.rename(folder.with_name("betas_fithrf"))
    assert NsdRelease(release.root, "b2").subjects() == ("subj02",)
    assert NsdRelease(release.root, "b3").subjects() == ("subj01", "subj03")


def test_a_root_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: expected the root folder of an NSD release, found none"):
        NsdRelease(tmp_path / "nowhere")


def test_an_unknown_version_names_the_valid_ones(tmp_path):
    with pytest.raises(DataError, match="expected a version of NSD's betas, found `b4`; did you mean `b"):
        NsdRelease(tmp_path, "b4")


def test_a_release_without_betas_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected folders subjNN/.*/betas_fithrf_GLMdenoise_RR, found none"):
        NsdRelease(tmp_path).subjects()


def test_an_unknown_subject_names_the_nearest(written_release):
    with pytest.raises(DataError, match="expected betas of the subject `subj9`, found none; did you mean"):
        NsdRelease(written_release.root).subjects(["subj9"])


def test_a_missing_file_is_named_with_what_it_was(tmp_path):
    with pytest.raises(DataError, match=r"gone.nii.gz: expected the noise ceilings, found no file"):
        require_file(tmp_path / "gone.nii.gz", "the noise ceilings")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked.csv").touch()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may read whatever the mode says
    with pytest.raises(
        DataError, match=r"locked.csv: expected a table, found a file without read permission"
    ):
        require_file(tmp_path / "locked.csv", "a table")
