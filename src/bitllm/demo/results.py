"""``results.json`` from the files of a finished demo, and the gallery of its report."""

import platform
import sys
from importlib.metadata import version
from typing import Any

import numpy as np

from bitllm.files import read_json
from bitllm.metrics.intervals import paired_difference
from bitllm.pipeline.recipe import PACKAGED, read_recipe
from bitllm.pipeline.run import Run
from bitllm.report.runs.folder import read_curves
from bitllm.stages.workspace import git_revision

_PACKAGES = ("bitllm", "torch", "transformers", "peft", "accelerate", "numpy")
_CHOICES = (
    "Sizes, learning rates and reward weights were chosen on subj07 with validation images (trained on "
    "subj01–06), on other simulator seeds; subj08 and the test images were sealed while fitting."
)


def make_results(run: Run, *, peak_memory_gb: float) -> dict[str, Any]:
    """All numbers of a finished demo, each system beside its controls."""
    judged = {
        name: read_json(run.folder / "judged" / name / "scores.json") for name in run.recipe.system_names
    }
    encoder = read_json(run.folder / "judged" / "encoder" / "encoder.json")
    n_images = len(run.held_out["averaged"].trials)
    simulation: Any = run.store.manifest.simulation
    return {
        "data": _data_name(run),
        "subject": run.held_out["averaged"].subject,
        "subject_is_trained_on": run.held_out["averaged"].subject in run.split.train_subjects,
        "part": run.held_out["averaged"].part,
        "n_images": n_images,
        "split": run.split.name,
        "split_hash": run.split.sha256,
        "seed": run.recipe.seed,
        "llm": run.recipe.llm.source,
        "signal": None if simulation is None else simulation["parameters"]["signal"],
        "systems": {name: scores["scores"]["real"] for name, scores in judged.items()},
        "controls": {
            name: {control: row for control, row in scores["scores"].items() if control != "real"}
            for name, scores in judged.items()
        },
        "intervals": {name: scores["intervals"]["real"] for name, scores in judged.items()},
        "control_intervals": {
            name: {control: row for control, row in scores["intervals"].items() if control != "real"}
            for name, scores in judged.items()
        },
        "differences": {
            **{name: scores["differences"] for name, scores in judged.items()},
            **_between_systems(judged),
        },
        "single_trial": {name: scores["single_trial"] for name, scores in judged.items()},
        "ceiling": {"human": encoder["human"]},
        "retrieval": encoder["retrieval"],
        "cosine_real_zero": encoder["cosine_real_zero"],
        "bits": {name: scores["bits"] for name, scores in judged.items()},
        "rft_reward": _reward_rise(read_curves(run.folder)["rft"]),
        "parameters": {name: _n_trainable(run, name) for name in run.recipe.system_names},
        "references_sha256": judged["sft"]["references_sha256"],
        "tokenizer": judged["sft"]["tokenizer"],
        "seconds": run.steps.seconds,
        "peak_memory_gb": round(peak_memory_gb, 2),
        "sealed": _how_chosen(run),
        "command": " ".join(["bitllm", *sys.argv[1:]]),
        "git_revision": git_revision(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def _n_trainable(run: Run, name: str) -> int:
    card = "rft.json" if run.recipe.system(name).stage == "rft" else "bitllm.json"
    return int(read_json(run.folder / name / card)["n_trainable"])


def _how_chosen(run: Run) -> str:
    """How the settings were chosen: known for the packaged ones only."""
    ignored: Any = {
        "seed": True,
        "trainer": True,
        "data": {"signal", "noise", "split", "validation_fraction"},
    }
    mine = run.recipe.model_dump(exclude=ignored)
    is_packaged = any(mine == read_recipe(name).model_dump(exclude=ignored) for name in PACKAGED)
    return (
        _CHOICES
        if is_packaged
        else "The settings are the user's own; how they were chosen is not known here."
    )


def _data_name(run: Run) -> str:
    simulation: Any = run.store.manifest.simulation
    if simulation is None:
        return (
            f"{run.store.manifest.source}, betas {run.store.manifest.beta_version}, {run.store.manifest.roi}"
        )
    return (
        f"simulated brain ({simulation['parameters']['preset']} preset, seed {simulation['seed']}, simulation version "
        f"{simulation['simulation_version']})"
    )


def _between_systems(judged: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Paired differences in per-image CIDEr between systems, sft against each other one."""
    pairs = [("rft", "sft"), *(("sft", name) for name in judged if name not in ("sft", "rft"))]
    return {
        f"{a} - {b}": {
            "CIDEr": paired_difference(
                np.array(judged[a]["cider_per_image"]["real"]), np.array(judged[b]["cider_per_image"]["real"])
            )._asdict()
        }
        for a, b in pairs
    }


def _reward_rise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean sampled reward of the first and the last fifth of the rft steps, and of its parts."""
    rewards = [row for row in rows if "reward" in row]
    fifth = max(1, len(rewards) // 5)

    def mean(key: str, part: list[dict[str, Any]]) -> float:
        return round(float(np.mean([row[key] for row in part])), 4)

    parts = {
        key: {"first": mean(key, rewards[:fifth]), "last": mean(key, rewards[-fifth:])}
        for key in ("reward_cider", "reward_bertscore", "reward_ip", "length", "distinct")
    }
    return {
        "first": mean("reward", rewards[:fifth]),
        "last": mean("reward", rewards[-fifth:]),
        "parts": parts,
    }
