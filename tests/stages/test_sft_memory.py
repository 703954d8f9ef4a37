"""Questions about earlier trials: a trace that is planted in the betas is read, and without one nothing is."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from bitllm.data.dataset import select_trials
from bitllm.data.store import open_store
from bitllm.data.tasks import exchanges
from bitllm.data.tasks.sources import add_tasks, memory_from
from bitllm.errors import ConfigError
from bitllm.evaluation.held_out import read_held_out
from bitllm.evaluation.pairing import other_images
from bitllm.evaluation.questions import TrainingAnswers, question_rows
from bitllm.evaluation.runs import open_checkpoints
from bitllm.evaluation.task_results import tasks_result
from bitllm.stages.rft import RftConfig, _mixture
from bitllm.stages.sft import SftConfig
from bitllm.toy_models import SmallLlmConfig, train_small_llm
from bitllm.training.loop import OptimizerConfig, RunContext

TASKS = {"caption": 1.0, "seen": 9.0}
LLM = SmallLlmConfig(
    width=64, layers=2, heads=2, optimizer=OptimizerConfig(steps=150, batch_size=32, learning_rate=5e-3)
)
SFT = SftConfig(
    encoder="trained",
    adapter_layers=(0, 1),
    tasks=TASKS,
    optimizer=OptimizerConfig(steps=200, batch_size=32, learning_rate=1e-2, warmup_steps=5),
    validate_every=50,
)


def with_trace(subject):
    """A subject whose right hemisphere responds more, and the left less, if the image was shown before."""
    is_old = (subject.trials["repetition"] > 1).to_numpy()[:, None]
    side = np.sign(subject.voxels["x_mm"].to_numpy())
    return replace(subject, betas=np.asarray(subject.betas) + (4 * is_old * side).astype(np.float16))


@pytest.fixture(scope="module")
def store(easy, tmp_path_factory):
    """The easy store with questions about earlier trials."""
    place = tmp_path_factory.mktemp("memory") / "store"
    shutil.copytree(easy.store.path, place)
    plain = open_store(place)
    return add_tasks(plain, memory_from(plain))


@pytest.fixture(scope="module")
def llm(store, tmp_path_factory):
    """A small LLM with the words of the questions."""
    folder = tmp_path_factory.mktemp("words")
    train_small_llm(store, folder / "llm", LLM, seed=0, tasks=TASKS)
    return folder


@pytest.fixture(scope="module", params=["trace", "none"])
def asked(request, easy, store, llm, easy_sft, tmp_path_factory):
    """Name, held-out trials, rows, questions and result of a system that was trained with the trace, or without."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "align").symlink_to(easy.folder / "align")
    (folder / "llm").symlink_to(llm / "llm")
    seen = store.with_voxels(with_trace) if request.param == "trace" else store
    easy_sft(easy._replace(folder=folder, store=seen), folder / "sft", SFT)
    held_out = read_held_out(seen, easy.split, averaged=False)
    found = [
        one for one in exchanges(seen, tasks=["seen"], of_trials=True) if one.subject == held_out.subject
    ]
    found = [one for one in found if one.nsd_id in held_out.nsd_id]
    system = open_checkpoints({"sft": folder / "sft"}, seen).load("sft")
    rows = question_rows(
        system, held_out, {"seen": found}, TrainingAnswers({}), controls=(), seed=0, max_new_tokens=3
    )
    about = {
        "answer_type": "yes/no",
        "metric": "",
        "source": "",
        "license": "",
        "n_available": 1,
        "n_options": 2,
    }
    result = tasks_result(rows, {"seen": about}, 0).tasks["seen"]
    return request.param, held_out, rows, found, result


def test_a_planted_trace_is_read_and_without_one_nothing_is(asked):
    name, _, _, found, result = asked
    real = result.inputs["real"].scores["likelihood"].value
    difference = result.inputs["permuted"].real_minus_this["likelihood"]
    assert result.n_questions == len(found) >= 12
    if name == "trace":
        assert real > 80 and difference.value > 20
    else:
        assert abs(difference.value) < 20


def test_every_question_is_about_its_own_trial(asked):
    _, held_out, rows, found, _ = asked
    assert set(rows["trials"]) == {"single"}
    row_of = {rows[0]: row for row, rows in enumerate(held_out.trials.rows)}
    real = rows[rows["input"] == "real"]
    assert real["nsd_id"].tolist() == [int(held_out.nsd_id[row_of[one.row]]) for one in found]
    assert real["accepted"].tolist() == [one.answers[0][0] for one in found]


def test_betas_of_another_image_are_of_the_same_session(asked):
    held_out = asked[1]
    order = other_images(held_out, seed=0, within_session=True).order
    sessions = held_out.trials.sessions()
    assert (sessions[order] == sessions).all()
    assert (held_out.nsd_id[order] != held_out.nsd_id).all()


def test_rft_refuses_questions_about_single_trials(easy, store):
    trials = select_trials(store, easy.split, "train", averaged=False)
    with pytest.raises(ConfigError, match=r"rft.tasks.seen: expected questions about images"):
        _mixture(store, trials, RftConfig(tasks={"caption": 1.0, "seen": 1.0}), RunContext())
