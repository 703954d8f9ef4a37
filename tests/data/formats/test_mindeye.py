"""MindEye1's tars against the arrays that were put into them."""

import io
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest

from bitllm.data.formats.processed import read_processed
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.io.tars import read_samples
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
    refused(mindeye, r"expected the NSD id 0 .*are these COCO ids", stimulus_table=table)


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
        member.size = 20_000_000
        archive.addfile(member, io.BytesIO(bytes(20_000_000)))
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match=r"bomb.tar.gz: .*found 20,000,000 bytes \(at most 1,000,000\)"):
        list(read_samples(path, ("nsdgeneral.npy",), member_bytes=1_000_000))


def test_a_bomb_of_many_moderate_members_is_refused_by_their_sum(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(9):
            member = tarfile.TarInfo(f"sample{number}.nsdgeneral.npy")
            member.size = 10_000_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert path.stat().st_size < 100_000
    with pytest.raises(
        DataError, match=r"at most 25,000,000 bytes of nsdgeneral.npy, .* `sample2.nsdgeneral.npy`; do"
    ):
        list(read_samples(path, ("nsdgeneral.npy",), kept_bytes=25_000_000))
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
    refused(mindeye, r"where the 7 voxels of subj01 lie.*--nsd, or a folder", voxels=None)
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
