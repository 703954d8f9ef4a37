"""A quick run of two questions by the real command, and made-up results of full runs with known differences."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.experiments.config import read_experiment
from bitllm.files import sha256_of_json
from bitllm.metrics.bleu import bleu_counts
from bitllm.simulation.parameters import SIMULATION_VERSION

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
QUESTIONS = ("interface", "encoder")
NAMES = ("interface", "alignment", "encoder", "signal")
N_IMAGES = 12
REFERENCE = "a red cat sits on a mat"
CAPTIONS = ("a red cat sits", "a cat on a mat", "a dog runs on the beach", "two birds in the old tree")
MadeResults = Callable[..., Path]


class QuickRun(NamedTuple):
    """The folder of a run, that of its first question, and what it printed."""

    out: Path
    folder: Path
    said: str


@pytest.fixture(scope="session")
def quick(made_once: Callable[[str, Callable[[Path], None]], Path]) -> QuickRun:
    def make(folder: Path) -> None:
        out, said = folder / "quick", io.StringIO()
        with redirect_stdout(said):
            main(["reproduce", *QUESTIONS, "--quick", "--out", str(out), "--experiments", str(EXPERIMENTS)])
        (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")

    folder = made_once("reproduce", make)
    out = folder / "quick"
    return QuickRun(out, out / "interface", (folder / "said.txt").read_text(encoding="utf-8"))


@pytest.fixture
def experiments() -> Path:
    """The project's own experiments."""
    return EXPERIMENTS


def gain(place: int, control: str, brain: int) -> float:
    """What an arm has beyond the others in CIDEr: the first system 6 more than the second and so on, by brain."""
    return (30.0 - 6.0 * place + 0.5 * brain) if control == "real" else 10.0


def made_rows(config, worlds):
    """Rows of all systems and inputs in some worlds."""
    counts = bleu_counts(CAPTIONS, [[REFERENCE]] * len(CAPTIONS))
    which = np.arange(N_IMAGES) % len(CAPTIONS)
    parts = []
    for brain, models in worlds:
        for place, system in enumerate(config.systems):
            for control in ("real", "permuted", *config.controls, "llm_alone"):
                parts.append(
                    pd.DataFrame(
                        {
                            "control": control,
                            "subject": "subj08",
                            "nsd_id": 100 + np.arange(N_IMAGES),
                            "n_repetitions": 3,
                            "caption": np.array(CAPTIONS)[which],
                            "cider": np.arange(N_IMAGES) % 7 + gain(place, control, brain) + 0.1 * models,
                            "rouge_l": 40.0,
                            "bleu_counts": counts[which].tolist(),
                            "length": 4.0,
                            "bits": 3.0 - place / 3 if control == "real" else np.nan,
                            "recall_at_10": 0.5 if control == "real" else 0.05,
                            "recall_at_10_linear": 0.4 - 0.1 * place,
                            "cosine_zero": 0.1 + 0.2 * place,
                            "world": f"brain{brain}-models{models}",
                            "simulator_seed": brain,
                            "model_seed": models,
                            "simulation_version": 1,
                            "bitllm_version": "0.1.0",
                            "git_revision": "0123456789abcdef",
                            "system": system,
                            "learning_rate": 0.003,
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)


def made_record(name, config, worlds):
    """The record that a full run would have written."""
    content = config.model_dump(mode="json")
    tried = {"0.001": 20.0, "0.003": 30.0, "0.01": 25.0}
    return {
        "question": name,
        "command": f"bitllm reproduce {name}",
        "data": "simulated (preset demo, simulation version 1)",
        "is_quick": False,
        "config_sha256": sha256_of_json(content),
        "config": content,
        "simulation_version": SIMULATION_VERSION,
        "versions": {"bitllm": "0.1.0"},
        "git_revision": "0123456789abcdef",
        "worlds": [f"brain{brain}-models{models}" for brain, models in worlds],
        "is_complete": len(worlds) == len(config.worlds),
        "learning_rates": {
            system: {"CIDEr, validation": tried, "chosen": 0.003}
            if changes.rate_of is None
            else {"chosen": 0.003, "taken from": changes.rate_of}
            for system, changes in config.systems.items()
        },
    }


@pytest.fixture
def made_results(experiments: Path, tmp_path: Path) -> MadeResults:
    """Write results of a question's first worlds into ``tmp_path/experiments`` or another folder, and give that."""
    folder = tmp_path / "experiments"
    for name in NAMES:
        shutil.copytree(experiments / name, folder / name, ignore=shutil.ignore_patterns("results.*"))
        readme = folder / name / "README.md"
        before, _, _ = readme.read_text(encoding="utf-8").partition("**Verdict.**")
        readme.write_text(f"{before}**Verdict.** Not run yet.\n", encoding="utf-8")
    shutil.copytree(experiments / "recipes", folder / "recipes")
    for name in ("summary.yaml", "seconds.yaml"):
        shutil.copy(experiments / name, folder / name)

    def write(name: str, *, n_worlds: int | None = None, to: Path = folder, **changes: object) -> Path:
        config = read_experiment(name, folder)
        worlds = config.worlds[:n_worlds]
        record = made_record(name, config, worlds) | changes
        rows = made_rows(config, worlds).assign(question=name, config_sha256=record["config_sha256"])
        (to / name).mkdir(parents=True, exist_ok=True)
        rows.to_parquet(to / name / "results.parquet", index=False)
        (to / name / "results.json").write_text(json.dumps(record), encoding="utf-8")
        return to

    return write
