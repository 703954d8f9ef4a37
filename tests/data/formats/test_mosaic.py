"""MOSAIC against the arrays that were put into small files in its layout."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pytest
from nilearn.surface import load_surf_mesh

from bitllm.cli import main
from bitllm.data.formats.mosaic import Cortex, read_mosaic
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.store import open_store
from bitllm.errors import BitLlmError

N_VERTICES = 12
CORTEX = {"LEFT": [0, 2, 3, 5, 8, 11], "RIGHT": [1, 2, 4, 7, 9]}
BELOW = [(1, 2, 3), (4, 4, 1), (2, 0, 2)]
AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
AREAS = {"V1": 1, "V2": 4, "FFC": 18}
SUBJECTS = ("sub-01_NSD", "sub-02_NSD", "sub-01_BOLD5000")
UNDEFINED = 4  # a grayordinate that is NaN in some trials of sub-02_NSD


def models() -> nib.cifti2.BrainModelAxis:
    axis = None
    for side, vertices in CORTEX.items():
        one = nib.cifti2.BrainModelAxis.from_surface(vertices, N_VERTICES, f"CORTEX_{side}")
        axis = one if axis is None else axis + one
    mask = np.zeros((6, 6, 6), bool)
    mask[tuple(np.array(BELOW).T)] = True
    return axis + nib.cifti2.BrainModelAxis.from_mask(mask, "THALAMUS_LEFT", AFFINE)


def write_places(folder: Path, rng: np.random.Generator) -> np.ndarray:
    """A dscalar, surfaces and Glasser's labels (right hemisphere 1 to 180); returns the area of each vertex."""
    axis = models()
    scalar = nib.cifti2.ScalarAxis(["any"])
    nib.save(
        nib.Cifti2Image(np.zeros((1, len(axis)), np.float32), (scalar, axis)), folder / "91k.dscalar.nii"
    )
    (folder / "tpl-fsLR").mkdir()
    for side in "LR":
        mm = rng.normal(0, 30, (N_VERTICES, 3))
        mm[:, 0] = np.abs(mm[:, 0]) * (-1 if side == "L" else 1)
        arrays = [
            nib.gifti.GiftiDataArray(mm.astype(np.float32), intent="NIFTI_INTENT_POINTSET"),
            nib.gifti.GiftiDataArray(np.array([[0, 1, 2]], np.int32), intent="NIFTI_INTENT_TRIANGLE"),
        ]
        image = nib.gifti.GiftiImage(darrays=arrays)
        nib.save(image, folder / f"tpl-fsLR/tpl-fsLR_den-32k_hemi-{side}_midthickness.surf.gii")
    table = {0: ("???", (0, 0, 0, 0))}
    for name, n in AREAS.items():
        table |= {n: (f"R_{name}_ROI", (1, 0, 0, 1)), n + 180: (f"L_{name}_ROI", (0, 1, 0, 1))}
    whole = [
        nib.cifti2.BrainModelAxis.from_surface(range(N_VERTICES), N_VERTICES, f"CORTEX_{s}") for s in CORTEX
    ]
    number = rng.choice([0, *AREAS.values()], 2 * N_VERTICES)
    number[:3] = number[12:15] = [1, 4, 18]
    stored = number + 180 * (np.arange(2 * N_VERTICES) < N_VERTICES) * (number > 0)
    label = nib.cifti2.LabelAxis(["areas"], [table])
    image = nib.Cifti2Image(stored[None].astype(np.float32), (label, whole[0] + whole[1]))
    nib.save(image, folder / "glasser.dlabel.nii")
    side = np.repeat([0, N_VERTICES], [len(CORTEX["LEFT"]), len(CORTEX["RIGHT"])])
    return number[side + np.concatenate([*CORTEX.values()])]


def write_subject(path: Path, rng: np.random.Generator) -> dict[tuple[str, int], np.ndarray]:
    subject, betas = path.stem, {}
    is_nsd = subject.endswith("NSD")
    first = 0 if is_nsd else 8
    stimuli = [(f"{n:012d}", "test" if n % 4 == 0 else "train") for n in range(first, first + 12)]
    stimuli += [("017", "test")] if is_nsd else [("n01440764_1", "train"), ("000000000003", "test")]
    with h5py.File(path, "w") as file:
        group = file.create_group("betas", track_order=True)
        for place in rng.permutation(len(stimuli)):
            name, phase = stimuli[place]
            for repetition in range(1 + place % 3):
                values = rng.standard_normal(14)
                if subject == "sub-02_NSD" and place < 5:
                    values[UNDEFINED] = np.nan
                dataset = group.create_dataset(
                    f"{subject}_stimulus-{name}_phase-{phase}_rep-{repetition}", data=values
                )
                dataset.attrs.update({"phase": phase, "repetition": repetition})
                dataset.attrs["nan_indices"] = np.flatnonzero(np.isnan(values))
                betas[name, repetition] = values
    return betas


@pytest.fixture(name="template", scope="module")
def _template(tmp_path_factory) -> SimpleNamespace:
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("mosaic")
    areas = write_places(root, rng)
    betas = {subject: write_subject(root / f"{subject}.hdf5", rng) for subject in SUBJECTS}
    rows = [{"image_id": n, "caption": f"caption of {n}"} for n in range(20)]
    (root / "captions.json").write_text(json.dumps({"annotations": rows}))
    return SimpleNamespace(root=root, areas=areas, betas=betas)


@pytest.fixture(name="made")
def _made(template, tmp_path) -> SimpleNamespace:
    """A copy that a test may change."""
    shutil.copytree(template.root, tmp_path / "data")
    return SimpleNamespace(**vars(template) | {"root": tmp_path / "data"})


def read(made: SimpleNamespace, subjects=SUBJECTS, **changed):
    root = made.root
    options = {"labels": root / "glasser.dlabel.nii"} | changed
    captions = options.pop("captions", root / "captions.json")
    cortex = Cortex(root / "91k.dscalar.nii", root / "tpl-fsLR", **options)
    return read_mosaic([root / f"{one}.hdf5" for one in subjects], Sidecar(captions=(captions,)), cortex)


def test_a_store_holds_three_subjects_of_two_data_sets_with_common_images(made, tmp_path):
    places = ["--grayordinates", made.root / "91k.dscalar.nii", "--surfaces", made.root / "tpl-fsLR"]
    words = [*places, "--labels", made.root / "glasser.dlabel.nii", "--captions", made.root / "captions.json"]
    files = [made.root / f"{subject}.hdf5" for subject in SUBJECTS]
    main(["prepare", "mosaic", *map(str, [*files, tmp_path / "store", *words])])
    store = open_store(tmp_path / "store")
    assert store.subjects == tuple(sorted(SUBJECTS))
    assert (store.manifest.space, store.manifest.statistics) == ("fsLR", "as-delivered")
    assert store.stimuli["coco_id"].tolist() == list(range(20))
    # 3 is a test image of BOLD5000 only, 8 of both
    tests = store.stimuli["coco_id"][store.stimuli["part"] == "test"].tolist()
    assert tests == [0, 3, 4, 8, 12, 16]
    assert store.atlases == {"HCP_MMP1": {n: name for name, n in AREAS.items()}}
    surfaces = [made.root / f"tpl-fsLR/tpl-fsLR_den-32k_hemi-{side}_midthickness.surf.gii" for side in "LR"]
    mm = [load_surf_mesh(path).coordinates[CORTEX[s]] for path, s in zip(surfaces, CORTEX, strict=True)]
    for subject in SUBJECTS:
        data = store.subject(subject)
        kept = np.setdiff1d(np.arange(11), [UNDEFINED] if subject == "sub-02_NSD" else [])
        np.testing.assert_allclose(data.voxels[["x_mm", "y_mm", "z_mm"]], np.concatenate(mm)[kept], atol=0.1)
        assert data.voxels["HCP_MMP1"].tolist() == made.areas[kept].tolist()
        pairs = zip(data.trials["nsd_id"], data.trials["repetition"], strict=True)
        expected = [
            made.betas[subject][f"{store.stimuli['coco_id'][n]:012d}", r][:11][kept] for n, r in pairs
        ]
        np.testing.assert_allclose(np.asarray(data.betas), expected, atol=2e-3)
        assert len(expected) == sum(name[:3] == "000" for name, _ in made.betas[subject])


def test_areas_select_vertices_and_voxels_below_the_cortex_lie_on_the_files_own_grid(made):
    voxels = read(made, areas=("V2", "FFC")).contents.subjects[0].voxels
    assert sorted(set(voxels["HCP_MMP1"])) == [4, 18]
    assert len(voxels) == np.isin(made.areas, [4, 18]).sum()
    voxels = read(made, structures="all", labels=None).contents.subjects[0].voxels
    below = nib.affines.apply_affine(AFFINE, models().voxel[-3:])
    np.testing.assert_allclose(voxels[["x_mm", "y_mm", "z_mm"]].to_numpy()[-3:], below, atol=1e-6)
    assert "HCP_MMP1" not in voxels


def test_a_map_of_captions_keeps_the_images_that_it_names_and_blocks_stand_for_sessions(made, monkeypatch):
    captions = made.root / "map.json"
    captions.write_text(json.dumps({"n01440764_1": ["a tench"], "000000000010": ["a dog"]}))
    monkeypatch.setattr("bitllm.data.formats.mosaic._BLOCK", 2)
    reading = read(made, subjects=("sub-01_BOLD5000",), captions=captions)
    stimuli, subject = reading.contents.stimuli, reading.contents.subjects[0]
    assert stimuli["coco_id"].tolist() == [10, -1]
    betas = np.concatenate([subject.read_session(n) for n in sorted(set(subject.trials["session"]))])
    names = dict(zip(stimuli["nsd_id"], stimuli["stimulus_id"], strict=True))
    repetition = subject.trials.groupby("nsd_id").cumcount()
    pairs = zip(subject.trials["nsd_id"], repetition, strict=True)
    expected = [made.betas["sub-01_BOLD5000"][names[n], r][:11] for n, r in pairs]
    np.testing.assert_allclose(betas, expected, atol=1e-6)
    assert len(expected) == 4
    assert any("no sessions" in note for note in reading.notes)


def edit(made, change, subject="sub-01_NSD"):
    with h5py.File(made.root / f"{subject}.hdf5", "a") as file:
        change(file)


def rename(file, old, new):
    key = next(key for key in file["betas"] if old in key)
    file[f"betas/{key}"].attrs.clear()
    file.move(f"betas/{key}", f"betas/{key.replace(old, new)}")


BROKEN = {
    "no HDF5": (lambda m: (m.root / "sub-01_NSD.hdf5").write_text("<html>"), {}, "sub-01_NSD.hdf5: .*damaged"),
    "no betas": (lambda m: edit(m, lambda f: f.move("betas", "data")), {}, "a group `betas`"),
    "another key": (lambda m: edit(m, lambda f: rename(f, "_rep-", "_run-")), {}, "found `sub-01_NSD_stimulus"),
    "another subject": (lambda m: edit(m, lambda f: rename(f, "sub-01", "sub-03")), {}, "one subject"),
    "the name of another": (
        lambda m: (m.root / "sub-02_NSD.hdf5").replace(m.root / "sub-01_NSD.hdf5"), {"subjects": SUBJECTS[:1]},
        "that of the file's name, found those of sub-02_NSD"),
    "one subject twice": (lambda m: None, {"subjects": (SUBJECTS[0], SUBJECTS[0])}, "two of sub-01_NSD"),
    "a missing repetition": (
        lambda m: edit(m, lambda f: rename(f, "000000000001_phase-train_rep-0", "000000000001_phase-train_rep-7")),
        {}, "found rep-"),
    "an attribute against the name": (
        lambda m: edit(m, lambda f: next(iter(f["betas"].values())).attrs.update(repetition=9)), {},
        "repetition = . of"),
    "captions of no image": (
        lambda m: (m.root / "captions.json").write_text('{"dog_12s": "a dog"}'), {}, "found none among 1"),
    "other grayordinates": (
        lambda m: edit(m, lambda f: [f["betas"].pop(k) for k in list(f["betas"])] and f["betas"].create_dataset(
            "sub-01_NSD_stimulus-000000000001_phase-train_rep-0", data=np.zeros(9))), {}, r"found the shape \(9,\)"),
    "no CIFTI": (
        lambda m: nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), AFFINE), m.root / "91k.dscalar.nii"), {},
        "91k.dscalar.nii: expected CIFTI"),
    "one hemisphere": (lambda m: next((m.root / "tpl-fsLR").glob("*hemi-R*")).unlink(), {}, "hemisphere R .*found 0"),
    "swapped hemispheres": (
        lambda m: shutil.copy(*sorted((m.root / "tpl-fsLR").iterdir())), {}, "hemisphere R, found 12 vertices"),
    "no labels": (lambda m: None, {"labels": None, "areas": ("V1",)}, "--areas: .*--labels"),
    "an unknown area": (lambda m: None, {"areas": ("V9",)}, "found `V9`"),
    "labels without names": (
        lambda m: shutil.copy(m.root / "91k.dscalar.nii", m.root / "glasser.dlabel.nii"), {}, "with labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(made, name):
    change, options, fragment = BROKEN[name]
    change(made)
    with pytest.raises(BitLlmError, match=fragment) as caught:
        read(made, **options)
    assert "\n" not in str(caught.value)
