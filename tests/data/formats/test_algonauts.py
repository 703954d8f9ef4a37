"""Algonauts 2023 against the arrays that were put into it."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bitllm.data.formats.algonauts import read_algonauts
from bitllm.data.formats.sidecar import Sidecar
from bitllm.errors import DataError

ALL_VERTICES = 20
IMAGES = {"subj01": [13, 4, 9, 30, 2, 21], "subj02": [7, 13, 18, 9]}


@pytest.fixture(name="made")
def _made(tmp_path, make):
    """Two subjects who share the NSD images 9 and 13, and fsaverage's surfaces of 20 vertices."""
    rng = np.random.default_rng(4)
    root, betas, kept = tmp_path / "algonauts", {}, {}
    pictures = {n: rng.integers(0, 256, (6, 5, 3)).astype(np.uint8) for ids in IMAGES.values() for n in ids}
    for subject, ids in IMAGES.items():
        folders = [root / subject / f"training_split/training_{kind}" for kind in ("images", "fmri")]
        masks = root / subject / "roi_masks"
        for folder in (*folders, masks):
            folder.mkdir(parents=True)
        for order, n in enumerate(ids, 1):
            (folders[0] / f"train-{order:04d}_nsd-{n:05d}.png").write_bytes(make.png(pictures[n]))
        for hemisphere, n_vertices in (("lh", 7), ("rh", 5)):
            half = rng.standard_normal((len(ids), n_vertices)).astype(np.float32)
            where = np.sort(rng.permutation(ALL_VERTICES)[:n_vertices])
            np.save(folders[1] / f"{hemisphere}_training_fmri.npy", half)
            whole = np.isin(np.arange(ALL_VERTICES), where).astype(np.int32)
            np.save(masks / f"{hemisphere}.all-vertices_fsaverage_space.npy", whole)
            labels = np.arange(n_vertices) % 8
            np.save(masks / f"{hemisphere}.streams_challenge_space.npy", labels)
            betas[subject, hemisphere], kept[subject, hemisphere] = half, where
    surfaces = tmp_path / "surf"
    surfaces.mkdir()
    mm = {h: rng.normal(0, 40, (ALL_VERTICES, 3)).astype(np.float32) for h in ("lh", "rh")}
    for hemisphere, coordinates in mm.items():
        coordinates[:, 0] = np.abs(coordinates[:, 0]) * (-1 if hemisphere == "lh" else 1)
        nib.freesurfer.write_geometry(surfaces / f"{hemisphere}.white", coordinates, np.array([[0, 1, 2]]))
    captions = {str(n): [f"caption of {n}"] for n in pictures}
    (root / "captions.json").write_text(json.dumps(captions))
    return root, betas, kept, mm, pictures


def read(root: Path, **changed):
    options = {"surfaces": root.parent / "surf"} | changed
    sidecar = Sidecar(captions=(root / "captions.json",), stimulus_table=options.pop("table", None))
    return read_algonauts(root, sidecar, **options)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda values: values,
        lambda values: values.astype(values.dtype.newbyteorder(">")),
        np.asfortranarray,
        lambda values: values.astype(np.float64),
    ],
    ids=["plain", "big-endian", "Fortran order", "float64, labels too"],
)
def test_a_store_holds_both_hemispheres_by_nsd_id(made, prepared, rewrite):
    root, betas, kept, mm, pictures = made
    for path in root.rglob("*.npy"):
        np.save(path, rewrite(np.load(path)))
    store = prepared(read(root))
    for subject, ids in IMAGES.items():
        data = store.subject(subject)
        expected = np.concatenate([betas[subject, "lh"], betas[subject, "rh"]], axis=1)
        assert data.trials["nsd_id"].tolist() == ids
        np.testing.assert_allclose(np.asarray(data.betas), expected, rtol=2**-10, atol=1e-3)
        for side, hemisphere in enumerate(("lh", "rh")):
            half = data.voxels[data.voxels["j"] == side]
            where = kept[subject, hemisphere]
            assert half["i"].tolist() == where.tolist()
            np.testing.assert_allclose(
                half[["x_mm", "y_mm", "z_mm"]].to_numpy(), mm[hemisphere][where], rtol=1e-6
            )
            assert half["streams"].tolist() == (np.arange(len(where)) % 8).tolist()
    shared = store.stimuli["shared"]
    assert shared[shared].index.tolist() == [9, 13]
    seen = sorted(pictures)
    np.testing.assert_array_equal(store.pictures(seen), np.stack([pictures[n] for n in seen]))
    assert store.captions == {n: (f"caption of {n}",) for n in seen}


def test_the_names_of_labels_are_nsds_or_the_users(made):
    root = made[0]
    names = read(root).contents.atlases
    assert names["streams"][1] == "early"
    assert names["streams"][7] == "parietal"
    own = root / "labels.json"
    own.write_text(json.dumps({"streams": {str(n): f"stream {n}" for n in range(8)}}))
    assert read(root, labels=own).contents.atlases == {"streams": {n: f"stream {n}" for n in range(1, 8)}}
    own.write_text(json.dumps({"streams": {"1": "early"}}))
    with pytest.raises(DataError, match=r"streams_challenge_space.npy: .*unknown labels \[2, 3, 4, 5, 6\]"):
        read(root, labels=own)
    own.write_text(json.dumps({"streams": {"1": "early", "01": "parietal"}}))
    with pytest.raises(DataError, match=r"labels\.json: .*`streams`"):
        read(root, labels=own)
    own.write_text("[1]")
    with pytest.raises(DataError, match=r"expected \{atlas: \{number: name\}\}, found another"):
        read(root, labels=own)
    pickled = root / "mapping_streams.npy"
    pickled.write_bytes(b"")
    with pytest.raises(DataError, match=r"mapping_\*.npy are pickles and are never opened"):
        read(root, labels=pickled)


def test_labels_are_rounded_and_others_refused(made):
    path = made[0] / "subj01/roi_masks/lh.streams_challenge_space.npy"
    labels = np.load(path)
    expected = read(made[0]).contents.subjects[0].voxels["streams"].tolist()
    np.save(path, labels - 1e-9)
    assert read(made[0]).contents.subjects[0].voxels["streams"].tolist() == expected
    np.save(path, labels + 0.25)
    with pytest.raises(DataError, match=r"lh.streams_challenge_space.npy: .*found 0.25"):
        read(made[0])
    np.save(path, labels)
    surface = made[0].parent / "surf/lh.white"
    surface.write_bytes(surface.read_bytes()[:40])
    with pytest.raises(DataError, match=r"lh.white: .*damaged"):
        read(made[0])


def test_surfaces_of_the_other_hemisphere_are_refused(made):
    left, right = (made[0].parent / f"surf/{side}.white" for side in ("lh", "rh"))
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    with pytest.raises(DataError, match=r"lh\.white: .*mean x [0-9]"):
        read(made[0])
    left.write_bytes(content)
    right.write_bytes(content)
    with pytest.raises(DataError, match=r"rh\.white: .*mean x -[0-9]"):
        read(made[0])


def test_one_subject_needs_the_table_of_shared_images(made, prepared):
    root = made[0]
    with pytest.raises(DataError, match=r"found one subject and no stimulus table"):
        read(root, subjects=("subj01",))
    table = root / "nsd_stim_info_merged.csv"
    rows = "\n".join(f"{n},{500 + n},{n in (9, 13)}" for n in range(40))
    table.write_text(f"nsdId,cocoId,shared1000\n{rows}\n")
    store = prepared(read(root, subjects=("subj01",), table=table))
    assert store.stimuli.index[store.stimuli["shared"]].tolist() == [9, 13]
    assert store.stimuli["coco_id"].tolist() == [500 + n for n in sorted(IMAGES["subj01"])]


def test_what_does_not_belong_together_is_refused(made, tmp_path):
    root = made[0]
    with pytest.raises(DataError, match=r"expected the folders subj01 and so on, found 0"):
        read(tmp_path / "surf", surfaces=None)
    with pytest.raises(DataError, match=r"subj01: .*--surfaces"):
        read(root, surfaces=None)
    small = tmp_path / "fsaverage5"
    small.mkdir()
    for hemisphere in ("lh", "rh"):
        nib.freesurfer.write_geometry(small / f"{hemisphere}.white", np.zeros((3, 3)), np.array([[0, 1, 2]]))
    with pytest.raises(DataError, match=r"lh.white: .*found 3; name fsaverage, not fsaverage5"):
        read(root, surfaces=small)
    mask = root / "subj02/roi_masks/rh.all-vertices_fsaverage_space.npy"
    np.save(mask, np.ones(ALL_VERTICES, np.int32))
    with pytest.raises(
        DataError, match=r"rh.all-vertices.*expected 5 vertices, as in the responses, found 20"
    ):
        read(root)
    np.save(root / "subj01/training_split/training_fmri/rh_training_fmri.npy", np.zeros((5, 5)))
    with pytest.raises(DataError, match=r"rh_training_fmri.npy: expected responses of 6 images .*\(5, 5\)"):
        read(root)
    next((root / "subj01/training_split/training_images").glob("train-0003*")).unlink()
    with pytest.raises(DataError, match=r"training_images: .*without a gap, found 5 such files"):
        read(root)
