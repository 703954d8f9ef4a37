"""MindEye, MindEye2 and MindLLM as they are distributed, against the arrays that were put into the files."""

import io
import shutil
import tarfile

import h5py
import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.audit import audit
from bitllm.data.formats.processed import read_processed
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.io.tars import read_samples
from bitllm.data.store import open_store
from bitllm.errors import DataError


def sidecar(source, **changed) -> Sidecar:
    return Sidecar(**{"captions": (source.captions_file,), "voxels": source.voxels} | changed)


def plant(path, name, content=b"x", kind=tarfile.REGTYPE) -> None:
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
        archive.addfile(member, io.BytesIO(content))


def refused(source, match, **changed) -> None:
    with pytest.raises(DataError, match=match):
        read_processed("mindeye", source.root, sidecar(source, **changed))


def test_a_store_has_the_real_repeats_in_the_tars_order(mindeye, prepared, require_equal):
    reading = read_processed("mindeye", mindeye.root, sidecar(mindeye))
    store = prepared(reading)
    require_equal(store, "subj01", mindeye, mindeye.betas)
    assert store.stimuli["part"].tolist() == ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    assert store.stimuli["shared"].tolist() == [False] * 10 + [True] * 2
    repeats = [sum(mindeye.nsd_id[:row] == n) for row, n in enumerate(mindeye.nsd_id)]
    assert store.subject("subj01").trials["repetition"].tolist() == repeats
    assert "session 1" in reading.notes[0]


def test_a_copy_of_a_tar_is_named(mindeye):
    path = mindeye.root / "train/train_subj01_0.tar"
    path.with_name("train_subj01_0 (1).tar").write_bytes(path.read_bytes())
    refused(mindeye, r"train_subj01_0 \(1\)\.tar: .*`0 \(1\)`")


def test_notes_on_a_table_of_places_reach_the_reading(mindeye, tmp_path):
    path = mindeye.voxels / "subj01.tsv"
    pd.read_csv(path, sep="\t").assign(area="V1").to_csv(path, sep="\t", index=False)
    reading = read_processed("mindeye", mindeye.root, sidecar(mindeye))
    assert [note for note in reading.notes if "`area`" in note]


def test_coco_annotations_go_through_the_table_of_nsd_ids(mindeye, tmp_path, prepared):
    table = tmp_path / "nsd_stim_info_merged.csv"
    rows = "\n".join(f"{n},{1000 - n},{n >= 10}" for n in range(12))
    table.write_text(f"nsdId,cocoId,shared1000\n{rows}\n")
    annotations = [f'{{"image_id": {1000 - n}, "caption": "photo {n}"}}' for n in range(12)]
    coco = tmp_path / "captions_train2017.json"
    coco.write_text(f'{{"annotations": [{",".join(annotations)}]}}')
    store = prepared(
        read_processed("mindeye", mindeye.root, sidecar(mindeye, captions=(coco,), stimulus_table=table))
    )
    assert store.captions == {n: (f"photo {n}",) for n in range(12)}
    assert store.stimuli["coco_id"].tolist() == [1000 - n for n in range(12)]
    refused(mindeye, r"COCO ids are unknown; add NSD's table", captions=(coco,))
    table.write_text(f"nsdId,cocoId,shared1000\n{rows}\n".replace("10,990,True", "10,990,False"))
    refused(mindeye, r"NSD ids are 0-based, these look 1-based", captions=(coco,), stimulus_table=table)
    table.write_text("nsdId,cocoId,shared1000\n1,5,False\n")
    refused(mindeye, r"expected the NSD id 0 ", stimulus_table=table)


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("/etc/evil.npy", tarfile.REGTYPE, "leads out"),
        ("../../evil.npy", tarfile.REGTYPE, "leads out"),
        ("a\\..\\evil.npy", tarfile.REGTYPE, "leads out"),
        ("sample9.jpg", tarfile.SYMTYPE, "a link"),
        ("sample9.jpg", tarfile.LNKTYPE, "a link"),
        ("sample9.jpg", tarfile.CHRTYPE, "a link or a device"),
    ],
)
def test_an_unsafe_member_is_refused(mindeye, name, kind, found):
    path = mindeye.root / "train/train_subj01_0.tar"
    plant(path, name, b"x" if kind == tarfile.REGTYPE else b"", kind)
    refused(mindeye, rf"train_subj01_0.tar: expected plain files .*found .*{found}.*do not use this archive")


def test_a_bomb_is_refused_by_its_declared_size(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("sample0.nsdgeneral.npy")
        member.size = 2_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert path.stat().st_size < 5_000
    with pytest.raises(DataError, match=r"bomb.tar.gz: .*found 2,000,000 bytes \(at most 100,000\)"):
        list(read_samples(path, ("nsdgeneral.npy",), member_bytes=100_000))


def test_a_bomb_of_many_moderate_members_is_refused_by_their_sum(tmp_path, monkeypatch):
    monkeypatch.setattr("bitllm.data.io.tars._ALWAYS_UNPACKED", 6_500_000)
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(9):
            member = tarfile.TarInfo(f"sample{number}.nsdgeneral.npy")
            member.size = 1_000_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert path.stat().st_size < 10_000
    with pytest.raises(
        DataError, match=r"at most 2,500,000 bytes of nsdgeneral.npy, .* `sample2.nsdgeneral.npy`; do"
    ):
        list(read_samples(path, ("nsdgeneral.npy",), kept_bytes=2_500_000))
    with pytest.raises(
        DataError, match=r"unpack to at most 200 times as much, .* `sample6.nsdgeneral.npy`; do not"
    ):
        list(read_samples(path, ("coco73k.npy",)))  # though none of it is kept


def test_a_tar_cut_off_is_refused(mindeye):
    path = mindeye.root / "train/train_subj01_0.tar"
    path.write_bytes(path.read_bytes()[:2000])
    refused(mindeye, r"train_subj01_0.tar: expected a whole tar, found one that is damaged or cut off")


def replaced(mindeye, make, **members) -> None:
    sample = make.mindeye_sample(0, np.zeros((1, 7), np.float16), mindeye.pictures[0])
    sample = {k: v for k, v in (sample | members).items() if v is not None}
    make.write_tar(mindeye.root / "train/train_subj01_9.tar", [sample])


def test_odd_samples_are_refused(mindeye, make):
    def odd(match, **members):
        replaced(mindeye, make, **{key.replace("_npy", ".npy"): value for key, value in members.items()})
        refused(mindeye, match)

    odd(
        r"expected a member .nsdgeneral.npy in every sample, found a sample with coco73k", nsdgeneral_npy=None
    )
    odd(r"repeats × 7 voxels.*found the shape \(3, 8\)", nsdgeneral_npy=make.npy(np.zeros((3, 8))))
    odd("1 to 3 of them real, found the shape .* and 4", num_uniques_npy=make.npy(np.array([4])))
    odd("expected a plain array in .coco73k.npy, found none", coco73k_npy=b"nonsense")
    odd("the NSD id 0 twice", coco73k_npy=make.npy(np.array([0])))
    odd("expected 0-based NSD ids, found -5", coco73k_npy=make.npy(np.array([-5])))
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    odd("expected a plain array in .nsdgeneral.npy", nsdgeneral_npy=pickled.getvalue())


def test_an_image_in_two_parts_is_refused(mindeye, make):
    for n, split in enumerate(("test", "train")):
        sample = make.mindeye_sample(n, np.zeros((1, 7), np.float16), mindeye.pictures[n])
        make.write_tar(mindeye.root / f"{split}/{split}_subj02_0.tar", [sample])
    refused(mindeye, r"an image in one part only, found the NSD id 0 in train and in test")


def test_nan_betas_leave_nothing_behind(mindeye, make, prepared, tmp_path):
    rows = np.zeros((2, 7), np.float16)
    rows[1, 3] = np.nan
    make.write_tar(
        mindeye.root / "test/test_subj01_9.tar", [make.mindeye_sample(7, rows, mindeye.pictures[7])]
    )
    refused(mindeye, r"the NSD id 7 twice")
    (mindeye.root / "train/train_subj01_0.tar").unlink()
    (mindeye.root / "train/train_subj01_1.tar").unlink()
    make.write_tar(
        mindeye.root / "train/train_subj01_0.tar", [make.mindeye_sample(0, rows, mindeye.pictures[0])]
    )
    (mindeye.root / "test/test_subj01_9.tar").unlink()
    reading = read_processed("mindeye", mindeye.root, sidecar(mindeye))
    with pytest.raises(DataError, match=r"found NaN or infinity in some trials of 1 voxels"):
        prepared(reading)
    assert not (tmp_path / "store").exists()


def test_what_lacks_is_asked_for(mindeye, tmp_path, make):
    refused(mindeye, r"the 7 voxels of subj01.*--nsd, or a folder", voxels=None)
    refused(mindeye, r"expected captions, found none in this format; name .* --captions", captions=())
    make.places(mindeye.root, "subj01", 8)
    refused(mindeye, r"subj01.tsv: expected 7 voxels, as in .*found 8")
    with pytest.raises(DataError, match=r"expected tars train/train_subj01_0.tar"):
        read_processed("mindeye", tmp_path, sidecar(mindeye))
    with pytest.raises(DataError, match=r"files of the subject `subj07`, found none"):
        read_processed("mindeye", mindeye.root, sidecar(mindeye), subjects=("subj07",))
    for path in mindeye.root.glob("test/*.tar"):
        path.unlink()
    refused(mindeye, r"expected test_subj01_0.tar, found no tar")


def test_tars_without_val_have_images_for_validation_drawn_from_train(mindeye, prepared):
    shutil.rmtree(mindeye.root / "val")
    reading = read_processed("mindeye", mindeye.root, sidecar(mindeye))
    assert any(
        "no image of the part val: 1 of 8 training images are set aside" in note for note in reading.notes
    )
    part = prepared(reading).stimuli["part"]
    assert part.value_counts().to_dict() == {"train": 7, "test": 2, "validation": 1}
    assert part.index[part == "test"].tolist() == [10, 11]


def h5py_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return h5py.File(path, "a")


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
    with pytest.raises(DataError, match=r"the row 23 of behav.npy, found the shape \(20, 7\)"):
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
    with pytest.raises(DataError, match=r"expected the COCO id 989"):
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


def test_places_are_those_of_nsds_own_store(mindeye, make, easy_release, prepared):
    # `valid` is of the betas, which are others here, and not of the places
    expected = open_store(easy_release / "store").subject("subj01").voxels.drop(columns="valid")
    for part, ids in (("train", range(8)), ("val", (8, 9)), ("test", (10, 11))):
        for path in (mindeye.root / part).glob("*.tar"):
            path.unlink()
        rows = np.ones((1, len(expected)), np.float16)
        samples = [make.mindeye_sample(n, rows, mindeye.pictures[n]) for n in ids]
        make.write_tar(mindeye.root / f"{part}/{part}_subj01_0.tar", samples)
    sidecar = Sidecar(captions=(mindeye.captions_file,), nsd=easy_release / "nsd")
    found = (
        prepared(read_processed("mindeye", mindeye.root, sidecar))
        .subject("subj01")
        .voxels.drop(columns="valid")
    )
    pd.testing.assert_frame_equal(found, expected)


def test_tars_of_another_region_than_nsds_are_refused(mindeye, easy_release):
    sidecar = Sidecar(captions=(mindeye.captions_file,), nsd=easy_release / "nsd")
    with pytest.raises(DataError, match=r"nsdgeneral.*voxels, as in .*found"):
        read_processed("mindeye", mindeye.root, sidecar)
