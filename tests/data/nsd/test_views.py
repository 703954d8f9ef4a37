"""Which voxels were in the field of view of a session: what NSD's volumes say, and what the betas say."""

import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.prepare import prepare_nsd
from bitllm.data.store import open_store
from bitllm.errors import DataError

SUBJECT = "subj01"


def path_of(mini, session: int, subject: str = SUBJECT):
    return mini.root / f"nsddata/ppdata/{subject}/func1pt8mm/valid_session{session:02d}.nii.gz"


def true_view(mini, session: int) -> np.ndarray:
    return (mini.volumes[SUBJECT, session] != 0).any(axis=-1).astype(np.int16)


def prepared(mini, out, **more):
    notes: list[str] = []
    prepare_nsd(mini.root, out, subjects=[SUBJECT, "subj02"], note=notes.append, **more)
    return open_store(out).subject(SUBJECT), about_views(notes)


def about_views(lines: list[str]) -> list[str]:
    """Without the notes about the miniature's short sessions."""
    return [line for line in lines if "valid_session" in line]


def test_volumes_that_fit_the_betas_change_nothing_and_are_not_remarked_on(release, write_volume, tmp_path):
    without, _ = prepared(release, tmp_path / "without")
    for session in (1, 2, 3):
        write_volume(path_of(release, session), true_view(release, session))
    found, notes = prepared(release, tmp_path / "with")
    assert notes == []
    np.testing.assert_array_equal(found.betas, without.betas)
    assert found.voxels.equals(without.voxels)
    assert found.voxels["valid"].iloc[-1] == pytest.approx(2 / 3)  # the fixture's voxel out of view


@pytest.mark.parametrize("workers", [1, 2])
def test_a_voxel_said_to_be_invalid_is_zero_in_that_session_and_one_line_says_so(
    release, write_volume, tmp_path, capsys, workers
):
    view = true_view(release, 2)
    first = tuple(np.argwhere(release.mask[SUBJECT])[0])
    view[first] = 0
    write_volume(path_of(release, 2), view)
    data, notes = prepared(release, tmp_path / "store", workers=workers)
    assert len(notes) == 1 and "\n" not in notes[0]
    assert notes[0].startswith(
        f"{path_of(release, 2)}: expected it to agree with the betas, found 1 voxels that vary"
    )
    assert (data.betas[12:24, 0] == 0).all() and (data.betas[:12, 0] != 0).any()
    assert data.voxels["valid"].iloc[0] == pytest.approx(2 / 3)
    main(["prepare", "nsd", str(release.root), str(tmp_path / "by command"), "--subjects", SUBJECT, "subj02"])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert about_views(said) == [f"note: {notes[0]}"]


def test_a_voxel_said_to_be_valid_that_never_varies_is_remarked_on_and_counted_as_out_of_view(
    release, write_volume, tmp_path
):
    write_volume(path_of(release, 1), np.ones(release.mask[SUBJECT].shape, np.int16))
    data, notes = prepared(release, tmp_path / "store")
    assert len(notes) == 1 and "or the reverse (1 sessions of subj01" in notes[0]
    assert (data.betas[:12, -1] == 0).all()
    assert data.voxels["valid"].iloc[-1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.full((5, 7, 4), 2.0),
            r"valid_session01.nii.gz: expected 1 \(in the field of view\) and 0, found 2",
        ),
        (
            np.full((5, 7, 4), 0.5),
            r"valid_session01.nii.gz: .*found 0.5",
        ),
        (
            np.ones((7, 5, 4)),
            r"valid_session01.nii.gz: expected the shape \(5, 7, 4\), the grid of the brain mask",
        ),
    ],
)
def test_a_volume_that_is_no_mask_of_the_grid_is_refused(release, write_volume, tmp_path, values, message):
    write_volume(path_of(release, 1), values)
    with pytest.raises(DataError, match=message):
        prepared(release, tmp_path / "store")
    assert not (tmp_path / "store").exists()
