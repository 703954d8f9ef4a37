"""Several processes share a run: each part is made once, and the captions are those of one process."""

import os
import threading
import time
from functools import partial

import pytest
import yaml

from bitllm.evaluation.scoring.captions_file import read_captions
from bitllm.pipeline import whole
from bitllm.pipeline.recipe import Recipe, merged, read_recipe
from bitllm.pipeline.run import Run
from bitllm.pipeline.steps import Steps, Unit


def quiet(*_):
    pass


def test_two_processes_divide_the_units(tmp_path):
    """Each unit is done by one of them, and neither ends before all are; at first they are at two places."""
    steps = [Steps(tmp_path / "out", quiet) for _ in range(2)]
    done, both_are_in = [], threading.Barrier(2, timeout=20)

    def work(which):
        def unit(name):
            if name in ("step 0", "step 1"):  # each process is in one of the two
                both_are_in.wait()
            steps[which].run(name, lambda: done.append(name), settings=None)

        units = {
            f"number {number}": Unit(f"place {number % 2}", partial(unit, f"step {number}"))
            for number in range(4)
        }
        steps[which].divide(units)
        ended.append(sorted(done))

    ended = []
    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert ended == [[f"step {number}" for number in range(4)]] * 2


def test_a_name_is_claimed_by_one_at_a_time_and_leaves_no_file(tmp_path):
    """Lock files are removed while others wait for them."""
    inside, most = [], []

    def work():
        steps = Steps(tmp_path / "out", quiet)
        for _ in range(150):
            with steps.claim("name", waits=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert (len(most), max(most)) == (600, 1)
    assert list((tmp_path / "out" / "steps").iterdir()) == []


@pytest.fixture
def pretend_cores(monkeypatch):
    """Two cores, whatever the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def of_smoke(folder, said=None):
    recipe = read_recipe("smoke")
    shared = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"processes": 2})})
    return Run(folder, shared, log=quiet if said is None else said.append)


def test_a_run_of_two_processes_gives_the_captions_of_one(demo_folder, tmp_path, pretend_cores, monkeypatch):
    folder, make = tmp_path / "shared", whole._make

    def of_helper():
        return [
            line for line in (folder / "steps" / whole.LOG).read_text().splitlines() if line.endswith(" s")
        ]

    def make_after_the_helper(run):
        """Take part once the second process has finished a step: on a busy machine this one would do all the work."""
        deadline = time.monotonic() + 240
        while not of_helper():
            assert time.monotonic() < deadline, "the second process made nothing"
            time.sleep(0.05)
        make(run)

    monkeypatch.setattr(whole, "_make", make_after_the_helper)
    whole.run_whole(of_smoke(folder))
    for name in of_smoke(folder).recipe.system_names:
        shared, alone = (read_captions(one / "captions" / f"{name}.jsonl") for one in (folder, demo_folder))
        assert [one.caption for one in shared] == [one.caption for one in alone]


@pytest.mark.parametrize(
    ("more", "n", "n_given"),
    [({}, 4, 4), ({"variants": {"prefix": None, "prefix_mlp": None, "no_align": None}}, 2, 1)],
)
def test_what_does_not_follow_one_another_can_be_made_at_once(demo_folder, tmp_path, more, n, n_given):
    """sft with its rft, and each variant; or CLIP and LLM, if they are not given."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"base": "smoke"} | more))
    recipe = read_recipe(str(tmp_path / "recipe.yaml"))
    store = {"data": recipe.data.model_copy(update={"store": demo_folder / "store"})}
    recipe = recipe.model_copy(update=store)
    assert whole._n_at_once(Run(tmp_path / "run", recipe)) == n
    there = {name: {"source": str(demo_folder / name)} for name in ("clip", "llm")}
    given = Recipe.parse(merged(recipe.model_dump(), there), source="given")
    assert whole._n_at_once(Run(tmp_path / "given", given)) == n_given


def test_a_process_that_fails_leaves_its_work_to_the_first(tmp_path, monkeypatch, pretend_cores):
    started, start = [], whole._start

    def start_and_wait(*words):
        started.append(start(*words))
        started[0].wait()
        return started[0]

    said, made = [], []
    monkeypatch.setattr(whole, "_start", start_and_wait)
    monkeypatch.setattr(whole, "_make", made.append)
    monkeypatch.setattr(whole.sys, "executable", "/bin/false")
    run = of_smoke(tmp_path / "run", said)
    with whole._helpers(run):
        whole._make(run)
    assert made == [run]
    assert "a second process ended early" in said[-1]


def test_the_second_process_ends_with_the_first(tmp_path, pretend_cores):
    """Here the first goes away while the second waits for a step that a third has."""
    run = of_smoke(tmp_path / "run")
    with run.steps.claim("unit clip"), run.steps.claim("simulate"):
        process = whole._start(run, tmp_path / "log", 1)
        while "under way in another process" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.stdin.close()
        assert process.wait(timeout=60) == 0
