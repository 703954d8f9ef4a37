"""BOLD5000 against the arrays that were put into a small folder in the layout of its release 2.0."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.formats.bold5000 import OpenNeuro, read_bold5000
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.store import open_store
from bitllm.errors import BitLlmError

TYPED = "TYPED-FITHRF-GLMDENOISE-RR"
GRIDS = {"CSI1": (4, 3, 2), "CSI2": (3, 4, 3)}
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]])
N = 37  # trials of a run


def session_of(rng: np.random.Generator, session: int) -> pd.DataFrame:
    """One run: 24 COCO images (two of them in every session), 8 of ImageNet, 5 scenes, in random order."""
    own = [f"COCO_train2014_{500 * session + n:012d}.jpg" for n in range(22)]
    names = [(name, "coco") for name in own]
    names += [(f"COCO_train2014_{n:012d}.jpg", "rep_coco") for n in (7, 9)]
    names += [(f"n0{n:07d}_{session}.JPEG", "imagenet") for n in range(8)]
    names += [(f"savanna{session}{n}.jpg", "scenes") for n in range(5)]
    order = rng.permutation(N)
    rows = [(6.0 + 10 * n, *names[place]) for n, place in enumerate(order)]
    return pd.DataFrame(rows, columns=["onset", "ImgName", "ImgType"])


@pytest.fixture(name="template", scope="module")
def _template(tmp_path_factory) -> SimpleNamespace:
    rng = np.random.default_rng(5)
    root = tmp_path_factory.mktemp("bold5000")
    folder, events, rois = root / "BOLD5000", root / "ds001499", root / "ds001499/derivatives/spm"
    folder.mkdir()
    betas, shown, masks, regions = {}, {}, {}, {}
    for k, (name, grid) in enumerate(GRIDS.items(), 1):
        (rois / f"sub-{name}").mkdir(parents=True)
        brain = rng.random(grid) < 0.8
        save(brain.astype(np.uint8), folder / f"{name}_brainmask.nii.gz")
        label = rng.integers(0, 6, grid)
        for number, region in enumerate(("EarlyVis", "LOC", "OPA", "PPA", "RSC"), 1):
            spelled = {"LOC": "LO", "RSC": "RRSC"}.get(region, region) if k == 2 else region
            half = np.arange(grid[0])[:, None, None] < grid[0] / 2
            for side, here in (("LH", half), ("RH", ~half)):
                mask = ((label == number) & here) | (np.indices(grid).sum(axis=0) == 0) * (number == 1)
                if mask.any():
                    save(mask.astype(np.uint8), rois / f"sub-{name}/sub-{name}_mask-{side}{spelled}.nii.gz")
        label.flat[0] = 1
        sessions = [session_of(rng, session) for session in (1, 2)]
        for session, table in enumerate(sessions, 1):
            place = events / f"sub-{name}/ses-{session:02d}/func"
            place.mkdir(parents=True)
            full = table.assign(duration=1.0, Subj=k, Sess=session, Run=1, Trial=range(1, N + 1))
            full.to_csv(
                place / f"sub-{name}_ses-{session:02d}_task-5000scenes_run-01_events.tsv",
                sep="\t",
                index=False,
            )
            values = rng.normal(0.5, 2, (*grid, N)).astype(np.float32)
            save(values, folder / f"{name}_GLMbetas-{TYPED}_ses-{session:02d}.nii.gz")
            betas[name, session] = values
        shown[name] = pd.concat(sessions, keys=(1, 2), names=["session"]).reset_index(level=0)
        (folder / f"{name}_imgnames.txt").write_text("\n".join(shown[name]["ImgName"]) + "\n")
        masks[name], regions[name] = brain, label
    names = sorted({n for table in shown.values() for n in table["ImgName"] if n.startswith("COCO")})
    ids = [int(name[-16:-4]) for name in names]
    rows = [{"image_id": n, "caption": f"caption {c} of {n}"} for n in ids for c in range(2)]
    (root / "captions_train2014.json").write_text(json.dumps({"annotations": rows}))
    return SimpleNamespace(root=root, betas=betas, shown=shown, masks=masks, regions=regions, ids=ids)


@pytest.fixture(name="made")
def _made(template, tmp_path) -> SimpleNamespace:
    """A copy that a test may change."""
    shutil.copytree(template.root, tmp_path / "data")
    root = tmp_path / "data"
    paths = {
        "folder": root / "BOLD5000",
        "events": root / "ds001499",
        "rois": root / "ds001499/derivatives/spm",
    }
    return SimpleNamespace(**vars(template) | paths | {"root": root})


def save(values: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    image = nib.Nifti1Image(values, affine)
    image.header.set_qform(affine, 1)
    nib.save(image, path)


def read(made: SimpleNamespace, **changed):
    parts = {"events": made.events, "rois": made.rois, "transforms": None}
    parts = {name: changed.pop(name, default) for name, default in parts.items()}
    options = {"openneuro": OpenNeuro(**parts)} | changed
    captions = options.pop("captions", (made.root / "captions_train2014.json",))
    return read_bold5000(made.folder, Sidecar(captions=captions), **options)


@pytest.mark.parametrize("roi", ["brain", "EarlyVis+PPA"])
def test_a_store_holds_the_coco_trials_of_both_subjects(made, tmp_path, roi):
    words = ["--events", made.events, "--rois", made.rois, "--roi", roi]
    captions = ["--captions", made.root / "captions_train2014.json"]
    main(["prepare", "bold5000", *map(str, [made.folder, tmp_path / "store", *captions, *words])])
    store = open_store(tmp_path / "store")
    assert store.subjects == ("CSI1", "CSI2")
    assert (store.manifest.source, store.manifest.space) == ("bold5000", "T1w")
    assert sorted(store.stimuli["coco_id"]) == made.ids
    assert store.stimuli["coco_id"][store.stimuli["part"] == "test"].tolist() == [7, 9]
    for name, brain in made.masks.items():
        mask = brain if roi == "brain" else np.isin(made.regions[name], [1, 4])
        data, table = store.subject(name), made.shown[name].reset_index(drop=True)
        is_coco = table["ImgName"].str.startswith("COCO").to_numpy()
        ids = table["ImgName"].str[-16:-4].where(is_coco, "-1").astype(int).to_numpy()
        assert store.stimuli["coco_id"].loc[data.trials["nsd_id"]].tolist() == ids[is_coco].tolist()
        assert data.trials["trial"].tolist() == (np.flatnonzero(is_coco) % N + 1).tolist()
        part = store.stimuli.set_index("coco_id")["part"]
        for session in (1, 2):
            here = np.flatnonzero(is_coco & (table["session"] == session))
            flat = made.betas[name, session][mask].T.astype(np.float64)[here - N * (session - 1)]
            training = flat[(part.loc[ids[here]] == "train").to_numpy()]
            found = np.asarray(data.betas)[(data.trials["session"] == session).to_numpy()]
            np.testing.assert_allclose(found, (flat - training.mean(0)) / training.std(0), atol=6e-3)
        np.testing.assert_array_equal(data.voxels[["i", "j", "k"]], np.argwhere(mask))
        expected = nib.affines.apply_affine(AFFINE, np.argwhere(mask))
        np.testing.assert_allclose(data.voxels[["x_mm", "y_mm", "z_mm"]], expected, atol=1e-4)
        assert data.voxels["bold5000"].tolist() == made.regions[name][mask].tolist()
    assert store.captions[int(store.stimuli.index[0])] == ("caption 0 of 7", "caption 1 of 7")


def test_without_events_repeats_are_found_by_name_and_a_note_says_what_is_believed(made):
    shorter = made.folder / f"CSI2_GLMbetas-{TYPED}_ses-02.nii.gz"
    shorter.unlink()
    reading = read(made, events=None, rois=None, subjects=("CSI1", "CSI2"))
    stimuli = reading.contents.stimuli
    assert stimuli["coco_id"][stimuli["part"] == "test"].tolist() == [7, 9]
    assert reading.contents.atlases == {}
    for fragment in ("believed, not checked", "CSI2_imgnames.txt: 37 images", "not that of release 2.0"):
        assert any(fragment in note for note in reading.notes), fragment


def test_scaled_integers_are_read_like_floats(made):
    before = read(made).contents.subjects[0].read_session(1)
    path = made.folder / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz"
    image = nib.Nifti1Image(made.betas["CSI1", 1], AFFINE)
    image.header.set_data_dtype(np.int16)
    nib.save(image, path)
    assert nib.load(path).dataobj.slope != 1
    np.testing.assert_allclose(read(made).contents.subjects[0].read_session(1), before, atol=1e-3)


def test_coordinates_are_brought_to_mni_by_the_transforms_of_fmriprep(made):
    folder = made.root / "fmriprep"
    folder.mkdir()
    for k, name in enumerate(GRIDS):
        path = folder / f"sub-{name}_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.txt"
        numbers = f"Parameters: 1 0 0 0 1 0 0 0 1 {k + 1} 2 3\nFixedParameters: 5 5 5\n"
        path.write_text(
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n{numbers}"
        )
    before, after = read(made), read(made, transforms=folder)
    assert (before.settings.space, after.settings.space) == ("T1w", "MNI152NLin2009cAsym")
    for k, (own, mni) in enumerate(zip(before.contents.subjects, after.contents.subjects, strict=True)):
        moved = (mni.voxels - own.voxels)[["x_mm", "y_mm", "z_mm"]].to_numpy()
        np.testing.assert_allclose(moved, np.tile([-(k + 1.0), -2, 3], (len(moved), 1)))  # LPS to RAS


def break_names(made, change):
    path = made.folder / "CSI1_imgnames.txt"
    path.write_text("\n".join(change(path.read_text().split())))


def break_events(made, change):
    path = next((made.events / "sub-CSI1/ses-01/func").glob("*run-01*"))
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False)


BROKEN = {
    "no folder": (lambda m: shutil.rmtree(m.folder), {}, "BOLD5000: expected the folder"),
    "other betas": (lambda m: None, {"betas": "TYPEC"}, f"TYPEC_ses-01.nii.gz, found none; --betas: .*{TYPED}"),
    "other subject": (lambda m: None, {"subjects": ("CSI9",)}, "`CSI9`"),
    "a missing session": (
        lambda m: (m.folder / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz").unlink(), {}, "no file of session 1"),
    "three axes": (
        lambda m: save(np.zeros((4, 3, 2), np.float32), m.folder / f"CSI1_GLMbetas-{TYPED}_ses-01.nii.gz"), {},
        r"four axes"),
    "no names": (lambda m: (m.folder / "CSI1_imgnames.txt").unlink(), {"events": None}, "CSI1_imgnames.txt"),
    "too few names": (lambda m: break_names(m, lambda n: n[:60]), {"events": None}, "74 trials, .* found 60"),
    "no whole runs": (
        lambda m: save(m.betas["CSI1", 2][..., :30], m.folder / f"CSI1_GLMbetas-{TYPED}_ses-02.nii.gz"),
        {"events": None}, "runs of 37 trials, found 30"),
    "names in another order": (lambda m: break_names(m, lambda n: n[::-1]), {}, "in line 1, as in the events"),
    "a run without events": (
        lambda m: next((m.events / "sub-CSI2/ses-02/func").iterdir()).unlink(), {}, r"found the runs \[\]"),
    "events of another session": (
        lambda m: break_events(m, lambda t: t.assign(Sess=2)), {}, "expected Sess 1, .* found 2"),
    "events without images": (
        lambda m: break_events(m, lambda t: t.drop(columns="ImgName")), {}, "column ImgName"),
    "a trial too few": (lambda m: break_events(m, lambda t: t[:-1]), {}, "expected 36 trials"),
    "no region": (lambda m: None, {"rois": None, "roi": "LOC"}, "--roi: expected brain"),
    "an unknown region": (lambda m: None, {"roi": "LOC+V1"}, "found `V1`"),
    "a missing mask": (
        lambda m: [p.unlink() for p in m.rois.rglob("*OPA*")], {}, "sub-CSI1_mask-LHOPA"),
    "a shifted brain mask": (
        lambda m: save(m.masks["CSI1"].astype(np.uint8), m.folder / "CSI1_brainmask.nii.gz",
                       AFFINE + np.eye(4)[0][:, None] * np.eye(4)[3]), {"rois": None}, "1 mm apart"),
    "no transforms": (lambda m: None, {"transforms": Path(__file__).parent}, "one sub-CSI1_from-MNI.*found 0"),
    "captions of others": (
        lambda m: (m.root / "captions_train2014.json").write_text('{"annotations": [{"image_id": 1, "caption": "a"}]}'),
        {}, "found none .46 of 46|captions of the image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(made, name):
    change, options, fragment = BROKEN[name]
    change(made)
    with pytest.raises(BitLlmError, match=fragment) as caught:
        read(made, **options)
    assert "\n" not in str(caught.value)
