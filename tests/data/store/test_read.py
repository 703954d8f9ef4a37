"""Opening a store: what it gives, and what is refused."""

import hashlib
import json
import pickle

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.store import open_store
from bitllm.data.store.write import write_rows
from bitllm.errors import DataError


def test_a_subject_is_opened_once_and_stays_on_disk(store):
    data = store.subject("subj01")
    assert store.subject("subj01") is data
    assert isinstance(data.betas, np.memmap)
    assert data.betas.shape == (len(data.trials), len(data.voxels))


def test_a_pickled_store_is_opened_anew(store):
    store.subject("subj01")
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).manifest == store.manifest


def test_rows_are_written_as_numpy_writes_them(tmp_path, rng):
    array = rng.normal(size=(7, 3, 2)).astype(np.float16)
    write_rows(tmp_path / "rows.npy", 7, iter([array[:4], array[4:]]))
    np.save(tmp_path / "whole.npy", array)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_an_unknown_subject_names_the_nearest(store):
    with pytest.raises(
        DataError, match="expected a subject of the store, found `subj3`; did you mean `subj03`"
    ):
        store.subject("subj3")


def test_an_image_that_nobody_saw_is_refused(store):
    with pytest.raises(
        DataError, match=r"expected images that a subject of the store saw, found nsd_id 73000 \(1 in"
    ):
        store.pictures([int(store.stimuli.index[0]), 73000])


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected a store \(a folder with manifest.json\), found none"):
        open_store(tmp_path)


@pytest.mark.parametrize("content", [{"version": 99}, {}, []])
def test_a_store_of_another_version_is_refused(copied_store, content):
    (copied_store / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"manifest.json: expected a store of version 3, found version (99|None)"
    ):
        open_store(copied_store)


def test_a_manifest_that_lacks_a_key_is_refused(copied_store):
    manifest = json.loads((copied_store / "manifest.json").read_text())
    del manifest["roi"]
    (copied_store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest.json: `roi`: field required.*make the store again"):
        open_store(copied_store)


@pytest.mark.parametrize("file", ["pictures.npy", "stimuli.parquet", "subjects/subj02/betas.npy"])
def test_an_incomplete_store_names_the_missing_file(copied_store, file):
    (copied_store / file).unlink()
    with pytest.raises(DataError, match=f"{file}: expected a file of the store, found none"):
        open_store(copied_store)


def test_truncated_betas_are_named(copied_store):
    path = copied_store / "subjects/subj02/betas.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"betas.npy: expected a whole array, found a damaged file"):
        open_store(copied_store).subject("subj02")


def test_tables_that_do_not_fit_the_betas_are_named(copied_store):
    path = copied_store / "subjects/subj02/voxels.parquet"
    voxels = pd.read_parquet(path)
    voxels[:-1].to_parquet(path)
    message = (
        rf"subj02: expected 36 trials × {len(voxels)} voxels \(manifest.json\), found 36 × {len(voxels) - 1}"
    )
    with pytest.raises(DataError, match=message):
        open_store(copied_store).subject("subj02")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PAR1 no footer PAR1"])
def test_a_damaged_table_is_one_line_that_names_it(copied_store, capsys, content):
    for file in ("captions", "stimuli", "subjects/subj02/trials", "subjects/subj02/voxels"):
        path = copied_store / f"{file}.parquet"
        whole = path.read_bytes()
        path.write_bytes(content)
        for command in ("inspect", "audit"):
            with pytest.raises(SystemExit, match="2"):
                main([command, str(copied_store)])
            err = capsys.readouterr().err
            assert f"{path}: expected a whole table, found a damaged file (" in err
            assert len(err.strip().splitlines()) == 1
        path.write_bytes(whole)


def test_the_manifest_and_the_checksum_of_a_store_keep_their_first_spelling(store):
    """Stores and records of runs from the first release hold the key `normalisation`."""
    written = json.loads((store.path / "manifest.json").read_text())
    assert "normalisation" in written and "normalization" not in written
    assert store.manifest.normalization == written["normalisation"]
    plain = json.dumps(written, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert store.sha256 == hashlib.sha256(plain.encode()).hexdigest()
