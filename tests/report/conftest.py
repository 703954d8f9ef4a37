"""Invented results, curves and images for the report: none of these numbers was measured."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitllm.evaluation.results import (
    About,
    EncoderResult,
    GroupResult,
    Identification,
    InputResult,
    RegionResult,
    Results,
    RetrievalResult,
    SystemResult,
    TaskInput,
    TaskResult,
    TasksResult,
)
from bitllm.metrics.intervals import Estimate
from bitllm.report import RunFiles
from bitllm.report.gallery import Decoded, GalleryItem
from bitllm.report.questions import Example

SIMULATED = "simulated brain (demo preset, seed 0, simulation version 1)"
CIDER = {
    "sft": {"zero": 9.1, "shuffle": 11.2, "permuted": 4.8, "other_subject": 22.5, "noise": 6.0,
            "constant": 14.3, "nearest": 52.4, "llm_alone": 7.7},
    "rft": {"zero": 10.4, "shuffle": 12.9, "permuted": 5.2, "other_subject": 24.8, "noise": 6.6,
            "constant": 14.3, "nearest": 52.4, "llm_alone": 8.2},
    "prefix": {"zero": 9.0, "permuted": 5.0}, "prefix_mlp": {"permuted": 5.5}, "no_align": {"permuted": 14.9},
}  # fmt: skip
REAL = {"sft": (68.2, 19.4, 181), "rft": (74.9, 22.8, 163), "prefix": (61.3, 17.0, 170),
        "prefix_mlp": (57.9, 15.6, 166), "no_align": (15.8, 8.1, 12)}  # fmt: skip
N_TRAINABLE = {"sft": 1_182_724, "prefix": 49_344, "prefix_mlp": 1_180_032}
ABOUT = About(
    data=SIMULATED, is_simulated=True, subject="subj08", is_subject_trained_on=False, part="test",
    is_store_of_training=True, split="poster", split_sha256="9f2c4be1d07a" * 5 + "9f2c", store_sha256="5" * 64,
    n_images=218, n_trials=654, seed=0, llm="tiny", max_new_tokens=20, references_sha256="7" * 64, tokenizer="ptb",
    signal=1.0, how_chosen="chosen on validation images of subj07", command="bitllm demo --seed 0",
    git_revision="0123abc", versions={"bitllm": "0.2.0", "torch": "2.13.0"},
    seconds={"simulate": 21.4, "align": 48.2, "total": 282.1}, peak_memory_gb=2.31,
    not_run={"spice": "Java was not found"}, notes=("every reference was lower-cased",),
)  # fmt: skip


def around(value: float, half: float, p: float | None = None) -> Estimate:
    return Estimate(value, value - half, value + half, p)


def scores(cider: float, bleu: float) -> dict[str, Estimate]:
    values = {"CIDEr": cider, "BLEU-1": bleu + 36, "BLEU-4": bleu, "ROUGE-L": 27 + cider / 4}
    return {name: around(value, 0.07 * value) for name, value in values.items()}


def control(system: str, name: str) -> InputResult:
    cider = CIDER[system][name]
    is_constant = name in ("zero", "constant", "llm_alone")
    return InputResult(
        scores(cider, 3 + cider / 5), 1 if is_constant else 150, 0, 8.0, 218,
        {"CIDEr": around(REAL[system][0] - cider, 6.1, 0.0002)},
        {} if name in ("constant", "nearest") else
        {"per_caption": around(10.77, 1.3, 0.0002), "per_token": around(0.98, 0.1), "per_word": around(1.2, 0.12)},
    )  # fmt: skip


def system(name: str) -> SystemResult:
    cider, bleu, n_distinct = REAL[name]
    real = InputResult(scores(cider, bleu), n_distinct, 0, 8.2, 218)
    single = {}
    if name in ("sft", "rft"):
        permuted = InputResult(scores(5.3, 4.0), 260, 0, 8.6, 654, {"CIDEr": around(44.2, 3.0)})
        single = {"real": InputResult(scores(49.5, 14.2), 260, 0, 8.6, 654)}
        single |= {"permuted": permuted} if name == "sft" else {}
    controls = {one: control(name, one) for one in CIDER[name]}
    return SystemResult(
        {"real": real} | controls, single, N_TRAINABLE.get(name), questions() if name == "rft" else None
    )


def asked(score: float, lead: float | None, **more: Any) -> TaskInput:
    leads = {} if lead is None else {kind: around(lead, 4.0) for kind in ("decoded", "likelihood")}
    return TaskInput({"decoded": around(score - 1, 3.0), "likelihood": around(score, 3.0)}, 2, leads, **more)


def questions() -> TasksResult:
    """A yes/no task with every kind of input, and a dialogue with 100 candidates."""
    yes = {"yes_ratio": 0.61, "chosen_yes_ratio": 0.52}
    presence = {
        "real": asked(81.4, None, **yes),
        "permuted": asked(52.1, 29.3, bits=around(0.87, 0.1), **yes),
        "llm_alone": asked(50.0, 31.4, bits=around(0.9, 0.1), **yes),
        "most_frequent": asked(50.4, 31.0, **yes),
    }
    ranking = {"R@1": 0.31, "R@5": 0.5, "R@10": 0.7, "MRR": 0.44, "mean rank": 12.5}
    talk = {
        name: asked(31.0, None if name == "real" else 1.2, ranking=ranking) for name in ("real", "permuted")
    }
    about = {
        "metric": "exact match",
        "source": "derived",
        "license": "CC BY 4.0",
        "n_available": 500,
        "n_images": 90,
    }
    tasks = {
        "presence": TaskResult("yes/no", n_options=2, n_questions=300, inputs=presence, **about),
        "visdial": TaskResult("text", n_options=100, n_questions=500, inputs=talk, own_history=talk, **about),
    }
    scores = {"real": around(60.0, 2.0), "permuted": around(42.0, 2.0)}
    return TasksResult(
        tasks, scores, scores, {"permuted": around(18.0, 3.0)}, {"permuted": around(17.0, 3.0)}
    )


def retrieval(r1: float, r5: float, r10: float, rank: float) -> RetrievalResult:
    return RetrievalResult({1: r1, 5: r5, 10: r10}, around(r10, 0.06), 10 / 218, rank, 109.5, 218, 218)


def encoder() -> EncoderResult:
    found = {"real": retrieval(0.118, 0.376, 0.541, 9.0), "shuffle": retrieval(0.005, 0.023, 0.041, 112.0),
             "zero": retrieval(0.005, 0.018, 0.046, 109.5), "permuted": retrieval(0.0, 0.028, 0.05, 107.0),
             "single_trial": retrieval(0.07, 0.25, 0.392, 17.0)}  # fmt: skip
    curve = (
        Identification(2, Estimate(0.93, 0.9, 0.95), 0.5),
        Identification(10, Estimate(0.7, 0.65, 0.75), 0.1),
    )
    return EncoderResult(found, curve, (-0.0123, 0.0412), "image embedding")


def region(name: str, lost: float) -> RegionResult:
    return RegionResult(name, 120, around(lost, 0.1), around(0.01, 0.02), around(0.3, 0.1), around(1.0, 2.0),
                        around(4.0, 2.0))  # fmt: skip


@pytest.fixture(scope="session")
def results() -> Results:
    """Results with every part that an evaluation can have."""
    return Results(
        ABOUT,
        {name: system(name) for name in REAL},
        encoder(),
        {"rft - sft": around(6.7, 2.2, 0.0002), "sft - prefix": Estimate(6.9, 1.0, 12.0)},
        {"CIDEr": 96.4, "BLEU-1": 65.0, "BLEU-4": 24.5, "ROUGE-L": 49.2},
        (GroupResult("repetitions", "3", 200, around(75.0, 5.0), around(70.0, 5.0), around(1.1, 0.1)),
         GroupResult("category", "animals", 1)),
        Estimate(0.21, p=0.03),
        (region("streams:early", 0.2), region("streams:ventral", -0.4)),
        {"reward": (0.412, 0.538)},
    )  # fmt: skip


@pytest.fixture(scope="session")
def about() -> About:
    """Where the numbers of the results come from."""
    return ABOUT


@pytest.fixture(scope="session")
def with_lead():
    """Results with another difference of a control: ``with_lead(results, "permuted", Estimate(…), system="rft")``."""

    def change(found: Results, name: str, difference: Estimate | None, *, system: str = "rft") -> Results:
        one = found.systems[system]
        changed = replace(
            one.averaged[name], real_minus_this={} if difference is None else {"CIDEr": difference}
        )
        return replace(
            found, systems=found.systems | {system: replace(one, averaged=one.averaged | {name: changed})}
        )

    return change


@pytest.fixture(scope="session")
def curves() -> dict[str, list[dict[str, Any]]]:
    """Log rows of the three stages and a baseline."""
    sft = [{"step": step, "loss": falling(step), "learning_rate": 1e-3} for step in range(10, 601, 10)]
    return {
        "align": [{"step": step, "loss": falling(step), "validation_R@10": step / 800,
                   "validation_chance_R@10": 0.046} for step in range(50, 401, 50)],
        "sft": [*sft, {"step": 600, "validation_loss": 1.3}],
        "rft": [{"step": step, "reward": 0.41 + step / 1200, "reward_cider": 0.3, "reward_bertscore": 0.55,
                 "reward_ip": 0.45, "kl": step / 3000, "length": 8.9, "distinct": 0.93, "validation_cider": 65.0,
                 "validation_real_minus_permuted": 60.0} for step in range(2, 151, 2)],
        "prefix": sft,
    }  # fmt: skip


@pytest.fixture(scope="session")
def gallery() -> list[GalleryItem]:
    """Twelve images with captions of two systems and two controls."""
    groups = ["random"] * 4 + ["best"] * 4 + ["median"] * 2 + ["worst"] * 2
    return [item(number, group) for number, group in enumerate(groups)]


@pytest.fixture(scope="session")
def run(results, curves, gallery) -> RunFiles:
    """A whole run without brain maps."""
    example = Example(73, "Is there a dog?", "yes", "yes", "no", 1.0)
    return RunFiles("one", results, curves, gallery, None, {"presence": [example]})


def falling(step: int) -> float:
    return float(1.2 + 2.2 * np.exp(-step / 90))


def item(number: int, group: str) -> GalleryItem:
    pixels = np.full((64, 64, 3), 10 * number, np.uint8)
    pixels[20:40, 20:40] = 200
    decoded = (
        Decoded("rft", "two red dogs on a beach", 131.4 - number, False),
        Decoded("sft", "a red dog runs on the beach", 88.0, False),
        Decoded("rft, all betas zero", "a man rides a horse", 3.2, True),
        Decoded("rft, another image's betas", "three blue cars", 0.0, True),
    )
    references = ("two red dogs play on the sand", "a pair of red dogs near the sea")
    return GalleryItem(number, pixels, references, decoded, group)
