"""Choices made on test, as a run's own files tell of them; a clean run and one without records have no leak."""

import json

import pytest

from bitllm.cli import main
from bitllm.data.audit import audit
from bitllm.data.splits import Split, make_split, save_split, within_subject
from bitllm.errors import DataError


@pytest.fixture
def split(store) -> Split:
    return make_split(store, "poster")


@pytest.fixture
def run(split, tmp_path):
    """A run's folder: a split, a record of an honest choice in a stage's folder, a log."""
    save_split(split, tmp_path / "split.json")
    (tmp_path / "sft").mkdir()
    write_record(tmp_path, split)
    write_log(
        tmp_path, [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "test_cider": 9.0}]
    )
    return tmp_path


def write_record(run, split: Split, **changes) -> None:
    selection = {
        "part": "validation",
        "metric": "validation_cider",
        "subjects": list(split.train_subjects),
        "nsd_ids": sorted(split.validation_images),
    }
    record = {"split": split.sha256, "config": {"seed": 0}, "selection": selection | changes}
    (run / "sft" / "run.json").write_text(json.dumps(record))


def write_log(run, rows) -> None:
    (run / "sft" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_honest_run_has_neither_leaks_nor_notes(store, run):
    found = audit(store, run=run)
    assert (found["leaks"], found["notes"], found["is_clean"]) == ([], [], True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda s: {"part": "test"}, "choice made on test: {} chose by `validation_cider` on the test part"),
        (
            lambda s: {"nsd_ids": [*sorted(s.validation_images), max(s.test_images)]},
            "choice made on test: {} chose by `validation_cider` on test images, nsd_id",
        ),
        (
            lambda s: {"subjects": [*s.train_subjects, *s.test_subjects], "metric": None},
            "choice made on test: {} chose by `None` on test subjects, subj03",
        ),
    ],
)
def test_a_choice_made_on_test_is_named(store, run, split, capsys, changes, message):
    write_record(run, split, **changes(split))
    leaks = audit(store, run=run)["leaks"]
    expected = message.format(run / "sft/run.json")
    assert len(leaks) == 1 and leaks[0].startswith(expected), leaks
    with pytest.raises(SystemExit, match="1"):
        main(["audit", str(store.path), str(run)])
    assert f"leak: {expected}" in capsys.readouterr().out


def test_images_of_the_stores_test_part_are_test_whatever_the_split(store, tmp_path):
    develop = make_split(store, "develop")
    (tmp_path / "sft").mkdir()
    save_split(develop, tmp_path / "split.json")
    shared = int(store.stimuli.index[store.stimuli["part"] == "test"][0])
    write_record(tmp_path, develop, nsd_ids=[shared])
    assert f"on test images, nsd_id {shared} (1 in all)" in audit(store, run=tmp_path)["leaks"][0]


def test_within_subjects_a_choice_on_the_same_people_is_none_on_test(store, tmp_path):
    split = within_subject(store)
    (tmp_path / "sft").mkdir()
    save_split(split, tmp_path / "split.json")
    write_record(tmp_path, split)
    assert audit(store, run=tmp_path)["leaks"] == []


def test_a_record_of_another_split_is_named(store, run, split):
    record = json.loads((run / "sft/run.json").read_text())
    (run / "sft/run.json").write_text(json.dumps(record | {"split": "0" * 64}))
    leaks = audit(store, run=run)["leaks"]
    assert leaks == [
        f"result of another split: {run / 'sft/run.json'} carries {'0' * 12}, the run's split is {split.sha256[:12]}"
    ]


def test_split_and_store_may_stand_under_what_a_stage_learnt_from(store, run, split):
    record = json.loads((run / "sft/run.json").read_text())
    record["learnt_from"] = {"split": record.pop("split"), "store": store.sha256}
    (run / "sft/run.json").write_text(json.dumps(record))
    assert (audit(store, run=run)["leaks"], audit(store, run=run)["notes"]) == ([], [])
    record["learnt_from"] = {"split": "0" * 64, "store": "1" * 64}
    (run / "sft/run.json").write_text(json.dumps(record))
    found = audit(store, run=run)
    assert found["leaks"][0].startswith(f"result of another split: {run / 'sft/run.json'} carries {'0' * 12}")
    assert found["notes"] == [
        f"{run / 'sft/run.json'}: learnt from the store {'1' * 12}, this audit is of {store.sha256[:12]}"
    ]


def test_a_test_measure_before_the_end_of_training_is_named(store, run):
    write_log(run, [{"step": 10, "test_cider": 3.0}, {"step": 20, "loss": 1.0}])
    assert audit(store, run=run)["leaks"] == [
        f"test part looked at during training: {run / 'sft/log.jsonl'} logs `test_cider` at step 10"
    ]
    write_log(run, [{"loss": 2.0}, {"test_cider": 3.0}, {"loss": 1.0}])
    assert len(audit(store, run=run)["leaks"]) == 1
    write_log(run, [{"loss": 2.0}, {"loss": 1.0}, {"test_cider": 3.0}])
    assert audit(store, run=run)["leaks"] == []
    write_log(run, [{"step": 5, "loss": 2.0}, {"step": 5, "validation_loss": 3.0, "testing": 1}])
    (run / "sft/log.jsonl").open("a").write("half a li\n")
    assert audit(store, run=run)["leaks"] == []


def test_a_run_without_a_record_is_noted_and_clean(store, run, capsys):
    (run / "sft/run.json").write_text(json.dumps({"config": {}}))
    assert audit(store, run=run)["notes"] == [
        f"{run / 'sft/run.json'}: no record of how this run was chosen (`selection`)"
    ]
    (run / "sft/run.json").unlink()
    main(["audit", str(store.path), str(run)])
    said = capsys.readouterr().out
    assert (
        f"note: {run}: no record of how this run was chosen (run.json)\n" in said and "0 leaks found" in said
    )
    (run / "sft/run.json").write_bytes(b"\xff")
    assert audit(store, run=run)["is_clean"]


def test_a_run_is_audited_by_a_split_that_is_named(store, run, split, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("splits")
    save_split(split, elsewhere / "poster.json")
    (run / "split.json").unlink()
    with pytest.raises(DataError, match=r"split.json: expected the split of the run, found none; .*--split"):
        audit(store, run=run)
    main(["audit", str(store.path), str(run), "--split", str(elsewhere / "poster.json")])
    save_split(make_split(store, "develop"), elsewhere / "develop.json")
    save_split(split, run / "split.json")
    with pytest.raises(SystemExit, match="1"):
        main(["audit", str(store.path), str(run), "--split", str(elsewhere / "develop.json")])
    said = capsys.readouterr().out
    assert "leak: run of another split: " in said and "leak: result of another split: " in said
