"""MindEye2's and MindLLM's files against the arrays that were put into them."""

import h5py
import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.audit import audit
from bitllm.data.formats.processed import read_processed
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.store import open_store
from bitllm.errors import DataError


@pytest.fixture
def mindeye2(tmp_path, make):
    """Two sessions of twelve trials; the shared trials (images 10, 11) are in new_test."""
    rng = np.random.default_rng(3)
    root = tmp_path / "me2"
    captions, pictures = make.images(root, rng)
    make.places(root, "subj01")
    betas = rng.standard_normal((24, 7)).astype(np.float32)
    make.write_h5(root / "betas_all_subj01_fp32_renorm.hdf5", betas=betas)
    brick = np.stack([p.transpose(2, 0, 1) / 255 for p in pictures.values()]).astype(np.float16)
    make.write_h5(root / "coco_images_224_float16.hdf5", images=brick)
    nsd_id = np.concatenate([rng.permutation(12), rng.permutation(12)])
    rows = -np.ones((24, 1, 17))
    rows[:, 0, 0], rows[:, 0, 1], rows[:, 0, 5] = nsd_id, 1, range(24)
    rows[:, 0, 2], rows[:, 0, 3], rows[:, 0, 4] = np.repeat([1, 2], 12), 1, np.tile(range(1, 13), 2)
    rows[:, 0, 16] = nsd_id >= 10
    for session in (0, 1):
        own = [r for r in rows[session * 12 : session * 12 + 12] if not r[0, 16]]
        make.write_tar(root / f"wds/subj01/train/{session}.tar", [{"behav.npy": make.npy(r)} for r in own])
    shared = [{"behav.npy": make.npy(r)} for r in rows if r[0, 16]]
    make.write_tar(root / "wds/subj01/new_test/0.tar", shared)
    make.write_tar(root / "wds/subj01/test/0.tar", shared)
    return make.source(root, betas, nsd_id, captions, pictures)


@pytest.fixture
def mindllm(tmp_path, make):
    """One group a trial, counted by COCO ids (1000 - n)."""
    rng = np.random.default_rng(4)
    root = tmp_path / "mindllm"
    captions, pictures = make.images(root, rng)
    (root / "pictures").mkdir()
    make.places(root, "subj03")
    nsd_id = np.repeat(np.arange(12), 2)
    betas = 3 + 2 * rng.standard_normal((24, 7)).astype(np.float32)
    with h5py_file(root / "nsd0/subject_3.h5") as file:
        for row, n in enumerate(nsd_id):
            group = file.create_group(f"{'train' if n < 9 else 'test'}/{row:05d}")
            group["visual_voxels"], group["coco_id"], group["prev_coco_id"] = betas[row], 1000 - n, -1
    for n, picture in pictures.items():
        (root / f"pictures/{1000 - n:012d}.png").write_bytes(make.png(picture))
    table = "\n".join(f"{n},{1000 - n},{n >= 9}" for n in range(12))
    (root / "stimuli.csv").write_text(f"nsdId,cocoId,shared1000\n{table}\n")
    texts = [f'{{"image_id": {1000 - n}, "caption": "{c}"}}' for n, found in captions.items() for c in found]
    (root / "captions.json").write_text(f'{{"annotations": [{",".join(texts)}]}}')
    return make.source(root, betas, nsd_id, captions, pictures)


def h5py_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return h5py.File(path, "a")


def sidecar(source, **changed) -> Sidecar:
    return Sidecar(**{"captions": (source.captions_file,), "voxels": source.voxels} | changed)


def with_coco(source, **changed) -> Sidecar:
    files = {"stimulus_table": source.root / "stimuli.csv", "pictures": source.root / "pictures"}
    return sidecar(source, **(files | changed))


def test_mindeye2_gives_the_rows_in_chronological_order(mindeye2, prepared, require_equal):
    store = prepared(read_processed("mindeye2", mindeye2.root, sidecar(mindeye2)))
    require_equal(store, "subj01", mindeye2, mindeye2.betas)
    assert store.subject("subj01").trials["session"].tolist() == [1] * 12 + [2] * 12
    assert store.stimuli["shared"].tolist() == [False] * 10 + [True] * 2
    assert store.manifest.source == "mindeye2"


def test_mindeye2_says_that_its_statistics_may_hold_test_trials_and_so_does_the_audit(
    mindeye2, prepared, tmp_path, capsys
):
    words = ["--captions", str(mindeye2.captions_file), "--voxels", str(mindeye2.voxels)]
    main(["prepare", "mindeye2", str(mindeye2.root), str(tmp_path / "by command"), *words])
    said = " ".join(capsys.readouterr().out.split())
    assert "note: these betas were z-scored by their makers, perhaps with test trials" in said
    found = audit(open_store(tmp_path / "by command"))
    assert len(found["notes"]) == 1 and found["is_clean"]
    assert (
        "z-scored by whoever made the betas (mindeye2); whether test trials are in the" in found["notes"][0]
    )


def test_mindeye2_without_the_older_test_tar_of_a_release_takes_it(mindeye2):
    (mindeye2.root / "wds/subj01/new_test/0.tar").unlink()
    (mindeye2.root / "wds/subj01/new_test").rmdir()
    reading = read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    assert len(reading.contents.subjects[0].trials) == 24


def damage_chunk(path, name, values, chunks) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        made = file.create_dataset(name, data=values, chunks=chunks, fletcher32=True)
        place = made.id.get_chunk_info(made.id.get_num_chunks() - 1).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_a_damaged_chunk_of_mindeye2_is_named_with_its_trials(mindeye2):
    path = mindeye2.root / "betas_all_subj01_fp32_renorm.hdf5"
    damage_chunk(path, "betas", mindeye2.betas, (8, mindeye2.betas.shape[1]))
    subject = read_processed("mindeye2", mindeye2.root, sidecar(mindeye2)).contents.subjects[0]
    n = len(mindeye2.betas)
    with pytest.raises(DataError, match=rf"renorm.hdf5: .*`betas`, trials {8 * ((n - 1) // 8)} to "):
        for session in subject.trials["session"].unique().tolist():
            subject.read_session(session)


def test_mindeye2_of_another_release_is_refused(mindeye2, make):
    path = mindeye2.root / "betas_all_subj01_fp32_renorm.hdf5"
    make.write_h5(path, betas=mindeye2.betas[:20])
    with pytest.raises(DataError, match=r"the row 23 of the behaviour, found the shape \(20, 7\)"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    make.write_h5(path, voxels=mindeye2.betas)
    with pytest.raises(DataError, match=r"expected a dataset `betas`, found voxels"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"expected betas as whole HDF5, found a damaged file"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    with pytest.raises(DataError, match=r"files of the subject `subj02`, found none"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2), subjects=("subj02",))
    path.unlink()
    with pytest.raises(DataError, match=r"expected betas_all_subj01_fp32_renorm.hdf5 and so on, found none"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))


def test_mindeye2_with_odd_tars_or_pictures_is_refused(mindeye2, make):
    folder = mindeye2.root / "wds/subj01"
    (folder / "train/7.tar").write_bytes((folder / "train/0.tar").read_bytes())
    with pytest.raises(DataError, match=r"expected every trial once, found the row"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    make.write_tar(folder / "train/7.tar", [{"behav.npy": make.npy(np.zeros((1, 16)))}])
    with pytest.raises(DataError, match=r"behav.npy of 1 × 17 columns, found the shape \(1, 16\)"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    (folder / "train/7.tar").unlink()
    make.write_h5(mindeye2.root / "coco_images_224_float16.hdf5", images=np.zeros((3, 3, 4, 4)))
    with pytest.raises(DataError, match=r"up to the NSD id 11, found the shape"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))
    for path in folder.glob("*/*.tar"):
        path.unlink()
    with pytest.raises(DataError, match=r"expected train/.*tar and new_test/0.tar, found none"):
        read_processed("mindeye2", mindeye2.root, sidecar(mindeye2))


def test_mindllm_counts_by_nsd_ids_and_z_scores_what_is_not(mindllm, prepared, require_equal):
    reading = read_processed("mindllm", mindllm.root, with_coco(mindllm))
    # sorted keys: the rows of train (images 0-8) before those of test
    betas = mindllm.betas.astype(np.float64)
    store = prepared(reading)
    train = np.isin(mindllm.nsd_id, store.stimuli.index[store.stimuli["part"] == "train"])
    expected = (betas - betas[train].mean(0)) / betas[train].std(0)
    require_equal(store, "subj03", mindllm, expected)
    assert "do not look z-scored" in reading.notes[1]
    assert store.stimuli["coco_id"].tolist() == [1000 - n for n in range(12)]


def test_mindllm_never_z_scores_twice(mindllm, prepared):
    scored = (mindllm.betas - mindllm.betas.mean(0)) / mindllm.betas.std(0)
    with h5py_file(mindllm.root / "nsd0/subject_3.h5") as file:
        for row, n in enumerate(mindllm.nsd_id):
            file[f"{'train' if n < 9 else 'test'}/{row:05d}/visual_voxels"][:] = scored[row]
    reading = read_processed("mindllm", mindllm.root, with_coco(mindllm))
    assert "look z-scored and stay" in reading.notes[1]
    np.testing.assert_allclose(
        np.asarray(prepared(reading).subject("subj03").betas), scored, rtol=1e-3, atol=1e-4
    )


def test_odd_mindllm_files_are_refused(mindllm):
    path = mindllm.root / "nsd0/subject_3.h5"
    with pytest.raises(DataError, match=r"files of the subject `subj01`, found none"):
        read_processed("mindllm", mindllm.root, with_coco(mindllm), subjects=("subj01",))
    (mindllm.root / "stimuli.csv").write_text("nsdId,cocoId,shared1000\n1,5,False\n")
    with pytest.raises(DataError, match=r"expected the COCO id 989 .*are these NSD ids"):
        read_processed("mindllm", mindllm.root, with_coco(mindllm))
    with h5py_file(path) as file:
        file["test/00000/coco_id"], file["test/00000/visual_voxels"] = 1000, np.zeros(7)
    with pytest.raises(DataError, match=r"found the COCO id 1000 in train and in test"):
        read_processed("mindllm", mindllm.root, sidecar(mindllm))
    with h5py_file(path) as file:
        file["test/00001/coco_id"], file["test/00001/visual_voxels"] = 980, np.zeros(8)
    with pytest.raises(DataError, match=r"expected 7 voxels in every trial, found 8 in `test/00001`"):
        read_processed("mindllm", mindllm.root, sidecar(mindllm))
    with h5py_file(path) as file:
        del file["test"]
    with pytest.raises(DataError, match=r"the groups train and test with trials, found none in `test`"):
        read_processed("mindllm", mindllm.root, sidecar(mindllm))
