"""Leave-one-run-out: folds share no run, training labels can be permuted, and nothing of it is a leak."""

from dataclasses import replace

import pytest

from bitllm.cli import main
from bitllm.data.audit import audit
from bitllm.data.dataset import select_trials
from bitllm.data.formats.haxby import read_haxby
from bitllm.data.splits import (
    check_split,
    leave_one_run_out,
    load_split,
    runs_of,
    save_split,
    with_checksum,
    with_permuted_labels,
)
from bitllm.data.store import open_store
from bitllm.data.store.write import write_store
from bitllm.errors import SplitError
from made_up_haxby import make_up

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    found = read_haxby(make_up(root / "haxby", n_runs=4).folder)
    write_store(root / "store", found.contents, found.settings)
    return open_store(root / "store")


def test_folds_never_share_a_run_between_parts_and_test_every_image_once(person):
    trials = person.subject("subj1").trials
    tested = []
    for fold in range(1, len(runs_of(person, "subj1")) + 1):
        split = leave_one_run_out(person, fold)
        check_split(person, split)
        runs = {}
        for part in PARTS:
            rows = [row for item in select_trials(person, split, part, averaged=False).rows for row in item]
            runs[part] = set(trials["run"].iloc[rows])
        assert runs["test"] == {fold}
        assert len(runs["validation"]) == 1
        assert len(runs["train"]) == 2
        assert len(set.union(*runs.values())) == 4
        tested += sorted(split.test_images)
    assert sorted(tested) == person.stimuli.index.tolist()


def test_a_fold_is_saved_and_no_leak_although_the_subject_is_in_training(person, tmp_path):
    split = leave_one_run_out(person, 2)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert audit(person, split=split)["leaks"] == []
    main(
        [
            "split",
            str(person.path),
            str(tmp_path / "by-command.json"),
            "--preset",
            "leave-one-run-out",
            "--fold",
            "2",
        ]
    )
    assert load_split(tmp_path / "by-command.json") == split


def test_a_fold_with_a_run_in_two_parts_is_refused(person):
    split = leave_one_run_out(person, 1)
    moved = min(split.train_images)
    leaking = with_checksum(
        replace(
            split,
            train_images=split.train_images - {moved},
            validation_images=split.validation_images | {moved},
        )
    )
    with pytest.raises(SplitError, match="session 1, run 3"):
        check_split(person, leaking)


def test_permuted_labels_exchange_images_within_runs_of_training_and_validation_only(person):
    split = leave_one_run_out(person, 1)
    permuted = with_permuted_labels(split, 5)
    trials = person.subject("subj1").trials
    for part in PARTS:
        true, other = (select_trials(person, one, part, averaged=False) for one in (split, permuted))
        assert true.rows == other.rows
        n_same = (true.nsd_id == other.nsd_id).sum()
        assert (n_same == len(true)) == (part == "test")
        run = trials["run"].to_numpy()
        rows = [row for (row,) in other.rows]
        for number in set(run[rows]):
            own = run[rows] == number
            assert sorted(other.nsd_id[own]) == sorted(true.nsd_id[own])
    again = select_trials(person, with_permuted_labels(split, 5), "train", averaged=False)
    assert again.nsd_id.tolist() == select_trials(person, permuted, "train", averaged=False).nsd_id.tolist()


def test_a_split_with_permuted_labels_is_another_one_and_survives_its_file(person, tmp_path):
    split = leave_one_run_out(person, 1)
    permuted = with_permuted_labels(split, 5)
    assert permuted.sha256 != split.sha256
    save_split(permuted, tmp_path / "permuted.json")
    assert load_split(tmp_path / "permuted.json") == permuted
    check_split(person, permuted)


@pytest.mark.parametrize("fold", [0, 5])
def test_a_fold_that_the_store_does_not_have_is_refused(person, fold):
    with pytest.raises(SplitError, match=f"4 runs and the fold {fold}"):
        leave_one_run_out(person, fold)


def test_images_of_several_runs_and_several_subjects_are_refused(store):
    with pytest.raises(SplitError, match="one subject"):
        leave_one_run_out(store, 1)
    with pytest.raises(SplitError, match="shown in one run only"):
        leave_one_run_out(store, 1, subject=store.subjects[0])
    with pytest.raises(SplitError, match="--fold"):
        main(["split", str(store.path), "new.json", "--fold", "1", "--debug"])
