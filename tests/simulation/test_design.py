"""The design tables: NSD's counts, and numbers that start at one."""

import numpy as np
import pytest

from bitllm.simulation import SimulationConfig, preset
from bitllm.simulation.design import Design, make_design


@pytest.fixture(scope="module")
def demo() -> tuple[SimulationConfig, Design]:
    config = preset("demo")
    return config, make_design(config, seed=3)


def test_every_image_is_planned_exactly_three_times(demo: tuple[SimulationConfig, Design]) -> None:
    config, design = demo
    numbers, counts = np.unique(design.masterordering, return_counts=True)
    np.testing.assert_array_equal(numbers, np.arange(1, config.images_per_subject + 1))
    assert (counts == 3).all()


def test_the_shared_images_come_first_and_are_the_same_for_all(demo: tuple[SimulationConfig, Design]) -> None:
    config, design = demo
    np.testing.assert_array_equal(design.sharedix, np.sort(design.sharedix))
    for row in design.subjectim:
        np.testing.assert_array_equal(row[: config.n_shared], design.sharedix)
    assert not np.array_equal(design.sharedix, np.arange(1, config.n_shared + 1))


def test_all_other_images_belong_to_one_subject_and_ids_start_at_one(
    demo: tuple[SimulationConfig, Design],
) -> None:
    config, design = demo
    unique = design.subjectim[:, config.n_shared :]
    everything = np.concatenate([design.sharedix, unique.ravel()])
    np.testing.assert_array_equal(np.sort(everything), np.arange(1, config.n_images + 1))


def test_repetitions_and_their_counts_by_session_agree_with_a_plain_count(
    demo: tuple[SimulationConfig, Design],
) -> None:
    config, design = demo
    seen: dict[int, int] = {}
    counts = np.zeros((3, max(config.sessions)), dtype=int)
    for trial, image in enumerate(design.masterordering.tolist()):
        times = seen.get(image, 0)
        assert design.repetition[trial] == times
        counts[times, trial // config.trials_per_session] += 1
        seen[image] = times + 1
    np.testing.assert_array_equal(counts, design.basiccnt)


@pytest.mark.parametrize("seed", range(5))
def test_the_last_subject_saw_at_least_205_shared_images(seed: int) -> None:
    config = preset("demo")
    shown = make_design(config, seed=seed).masterordering[: config.sessions[-1] * config.trials_per_session]
    assert len(np.unique(shown[shown <= config.n_shared])) >= 205


def test_runs_hold_the_session_s_trials_and_start_and_end_blank(
    demo: tuple[SimulationConfig, Design],
) -> None:
    config, design = demo
    assert (design.stimpattern.sum((1, 2)) == config.trials_per_session).all()
    assert not design.stimpattern[:, :, [0, -1]].any()
    bench = make_design(preset("bench"), seed=0)
    assert bench.trials_per_run.tolist() == [63, 62] * 6


def test_repeats_are_spread_over_sessions(demo: tuple[SimulationConfig, Design]) -> None:
    config, design = demo
    session = np.argsort(design.masterordering, kind="stable").reshape(-1, 3) // config.trials_per_session
    n_sessions = np.array([len(set(row)) for row in session.tolist()])
    assert all((n_sessions == n).mean() > 0.05 for n in (1, 2, 3))
