"""Batches of an epoch: every trial once over all ranks, the same for the same seed and epoch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, get_worker_info

from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.sampler import epoch_batches
from bitllm.data.splits import make_split
from bitllm.data.store import open_store
from bitllm.errors import SplitError


@pytest.fixture(scope="module")
def trials_of(store):
    def make(*n_of_subject: int) -> TrialSet:
        index = np.repeat(np.arange(len(n_of_subject)), n_of_subject)
        rows = [(0,)] * len(index)
        return TrialSet(store, store.subjects[: len(n_of_subject)], index, rows, np.zeros(len(index), int))

    return make


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(4, 40), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 5),
)
def test_no_trial_twice_and_none_lost(trials_of, sizes, batch_size, n_ranks, one_subject, epoch):
    trials = trials_of(*sizes)
    per_rank = [
        epoch_batches(
            trials,
            batch_size=batch_size,
            seed=3,
            epoch=epoch,
            one_subject=one_subject,
            rank=rank,
            n_ranks=n_ranks,
        )
        for rank in range(n_ranks)
    ]
    assert len({len(batches) for batches in per_rank}) == 1
    assert all(len(batch) for batches in per_rank for batch in batches)
    seen = np.concatenate([batch for batches in per_rank for batch in batches])
    assert sorted(seen.tolist()) == list(range(sum(sizes)))
    if one_subject:
        for together in zip(*per_rank, strict=True):
            assert len(np.unique(trials.subject_index[np.concatenate(together)])) == 1


def test_the_order_follows_from_seed_and_epoch(trials_of):
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(trials_of(30, 20), batch_size=8, seed=seed, epoch=epoch)
        return np.concatenate(batches).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_fewer_trials_than_ranks_are_refused(trials_of):
    with pytest.raises(SplitError, match="expected at least one trial for each of 4 ranks, found 3"):
        epoch_batches(trials_of(3, 9), batch_size=2, seed=0, epoch=0, one_subject=True, n_ranks=4)


N_RANKS = 2
BATCHES = {"batch_size": 4, "seed": 5, "epoch": 1, "one_subject": True}


class Items:
    """Trials as a data loader wants them: number, sum of the betas, and the worker process that read them."""

    def __init__(self, trials: TrialSet) -> None:
        self.trials = trials

    def __len__(self) -> int:
        return len(self.trials)

    def __getitem__(self, index: int) -> tuple[int, float, int]:
        worker = get_worker_info()
        return (
            int(index),
            float(self.trials.betas(int(index)).sum(dtype=np.float64)),
            worker.id if worker else -1,
        )


def training_trials(path: str) -> TrialSet:
    store = open_store(path)
    return select_trials(store, make_split(store, "poster"), "train", averaged=False)


def loaded(trials: TrialSet, rank: int, n_workers: int) -> list[list[tuple[int, float, int]]]:
    batches = epoch_batches(trials, **BATCHES, rank=rank, n_ranks=N_RANKS)
    loader = DataLoader(Items(trials), batch_sampler=batches, num_workers=n_workers, collate_fn=list)
    return [list(batch) for batch in loader]


def run_rank(rank: int, path: str, folder: str) -> None:
    """One process of a group: loads its batches with two workers, and tells them to rank 0."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=N_RANKS
    )
    found = loaded(training_trials(path), torch.distributed.get_rank(), 2)
    everybodys: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybodys, found)
    if rank == 0:
        Path(folder, "everybodys.json").write_text(json.dumps(everybodys))
    torch.distributed.destroy_process_group()


def test_worker_processes_of_several_ranks_read_every_trial_once_and_the_same(store, tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(store.path), str(tmp_path)])
        for rank in range(N_RANKS)
    ]
    assert [process.wait(timeout=240) for process in ranks] == [0] * N_RANKS
    per_rank = json.loads((tmp_path / "everybodys.json").read_text())
    trials = training_trials(str(store.path))
    items = [item for batches in per_rank for batch in batches for item in batch]
    assert sorted(index for index, _, _ in items) == list(range(len(trials)))
    assert {worker for _, _, worker in items} == {0, 1}
    for index, total, _ in items:
        assert total == float(trials.betas(index).sum(dtype=np.float64))
    alone = [loaded(trials, rank, 0) for rank in range(N_RANKS)]
    assert [[[i for i, _, _ in b] for b in r] for r in per_rank] == [
        [[i for i, _, _ in b] for b in r] for r in alone
    ]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), *sys.argv[2:])
