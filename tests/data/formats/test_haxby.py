"""Haxby et al. 2001: the store equals the source, and broken input is one line."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.formats.haxby import CITATION, fetch_haxby, read_haxby
from bitllm.data.splits import LEAVE_ONE_RUN_OUT, leave_one_run_out
from bitllm.data.store import Store, open_store
from bitllm.data.store.write import write_store
from bitllm.errors import DataError
from bitllm.evaluation.categories import category_task, one_category_each
from made_up_haxby import AFFINE, CATEGORIES, make_up, write_volume

REAL = os.environ.get("BITLLM_HAXBY")


def prepared(folder: Path, out: Path) -> Store:
    found = read_haxby(folder)
    write_store(out, found.contents, found.settings)
    return open_store(out)


def block_means(series: np.ndarray, labels: list[str], runs: list[int]) -> list[tuple[int, str, np.ndarray]]:
    """Run, category and pattern of each block by plain numpy: a line is subtracted, then mean volumes 2 later."""
    found = []
    for run in sorted(set(runs)):
        rows = [n for n, one in enumerate(runs) if one == run]
        own, time = series[rows].astype(np.float64), np.arange(len(rows))
        line = np.polyfit(time, own, 1)
        own = own - (np.outer(time, line[0]) + line[1])
        own /= own.std(axis=0, ddof=1)
        start = 0
        while start < len(rows):
            stop = start
            while stop < len(rows) and labels[rows[stop]] == labels[rows[start]]:
                stop += 1
            if labels[rows[start]] != "rest":
                found.append((run + 1, labels[rows[start]], own[start + 2 : stop + 2].mean(axis=0)))
            start = stop
    return found


@pytest.mark.parametrize("is_slice", [False, True])
def test_the_store_holds_the_block_means_of_the_source(tmp_path, is_slice):
    made = make_up(tmp_path / "haxby2001", is_slice=is_slice)
    store = prepared(made.folder, tmp_path / "store")
    expected = block_means(made.series[made.mask].T, made.labels, made.runs)
    data = store.subject("subj1")
    assert len(expected) == len(data.trials) == 4 * len(CATEGORIES)
    assert data.trials["run"].tolist() == [run for run, _, _ in expected]
    betas = np.stack([betas for _, _, betas in expected])
    np.testing.assert_allclose(data.betas.astype(np.float64), betas, atol=2e-3)  # float16
    ijk = np.argwhere(made.mask)
    coords = data.voxels[["x_mm", "y_mm", "z_mm"]].to_numpy()
    np.testing.assert_allclose(coords, nib.affines.apply_affine(AFFINE, ijk), atol=1e-4)
    categories = [category for _, category, _ in expected]
    named = dict(zip(CATEGORIES, (*CATEGORIES[:6], "scrambled picture", "shoe"), strict=True))
    assert store.objects["category"].tolist() == [named[category] for category in categories]
    words = {"scissors": "a pair of scissors", "scrambledpix": "a scrambled picture"}
    for nsd_id, category in enumerate(categories):
        texts = store.captions[nsd_id]
        assert len(set(texts)) == 3
        assert all(words.get(category, f"a {category}") in text for text in texts)
    manifest = store.manifest
    assert (manifest.space, manifest.license, manifest.citation) == ("native", "CC BY-SA 3.0", CITATION)


def test_captions_of_a_category_differ_between_runs(tmp_path):
    store = prepared(make_up(tmp_path / "haxby").folder, tmp_path / "store")
    cats = [
        n for n, names in one_category_each(store, store.stimuli.index.tolist()).items() if names == "cat"
    ]
    assert len({store.captions[int(n)] for n in cats}) == len(cats)


def test_a_run_without_labels_is_left_out_with_a_note(tmp_path):
    made = make_up(tmp_path / "haxby")
    for category in CATEGORIES:
        made.replace_labels(f"{category} 2\n", "rest 2\n")
    found = read_haxby(made.folder)
    assert found.contents.subjects[0].trials["run"].unique().tolist() == [1, 2, 4]
    assert any("1 runs without labels" in note for note in found.notes)


def _second_shape(made):
    write_volume(made.folder / "subj1/mask4_vt.nii.gz", np.ones((5, 6, 5), np.int16))


def _moved(made):
    affine = AFFINE.copy()
    affine[0, 3] += 7
    write_volume(made.folder / "subj1/mask4_vt.nii.gz", made.mask.astype(np.int16), affine)


def _nan(made):
    values = made.series.astype(np.float32)
    values[2, 2, 2, 5] = np.nan
    write_volume(made.folder / "subj1/bold.nii.gz", values)


def _cut(made):
    path = made.folder / "subj1/bold.nii.gz"
    path.write_bytes(path.read_bytes()[:400])


BROKEN = {
    "a mask of another shape": (_second_shape, r"mask4_vt\.nii\.gz: .*\(5, 6, 5\)"),
    "a mask that lies elsewhere": (_moved, r"mask4_vt\.nii\.gz: .* 7 mm apart"),
    "an empty mask": (
        lambda made: write_volume(made.folder / "subj1/mask4_vt.nii.gz", np.zeros(made.mask.shape, np.int16)),
        r"mask4_vt\.nii\.gz",
    ),
    "no mask": (lambda made: (made.folder / "subj1/mask4_vt.nii.gz").unlink(), r"mask4_vt\.nii\.gz"),
    "no series": (lambda made: (made.folder / "subj1/bold.nii.gz").unlink(), r"bold\.nii\.gz"),
    "no labels": (lambda made: (made.folder / "subj1/labels.txt").unlink(), r"labels\.txt"),
    "a series cut short": (_cut, r"bold\.nii\.gz"),
    "one volume": (
        lambda made: write_volume(made.folder / "subj1/bold.nii.gz", made.series[..., 0]),
        r"\(5, 6, 4\)",
    ),
    "not a number in the series": (_nan, "NaN or infinity in 1 voxels"),
    "a label too few": (lambda made: made.replace_labels("rest 0\n", "", 1), r"expected \d+ labels"),
    "an unknown category": (lambda made: made.replace_labels("shoe", "shoes"), "did you mean `shoe`"),
    "a run that is no number": (lambda made: made.replace_labels("rest 1", "rest x", 1), "`rest x`"),
    "runs out of order": (lambda made: made.replace_labels("rest 0\n", "rest 3\n", 1), "order of the runs"),
    "no blocks": (
        lambda made: [made.replace_labels(category, "rest") for category in CATEGORIES],
        "found them in 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line_that_names_the_file(tmp_path, capsys, name):
    damage, said = BROKEN[name]
    made = make_up(tmp_path / "haxby", n_runs=4)
    damage(made)
    with pytest.raises(DataError, match=said):
        read_haxby(made.folder)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "haxby", str(made.folder), str(tmp_path / "store")])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_another_folder_and_another_subject_are_refused(tmp_path):
    with pytest.raises(DataError, match="none: expected the folder"):
        read_haxby(tmp_path / "none")
    with pytest.raises(DataError, match="fetch_haxby"):
        read_haxby(tmp_path)
    with pytest.raises(DataError, match="did you mean `subj1`"):
        read_haxby(make_up(tmp_path / "haxby").folder, subjects=["subj3"])


def test_download_calls_nilearn_and_prepares_what_it_leaves(tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(data_dir, subjects, verbose):
        asked.append((data_dir, subjects))
        made = make_up(Path(data_dir) / "haxby2001")
        return {"func": [str(made.folder / "subj1" / "bold.nii.gz")]}

    monkeypatch.setattr("nilearn.datasets.fetch_haxby", fetch)
    folder, out = tmp_path / "data", tmp_path / "store"
    main(["prepare", "haxby", str(folder), str(out), "--download", "--subjects", "subj1"])
    assert asked == [(str(folder), [1])]
    assert open_store(out).subjects == ("subj1",)
    assert "CC BY-SA 3.0" in capsys.readouterr().out


def test_without_folder_and_network_there_is_one_line(tmp_path, monkeypatch, capsys):
    def fetch(**_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("nilearn.datasets.fetch_haxby", fetch)
    with pytest.raises(DataError, match="Name or service not known"):
        fetch_haxby(tmp_path, "subj2")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--recipe", "haxby-small", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "--data.haxby FOLDER" in line
    assert len(line.splitlines()) == 1


@pytest.mark.skipif(REAL is None, reason="BITLLM_HAXBY names no folder with the slice of Haxby et al. 2001")
def test_the_real_slice_decodes_by_nearest_class_means_and_not_with_permuted_labels(tmp_path):
    store = prepared(Path(str(REAL)), tmp_path / "store")
    data = store.subject("subj1")
    assert data.betas.shape == (96, 530)
    splits = [leave_one_run_out(store, fold) for fold in range(1, 13)]
    assert all(LEAVE_ONE_RUN_OUT in split.name for split in splits)
    categories = one_category_each(store, store.stimuli.index.tolist())
    task = category_task(store, splits, categories, seed=0, n_permutations=100)
    assert task.classifier is not None
    assert task.classifier.value > 45
    assert abs(task.permuted_mean - task.chance) < 2
    assert task.permuted_best < 30
