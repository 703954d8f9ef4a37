"""Broken releases, by the command: one line that names the file, exit status 2, nothing left behind."""

import json

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.cli import main


def rewrite(path, change) -> None:
    with h5py.File(path) as file:
        name = next(iter(file))
        values = file[name][()]
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=change(values))


def volume(path, change) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(image.get_fdata()), image.affine), path)


def cut(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def design(mini, **changes) -> None:
    content = {k: v for k, v in scipy.io.loadmat(mini.design).items() if not k.startswith("_")}
    content |= {key: change(content[key]) for key, change in changes.items()}
    scipy.io.savemat(mini.design, content)


def responses(mini, change) -> None:
    table = pd.read_csv(mini.responses("subj01"), sep="\t")
    change(table).to_csv(mini.responses("subj01"), sep="\t", index=False)


def stimuli(mini, change) -> None:
    change(pd.read_csv(mini.stimulus_table, index_col=0)).to_csv(mini.stimulus_table)


def annotations(mini, change) -> None:
    content = json.loads(mini.annotations().read_text())
    mini.annotations().write_text(json.dumps(change(content)))


S1 = ("subj01", 1)
BROKEN = {
    "truncated HDF5": (
        lambda m: cut(m.session(*S1)),
        "betas_session01.hdf5: expected a session of betas as whole HDF5",
    ),
    "empty HDF5": (
        lambda m: m.session(*S1).write_bytes(b""),
        "betas_session01.hdf5: expected a session of betas as whole HDF5",
    ),
    "axes in NIfTI's order": (
        lambda m: rewrite(m.session(*S1), lambda v: v.transpose(3, 2, 1, 0)),
        "betas_session01.hdf5: expected the shape",
    ),
    "float betas": (lambda m: rewrite(m.session(*S1), lambda v: v / 300.0), "expected int16 (300 times"),
    "a trial less": (lambda m: rewrite(m.session(*S1), lambda v: v[:-1]), "expected the shape (12,"),
    "a plane less": (lambda m: rewrite(m.session(*S1), lambda v: v[:, 1:]), "expected the shape"),
    "no dataset": (lambda m: h5py.File(m.session(*S1), "w").close(), "expected a dataset `betas`"),
    "session in the middle": (lambda m: m.session("subj01", 2).unlink(), "found no file of session 2"),
    "no session": (
        lambda m: [m.session("subj01", n).unlink() for n in (1, 2, 3)],
        "expected betas_sessionNN.hdf5",
    ),
    "no mask": (lambda m: m.roi("subj01").unlink(), "nsdgeneral.nii.gz: expected the region"),
    "other subject's mask": (
        lambda m: m.roi("subj01").write_bytes(m.roi("subj02").read_bytes()),
        "nsdgeneral.nii.gz: expected the shape",
    ),
    "empty mask": (lambda m: volume(m.roi("subj01"), np.zeros_like), "expected voxels with a label above 0"),
    "mask of -1": (
        lambda m: volume(m.roi("subj01"), lambda v: -np.ones_like(v)),
        "label above 0, found none",
    ),
    "truncated mask": (lambda m: cut(m.roi("subj01")), "nsdgeneral.nii.gz: expected the region"),
    "mask no NIfTI": (lambda m: m.roi("subj01").write_bytes(b"text"), "as NIfTI, found a damaged file"),
    "no transform": (lambda m: m.transform("subj01").unlink(), "MNI-to-func1pt8.nii.gz: expected"),
    "transform invalid": (
        lambda m: volume(m.transform("subj01"), lambda v: np.full_like(v, 9999)),
        "expected MNI coordinates for at least 95%",
    ),
    "no design": (lambda m: m.design.unlink(), "nsd_expdesign.mat: expected NSD's experimental design"),
    "truncated design": (lambda m: cut(m.design), "nsd_expdesign.mat: expected"),
    "0-based ordering": (lambda m: design(m, masterordering=lambda v: v - 1), "expected `masterordering`"),
    "0-based images": (lambda m: design(m, subjectim=lambda v: v - 1), "the shared images of `sharedix`"),
    "0-based shared": (lambda m: design(m, sharedix=lambda v: v - 1), "the shared images of `sharedix`"),
    "0-based responses": (
        lambda m: responses(m, lambda t: t.assign(**{"73KID": t["73KID"] - 1})),
        "responses.tsv: expected 73KID",
    ),
    "749 trials": (lambda m: responses(m, lambda t: t[:-1]), "responses.tsv: expected 36 trials"),
    "trials swapped": (lambda m: responses(m, lambda t: t[::-1]), "responses.tsv: expected SESSION"),
    "no responses": (lambda m: m.responses("subj01").unlink(), "responses.tsv: expected the subject's"),
    "no 73KID": (
        lambda m: responses(m, lambda t: t.drop(columns="73KID")),
        "responses.tsv: expected a column `73KID`",
    ),
    "no stimulus table": (lambda m: m.stimulus_table.unlink(), "merged.csv: expected NSD's table"),
    "1-based nsdId": (
        lambda m: stimuli(m, lambda t: t.assign(nsdId=t["nsdId"] + 1)),
        "nsd_stim_info_merged.csv: expected",
    ),
    "no cocoId": (lambda m: stimuli(m, lambda t: t.drop(columns="cocoId")), "expected a column `cocoId`"),
    "other shared": (
        lambda m: stimuli(m, lambda t: t.assign(shared1000=~t["shared1000"])),
        "expected `shared1000` to be",
    ),
    "no captions": (lambda m: m.annotations().unlink(), "captions_train2017.json: expected COCO's captions"),
    "image uncaptioned": (
        lambda m: annotations(m, lambda c: c | {"annotations": []}),
        "captions_train2017.json: expected COCO's captions",
    ),
    "captions no JSON": (lambda m: m.annotations().write_text("{"), "train2017.json: expected JSON"),
    "captions not UTF-8": (
        lambda m: m.annotations().write_bytes(b'{"a": "\xff"}'),
        "UTF-8",
    ),
    "no annotations": (lambda m: m.annotations().write_text("{}"), "annotations"),
    "instances": (
        lambda m: annotations(m, lambda c: c | {"annotations": [{"image_id": 1}]}),
        "expected `image_id` and `caption`",
    ),
    "label without a name": (
        lambda m: m.table("prf-visualrois", "subj01").write_text("1 V1v\n"),
        "expected a name for the label",
    ),
    "no noise ceilings": (
        lambda m: m.session(*S1).with_name("ncsnr.nii.gz").unlink(),
        "ncsnr.nii.gz: expected",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_release_is_named_in_one_line(release, tmp_path, capsys, name):
    damage, message = BROKEN[name]
    damage(release)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "nsd", str(release.root), str(tmp_path / "out" / "ein Spei€her")])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert message in said and "\n" not in said and "; " in said
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_image_with_six_captions_keeps_all(release, tmp_path):
    main(["prepare", "nsd", str(release.root), str(tmp_path / "mit Leerzeichen é")])
    captions = pd.read_parquet(tmp_path / "mit Leerzeichen é" / "captions.parquet")
    assert set(captions.groupby("nsd_id").size()) == {5, 6}


def test_sessions_subjects_and_a_union_of_regions_can_be_chosen(release, tmp_path):
    arguments = [
        "--subjects",
        "subj01",
        "--sessions",
        "-1",
        "--roi",
        "nsdgeneral+streams",
        "--picture-px",
        "4",
        "--workers",
        "2",
    ]
    main(["prepare", "nsd", str(release.root), str(tmp_path / "store"), *arguments])
    trials = pd.read_parquet(tmp_path / "store/subjects/subj01/trials.parquet")
    assert trials["session"].unique().tolist() == [1, 2]
    union = release.mask["subj01"] | (release.labels["subj01", "streams"] > 0)
    betas = np.load(tmp_path / "store/subjects/subj01/betas.npy")
    assert betas.shape == (24, union.sum())
    assert np.load(tmp_path / "store/pictures.npy").shape[1:] == (4, 4, 3)
