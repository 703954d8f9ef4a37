"""The dataset of a lab that a header describes: every kind of file gives the store of the arrays."""

import json

import nibabel as nib
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


AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture(name="require_same")
def _require_same(table, prepared):
    """Compare, bit by bit, with the store that NIfTI gives."""
    nifti = prepared(read_custom(table.root / "header.yaml"), "nifti")

    def require(header) -> None:
        data, expected = prepared(read_custom(header)).subject("s1"), nifti.subject("s1")
        np.testing.assert_array_equal(np.asarray(data.betas), np.asarray(expected.betas))
        pd.testing.assert_frame_equal(data.trials, expected.trials)
        pd.testing.assert_frame_equal(data.voxels, expected.voxels)

    return require


def save_cifti(path, flat, mask, axis=None) -> None:
    trials = axis or nib.cifti2.ScalarAxis([f"trial {n}" for n in range(len(flat))])
    voxels = nib.cifti2.BrainModelAxis.from_mask(mask, name="thalamus_left", affine=AFFINE)
    nib.save(nib.Cifti2Image(flat, header=(trials, voxels)), path)


def test_voxels_listed_in_fortran_order_give_the_same_store(table, stored, change_header, require_same):
    volume, mask, _ = stored
    listed = np.stack([volume[..., n].ravel(order="F")[mask.ravel(order="F")] for n in range(24)])
    assert not np.array_equal(listed, stored[2])
    np.save(table.root / "betas.npy", listed)
    require_same(change_header(betas="betas.npy", axis_order="trials-voxels", voxel_order="F"))


@pytest.mark.parametrize("ending", ["h5", "hdf5"])
def test_hdf5_with_reversed_axes_gives_the_same_store(
    table, stored, change_header, require_same, make, ending
):
    make.write_h5(table.root / f"b.{ending}", group__values=stored[0].transpose())
    require_same(change_header(betas=f"b.{ending}", key="group/values", axis_order="trials-zyx"))


@pytest.mark.parametrize("kept", [0.02, 0.6])
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "mgh", "mgz"])
def test_an_image_cut_off_is_named_whatever_its_kind(table, stored, change_header, ending, kept):
    kind = nib.MGHImage if ending.startswith("mg") else nib.Nifti1Image
    path = table.root / f"cut.{ending}"
    nib.save(kind(stored[0], AFFINE), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = rf"cut.{ending}: expected betas"
    with pytest.raises(DataError, match=message):
        read_custom(change_header(betas=path.name))


def test_columns_of_cifti_lie_where_its_own_axis_says(table, stored, change_header, require_same):
    """Grouped by structure, as HCP's files are: the second half of the voxels first, each half reversed."""
    path, mask = table.root / "b.dscalar.nii", stored[1]
    scaled = stored[2].astype(np.float32) * np.float32(1 / 300)
    places = np.argwhere(mask)
    order = np.concatenate(
        [np.arange(len(places))[len(places) // 2 :][::-1], np.arange(len(places) // 2)[::-1]]
    )
    trials = nib.cifti2.ScalarAxis([f"trial {n}" for n in range(len(scaled))])

    def axis_of(voxels):
        names = ["thalamus_left"] * (len(voxels) - len(voxels) // 2) + ["thalamus_right"] * (len(voxels) // 2)
        return nib.cifti2.BrainModelAxis(
            np.array([f"CIFTI_STRUCTURE_{name.upper()}" for name in names]),
            voxel=voxels,
            affine=AFFINE,
            volume_shape=mask.shape,
        )

    nib.save(nib.Cifti2Image(scaled[:, order], header=(trials, axis_of(places[order]))), path)
    header = change_header(betas=path.name, scale=1.0, axis_order="trials-voxels")
    require_same(header)
    elsewhere = places[order].copy()
    elsewhere[0] = np.argwhere(~mask)[0]
    nib.save(nib.Cifti2Image(scaled[:, order], header=(trials, axis_of(elsewhere))), path)
    with pytest.raises(
        DataError, match=r"expected grayordinates at the \d+ voxels of the mask, .* 1 elsewhere"
    ):
        read_custom(header)


def test_cifti_without_an_axis_of_trials_or_places_is_refused(table, stored, change_header):
    path = table.root / "b.dscalar.nii"
    flat = stored[2].astype(np.float32)
    save_cifti(path, flat, stored[1], nib.cifti2.SeriesAxis(start=0, step=1.6, size=24))
    header = change_header(betas=path.name, scale=1.0, axis_order="trials-voxels", mask=None)
    with pytest.raises(DataError, match=r"trials as its axis of scalars \(dscalar\), found SeriesAxis"):
        read_custom(header)
    surface = nib.cifti2.BrainModelAxis.from_surface(np.arange(flat.shape[1]), 100, "cortex_left")
    trials = nib.cifti2.ScalarAxis([str(n) for n in range(24)])
    nib.save(nib.Cifti2Image(flat, header=(trials, surface)), path)
    with pytest.raises(DataError, match=r"neither `mask` nor `voxels`.*does not hold the coordinates"):
        read_custom(header)


def test_floats_that_are_scaled_already_are_not_scaled_again(table, stored, change_header, require_same):
    volume = stored[0].astype(np.float32) * np.float32(1 / 300)
    nib.save(nib.Nifti1Image(volume, AFFINE), table.root / "scaled.nii")
    with pytest.raises(DataError, match=r"expected whole numbers for the scale 0.00333333, found float32"):
        read_custom(change_header(betas="scaled.nii"))
    require_same(change_header(scale=1.0))


def test_z_scores_are_not_z_scored_twice(table, stored, change_header, prepared, tmp_path):
    with pytest.raises(DataError, match=r"expected z-scores \(already_zscored: true\), found a deviation of"):
        prepared(read_custom(change_header(already_zscored=True, scale=1.0)))
    rng = np.random.default_rng(5)
    scores = rng.standard_normal((48, stored[2].shape[1]))
    scores = np.concatenate([(half - half.mean(0)) / half.std(0) for half in (scores[:24], scores[24:])])
    trials = pd.read_csv(table.root / "trials.tsv", sep="\t")
    twice = pd.concat([trials, trials]).assign(trial_row=range(48), session=np.repeat([1, 2], 24))
    twice.to_csv(table.root / "trials.tsv", sep="\t", index=False)
    np.save(table.root / "z.npy", scores.astype(np.float32))
    header = change_header(betas="z.npy", axis_order="trials-voxels", scale=1.0, already_zscored=False)
    with pytest.raises(DataError, match="never z-scored twice"):
        prepared(read_custom(header))
    assert not (tmp_path / "store").exists()
    kept = prepared(read_custom(change_header(already_zscored=True))).subject("s1").betas
    np.testing.assert_allclose(np.asarray(kept), scores, rtol=2**-10, atol=1e-3)


def test_trials_that_are_not_utf8_are_refused(table):
    path = table.root / "trials.tsv"
    path.write_bytes(path.read_bytes().replace(b"s1", "Müller".encode("latin-1")))
    with pytest.raises(DataError, match=r"trials\.tsv: .*UTF-8.* byte 51"):
        read_custom(table.root / "header.yaml")


def test_a_flat_array_must_fit_mask_and_axes(table, stored, change_header):
    np.save(table.root / "betas.npy", stored[2][:, 1:])
    with pytest.raises(DataError, match=r"voxels, as in mask or voxels, found"):
        read_custom(change_header(betas="betas.npy", axis_order="trials-voxels"))
    np.save(table.root / "betas.npy", stored[0])
    with pytest.raises(DataError, match=r"expected two axes \(trials-voxels\), found the shape"):
        read_custom(change_header())
