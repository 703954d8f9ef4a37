"""Invented results, curves and pictures for the report: none of these numbers was measured."""

from typing import Any

import numpy as np
import pytest

from bitllm.report import GalleryItem

CONTROL_NAMES = (
    "zero",
    "shuffle",
    "permuted",
    "other_subject",
    "noise",
    "constant",
    "nearest",
    "llm_alone",
)
CIDER = {
    "sft": {"zero": 9.1, "shuffle": 11.2, "permuted": 4.8, "other_subject": 22.5, "noise": 6.0,
            "constant": 14.3, "nearest": 52.4, "llm_alone": 7.7},
    "rft": {"zero": 10.4, "shuffle": 12.9, "permuted": 5.2, "other_subject": 24.8, "noise": 6.6,
            "constant": 14.3, "nearest": 52.4, "llm_alone": 8.2},
}  # fmt: skip


def _retrievals() -> dict[str, dict[str, float]]:
    """The encoder's retrieval under real betas and controls."""
    return {
        "real": _retrieval(0.118, 0.376, 0.541, 9, 0.473, 0.606),
        "shuffle": _retrieval(0.005, 0.023, 0.041, 112, 0.018, 0.069),
        "zero": _retrieval(0.005, 0.018, 0.046, 109.5, 0.018, 0.073),
        "permuted": _retrieval(0.0, 0.028, 0.050, 107, 0.023, 0.078),
        "single_trial": _retrieval(0.07, 0.25, 0.392, 17, 0.35, 0.43),
    }


def _single_trials() -> dict[str, dict]:
    return {
            "sft": {**_scores(49.5, 14.2, 39.0, 260, 8.6), "n_trials": 654,
                    "intervals": _intervals(_scores(49.5, 14.2, 39.0, 260, 8.6)),
                    "real - permuted": {"CIDEr": _difference(44.2, 3.0)}},
            "rft": {**_scores(55.1, 16.9, 41.2, 244, 8.1), "n_trials": 654},
        }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    """A whole results.json, as the demo would fill it."""
    systems = {
        "sft": _scores(68.2, 19.4, 44.1, 181, 8.7),
        "rft": _scores(74.9, 22.8, 47.0, 163, 8.2),
        "prefix": _scores(61.3, 17.0, 42.5, 170, 8.8),
        "prefix_mlp": _scores(57.9, 15.6, 41.1, 166, 8.9),
        "no_align": _scores(15.8, 8.1, 33.8, 12, 8.4),
    }
    return {
        "data": "simulated brain (demo preset, seed 0, simulation version 1)",
        "subject": "subj08",
        "subject_is_trained_on": False,
        "part": "test",
        "n_images": 218,
        "split": "poster",
        "split_hash": "9f2c4be1d07a" * 5 + "9f2c",
        "seed": 0,
        "llm": "tiny",
        "signal": 1.0,
        "systems": systems,
        "controls": {system: _controls(system) for system in CIDER},
        "differences": {
            **{system: _differences(systems, system) for system in CIDER},
            "rft - sft": {"CIDEr": _difference(6.7, 2.2), "BLEU-4": _difference(3.4, 3.9)},
        },
        "single_trial": _single_trials(),
        "ceiling": {"human": {"CIDEr": 96.4, "BLEU-1": 65.0, "BLEU-4": 24.5, "ROUGE-L": 49.2}},
        "intervals": {system: _intervals(scores) for system, scores in systems.items()},
        "control_intervals": {
            system: {name: _intervals(row) for name, row in _controls(system).items()} for system in CIDER
        },
        "retrieval": _retrievals(),
        "cosine_real_zero": {"mean": -0.0123, "sd": 0.0412},
        "bits": {
            system: {
                "per_caption": {"mean": mean, "low": mean - 1.3, "high": mean + 1.3},
                "per_token": {"mean": mean / 11, "low": mean / 11 - 0.1, "high": mean / 11 + 0.1},
            }
            for system, mean in (("sft", 11.84), ("rft", 10.77))
        },
        "rft_reward": {"first": 0.412, "last": 0.538, "parts": {"cider": 0.6, "bertscore": 0.5}},
        "parameters": {"cross_attention": 1_182_724, "prefix": 49_344, "prefix_mlp": 1_180_032},
        "seconds": {"simulate": 21.4, "prepare": 8.9, "neighbours": 61.0, "align": 48.2, "sft": 52.7,
                    "rft": 71.3, "evaluate": 18.6, "total": 282.1},
        "versions": {"bitllm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "command": "bitllm demo --seed 0",
        "git_revision": "0123abc",
        "peak_memory_gb": 2.31,
        "sealed": "chosen on validation images of subj07; subj08 was opened once",
    }  # fmt: skip


@pytest.fixture
def curves() -> dict[str, list[dict[str, Any]]]:
    """Log rows of the three stages and two baselines."""
    rng = np.random.default_rng(1)
    sft = [
        {"step": step, "loss": _falling(step, rng), "learning_rate": 1e-3 * (1 - step / 600)}
        for step in range(10, 601, 10)
    ]
    validation = [
        {"step": step, "validation_loss": _falling(step, rng) + 0.1} for step in range(100, 601, 100)
    ]
    return {
        "align": [
            *({"step": step, "loss": 1.4 * _falling(step, rng), "learning_rate": 3e-4} for step in range(10, 401, 10)),
            *({"step": step, "validation_R@10": 0.55 * (1 - np.exp(-step / 120)),
               "validation_chance_R@10": 0.046}
              for step in range(50, 401, 50)),
        ],
        "sft": [*sft, *validation],
        "rft": [
            *({"step": step, "reward": 0.41 + step / 1200 + rng.normal(0, 0.02),
               "reward_cider": 0.3 + step / 900,
               "reward_bertscore": 0.55 + step / 2000, "reward_ip": 0.45 + step / 3000, "kl": step / 3000,
               "length": 8.9 - step / 200, "distinct": 0.93 - step / 600, "loss": rng.normal(0, 0.01)}
              for step in range(2, 151, 2)),
            *({"step": step, "validation_cider": 65 + step / 15,
               "validation_real_minus_permuted": 60 + step / 17}
              for step in range(0, 151, 50)),
        ],
        "prefix": sft,
    }  # fmt: skip


@pytest.fixture
def gallery() -> list[GalleryItem]:
    """Twenty-four pictures with captions of two systems and one control."""
    labels = ["random"] * 12 + ["best"] * 4 + ["median"] * 4 + ["worst"] * 4
    return [_item(number, label) for number, label in enumerate(labels)]


def _scores(cider: float, bleu: float, rouge: float, distinct: int, words: float) -> dict[str, float]:
    return {"CIDEr": cider, "BLEU-1": bleu + 36, "BLEU-4": bleu, "ROUGE-L": rouge, "distinct": distinct,
            "mean_length": words}  # fmt: skip


def _controls(system: str) -> dict[str, dict[str, float]]:
    return {
        name: {"CIDEr": cider, "BLEU-4": 3 + cider / 5, "ROUGE-L": 27 + cider / 4,
               "distinct": 1 if name in ("zero", "constant", "llm_alone") else 150}
        for name, cider in CIDER[system].items()
    }  # fmt: skip


def _differences(systems: dict, system: str) -> dict[str, dict]:
    real = systems[system]["CIDEr"]
    return {name: {"CIDEr": _difference(real - cider, 6.1)} for name, cider in CIDER[system].items()}


def _difference(value: float, half: float) -> dict[str, float]:
    return {
        "difference": value,
        "low": value - half,
        "high": value + half,
        "p": 0.0002 if value > half else 0.21,
    }


def _intervals(scores: dict[str, float]) -> dict[str, dict[str, float]]:
    names = ("CIDEr", "BLEU-4", "ROUGE-L")
    return {name: {"low": scores[name] * 0.93, "high": scores[name] * 1.07} for name in names}


def _retrieval(r1: float, r5: float, r10: float, rank: float, low: float, high: float) -> dict[str, float]:
    return {"R@1": r1, "R@5": r5, "R@10": r10, "MedR": rank, "N": 218, "chance_R@10": 10 / 218,
            "chance_MedR": 109.5, "low": low, "high": high}  # fmt: skip


def _falling(step: int, rng: np.random.Generator) -> float:
    return float(1.2 + 2.2 * np.exp(-step / 90) + rng.normal(0, 0.05))


def _item(number: int, label: str) -> GalleryItem:
    rng = np.random.default_rng(number)
    picture = np.zeros((64, 64, 3), np.uint8) + rng.integers(60, 255, 3).astype(np.uint8)
    top, left = rng.integers(4, 36, 2)
    picture[top : top + 22, left : left + 22] = rng.integers(0, 200, 3)
    return GalleryItem(
        nsd_id=int(rng.integers(0, 73_000)),
        picture=picture,
        references=("two red dogs play on the sand", "a pair of red dogs near the sea", "dogs on a beach"),
        captions={
            "rft": "two red dogs on a beach",
            "sft": "a red dog runs on the beach",
            "rft, zero betas": "a man rides a horse in a field",
            "rft, another image's betas": "three blue cars parked in a street",
        },
        cider={"rft": 131.4 - number, "sft": 88.0, "rft, zero betas": 3.2, "rft, another image's betas": 0.0},
        label=label,
    )
