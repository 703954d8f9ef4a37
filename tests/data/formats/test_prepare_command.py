"""`bitllm prepare` of every format by the command line: what it says, and what it leaves behind."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.splits import check_split, load_split
from bitllm.data.store import open_store

PAGE = Path(__file__).parents[3] / "docs/bring-your-own-data.md"


@pytest.fixture(name="refused")
def _refused(tmp_path, capsys):
    """Run a command that must fail: exit status 2, one line, nothing written; return the line."""

    def refused(*words) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            main(["prepare", *map(str, words)])
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("bitllm: ")
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return refused


def test_a_table_is_prepared(table, tmp_path, capsys):
    main(["prepare", "table", str(table.root / "header.yaml"), str(tmp_path / "store")])
    assert "store written" in " ".join(capsys.readouterr().out.split())
    assert open_store(tmp_path / "store").subject("s1").betas.shape == table.betas.shape


def test_mindeye_is_prepared(mindeye, tmp_path):
    words = ["--captions", str(mindeye.captions_file), "--voxels", str(mindeye.voxels)]
    main(["prepare", "mindeye", str(mindeye.root), str(tmp_path / "store"), *words])
    assert open_store(tmp_path / "store").subject("subj01").betas.shape == mindeye.betas.shape


def test_nan_in_a_table_leaves_nothing(table, change_header, tmp_path, refused):
    volume = np.asanyarray(nib.load(table.root / "betas.nii.gz").dataobj) / np.float32(300)
    volume[..., 3] = np.nan
    nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])), table.root / "nan.nii")
    header = change_header(betas="nan.nii", scale=1.0)
    assert "NaN or infinity" in refused("table", header, tmp_path / "store")


def test_a_cut_tar_of_mindeye_is_one_line(mindeye, tmp_path, refused):
    path = mindeye.root / "train/train_subj01_0.tar"
    path.write_bytes(path.read_bytes()[:2000])
    words = ("--captions", mindeye.captions_file, "--voxels", mindeye.voxels)
    assert "damaged or cut off" in refused("mindeye", mindeye.root, tmp_path / "store", *words)


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        (["mindeye2", "data"], "betas_all_subj01_fp32_renorm.hdf5", "expected train/*.tar"),
        (["mindllm", "data"], "nsd0/subject_1.h5", "subject_1.h5: expected MindLLM's trials as whole HDF5"),
        (["algonauts", "data"], "subj01/nothing", "expected train-0001_nsd-NNNNN.png"),
        (["glmsingle", "data/TYPED.hdf5", "--trials", "t.tsv", "--subject", "s1", "--captions", "c.json",
          "--places", "m.nii"], "TYPED.hdf5", "TYPED.hdf5: expected GLMsingle's output as whole HDF5"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path, monkeypatch, refused, words, name, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    assert said in refused(words[0], words[1], "store", *words[2:])


def test_a_picture_that_is_none_is_named_before_any_betas_are_read(table, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("bitllm.data.store.write.run_jobs", lambda *_, **__: pytest.fail("betas first"))
    (table.root / "pictures/9.png").write_text("<html>not found</html>")
    assert "9.png: expected a picture, found a file that does not" in refused(
        "table", table.root / "header.yaml", tmp_path / "store"
    )
    (table.root / "pictures/9.png").unlink()
    assert "expected a picture of `9`" in refused("table", table.root / "header.yaml", tmp_path / "store")


def test_the_worked_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    text, _, after = PAGE.read_text(encoding="utf-8").split("## A worked example")[1].partition("\n## ")
    blocks = dict(re.findall(r"```(python|yaml|bash)\n(.*?)```", text, flags=re.DOTALL))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "header.yaml").write_text(blocks["yaml"])
    exec(compile(blocks["python"], str(PAGE), "exec"), {})
    commands = [line.split()[1:] for line in blocks["bash"].splitlines()]
    assert commands[0][:2] == ["prepare", "table"]
    for words in commands:
        main(words)
    assert "lab-store" in capsys.readouterr().out
    store = open_store(tmp_path / "lab-store")
    assert store.subject("s1").betas.shape == (80, 30)
    command = next(line for line in after.splitlines() if line.startswith("bitllm split"))
    main(command.split()[1:])
    split = load_split(tmp_path / "few.json")
    check_split(store, split)
    assert split.train_subjects == split.test_subjects == ("s1",)
