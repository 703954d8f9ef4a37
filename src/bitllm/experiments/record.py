"""What a run of a question leaves: rows of every world, and a record of where they come from."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyarrow import ArrowInvalid

from bitllm import __version__
from bitllm.errors import DataError, OutputError
from bitllm.evaluation.bits import evidence_per_image
from bitllm.evaluation.outcomes import Outcomes
from bitllm.experiments.config import CONFIG, ExperimentConfig, read_experiment
from bitllm.experiments.recipe import Recipe
from bitllm.experiments.world import World
from bitllm.files import file_written_whole, read_json, sha256_of_json, write_json
from bitllm.simulation.parameters import SIMULATION_VERSION, preset
from bitllm.stages.workspace import git_revision, versions

ROWS, RECORD, RECIPE = "results.parquet", "results.json", "recipe.json"

_SEEDS = ("simulator_seeds", "model_seeds")
_ORIGIN = ("worlds", "versions", "git_revision")


class Kept(NamedTuple):
    """Worlds of a question that an earlier run did, perhaps on another machine, with its learning rates."""

    rows: pd.DataFrame
    record: dict[str, Any]

    @property
    def rates(self) -> dict[str, dict[str, Any]]:
        """The learning rate of every system, and how it was chosen."""
        return dict(self.record["learning_rates"])

    def rows_of(self, world: str) -> pd.DataFrame | None:
        """The rows of one world; None where it is not among them."""
        return self.rows[self.rows["world"] == world] if world in self.record["worlds"] else None

    def origins(self) -> list[dict[str, Any]]:
        """Worlds, versions and revision of every run that the rows come from."""
        earlier: list[dict[str, Any]] = self.record.get("earlier", [])
        known = {world for one in earlier for world in one["worlds"]}
        own = {key: self.record[key] for key in _ORIGIN}
        own["worlds"] = [world for world in own["worlds"] if world not in known]
        return [*earlier, own] if own["worlds"] else earlier


def read_kept(name: str, folder: Path) -> Kept | None:
    """The results that lie beside a question in the folder of experiments; None where there are none.

    Raises
    ------
    DataError
        If they are not those of a full run of the configuration beside them, with other seeds at most, on the
        simulated brains of today.
    """
    if not (folder / name / ROWS).exists():
        return None
    rows, record = read_run(folder / name)
    require_same(read_experiment(name, folder), record, folder / name)
    if record["simulation_version"] != SIMULATION_VERSION:
        raise DataError(
            f"{folder / name / RECORD}: expected results of simulation version {SIMULATION_VERSION}, found "
            f"{record['simulation_version']}, whose brains are others; run the question without --keep-published"
        )
    return Kept(rows.assign(bleu_counts=rows["bleu_counts"].map(list)), record)


def make_record(name: str, config: ExperimentConfig, *, is_quick: bool) -> dict[str, Any]:
    """Where results of this process come from, but for the worlds."""
    content = config.model_dump(mode="json")
    return {
        "question": name,
        "command": f"bitllm reproduce {name}" + (" --quick" if is_quick else ""),
        "data": f"simulated (preset {config.recipe.preset}, simulation version {SIMULATION_VERSION})",
        "is_quick": is_quick,
        "config_sha256": sha256_of_json(content),
        "config": content,
        "simulation_version": SIMULATION_VERSION,
        "versions": versions(),
        "git_revision": git_revision(),
    }


def rows_of(found: Outcomes, *, seed: int) -> pd.DataFrame:
    """One row for each input and image: caption, CIDEr, ROUGE-L (points), words; for real betas the bits per caption.

    ``bleu_counts`` are the counts that corpus BLEU sums over images (see `bitllm.metrics.bleu.bleu_counts`). The bits
    of real betas are against those of another image, so no other input has any.
    """
    held_out, log2 = found.held_out, found.log2_probs
    n = len(held_out.trials)
    bits = evidence_per_image(log2["real"], log2["permuted"], found.tokens, n)
    parts = []
    for control, captions in found.captions.items():
        score = held_out.scorer.score(captions, seed=seed).per_image
        part = {
            "control": control,
            "subject": held_out.subject,
            "nsd_id": held_out.nsd_id,
            "n_repetitions": held_out.n_repetitions,
            "caption": captions,
            "cider": score.cider,
            "rouge_l": score.rouge_l,
            "bleu_counts": score.bleu_counts.tolist(),
            "length": [float(len(caption.split())) for caption in captions],
            "bits": bits if control == "real" else np.full(n, np.nan),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def write_rows(path: Path, world: World, rows: pd.DataFrame) -> None:
    """Write rows with where they come from, whole or not at all."""
    rows = rows.assign(
        world=world.name,
        simulator_seed=world.simulator_seed,
        model_seed=world.model_seed,
        simulation_version=SIMULATION_VERSION,
        bitllm_version=__version__,
        git_revision=git_revision() or "unknown",
    )
    with file_written_whole(path) as unfinished:
        rows.to_parquet(unfinished, index=False)


def write_run(folder: Path, rows: pd.DataFrame, record: dict[str, Any]) -> None:
    """Write rows and their record, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows.assign(question=record["question"], config_sha256=record["config_sha256"])
    with file_written_whole(folder / ROWS) as unfinished:
        rows.to_parquet(unfinished, index=False)
    write_json(folder / RECORD, record)


def read_run(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows of a run that is not quick, those of waves that are not whole included, and its record.

    Raises
    ------
    DataError
        If they do not belong together, or are of a quick run.
    """
    record, path = read_json(folder / RECORD), folder / ROWS
    if not path.exists():
        raise DataError(
            f"{path}: expected the rows that {RECORD} lists, found none; copy both files of one run"
        )
    try:
        rows = pd.read_parquet(path)
    except (OSError, ArrowInvalid) as error:
        raise DataError(
            f"{path}: expected a Parquet file, found one that does not open ({error}); copy or run it again"
        ) from None
    found = set(rows["config_sha256"])
    if found != {record["config_sha256"]}:
        raise DataError(
            f"{path}: expected rows of the configuration {record['config_sha256'][:12]} that {RECORD} lists, found "
            f"{', '.join(sorted(one[:12] for one in found))}; copy both files of one run"
        )
    if set(rows["world"]) != set(record["worlds"]):
        raise DataError(
            f"{path}: expected rows of the worlds that {RECORD} lists ({', '.join(record['worlds'])}), found "
            f"{', '.join(sorted(set(rows['world'])))}; copy both files of one run"
        )
    if record["is_quick"]:
        raise DataError(
            f"{path}: expected the results of a full run, found those of a quick one; run "
            f"`bitllm reproduce {record['question']}`"
        )
    return rows, record


def require_same(config: ExperimentConfig, record: dict[str, Any], folder: Path) -> None:
    """Refuse results of other claims or systems than the configuration has; some of its seeds are enough.

    How long the recipe's steps take may be told later: it decides nothing.

    Raises
    ------
    DataError
        If anything else is different.
    """
    now, then = (_deciding(content) for content in (config.model_dump(mode="json"), record["config"]))
    changed = [key for key in now if key not in _SEEDS and now[key] != then.get(key)]
    changed += [key for key in _SEEDS if not set(then[key]) <= set(now[key])]
    if changed:
        raise DataError(
            f"{folder / CONFIG}: expected the configuration that {RECORD} was made with, found other "
            f"{', '.join(changed)}; a rule is not changed after its result: put it back, or run the experiment again"
        )


def require_one_recipe(path: Path, recipe: Recipe) -> None:
    """Note what the worlds of a folder are made with, or refuse where that is something else.

    Rows of finished worlds are found by the names of their systems, which do not tell the recipe.

    Raises
    ------
    OutputError
        If they are of another recipe, preset, version of the package or of the simulation.
    """
    now = {
        "recipe": recipe.model_dump(mode="json", exclude={"seconds"}),
        "preset": preset(recipe.preset).model_dump(mode="json"),
        "bitllm": __version__,
        "simulation": SIMULATION_VERSION,
    }
    then = read_json(path) if path.exists() else now
    if changed := [f"{key} {part}" for key in now for part in _differing(now[key], then.get(key))]:
        raise OutputError(
            f"{path.parent}: expected worlds of one recipe, found some that were made with another "
            f"{', '.join(one.strip() for one in changed)}; name a new folder with --out"
        )
    if not path.exists():
        write_json(path, now)


def _differing(now: Any, then: Any) -> list[str]:
    """Names of the parts that differ; an empty one where there are no parts."""
    if isinstance(now, dict) and isinstance(then, dict):
        return sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    return [] if now == then else [""]


def _deciding(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"recipe": {key: value for key, value in content["recipe"].items() if key != "seconds"}}
