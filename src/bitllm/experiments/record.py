"""The results of an experiment: rows of every world (Parquet), and a record of their origin (JSON)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyarrow import ArrowInvalid

from bitllm import __version__
from bitllm.errors import DataError, OutputError
from bitllm.evaluation.outcomes import Outcomes
from bitllm.evaluation.table import rows_of
from bitllm.experiments.config import CONFIG, ExperimentConfig, read_experiment
from bitllm.experiments.verdict import Claim
from bitllm.files import file_written_whole, read_json, sha256_of_json, write_json
from bitllm.pipeline.recipe import Recipe, TrainerSettings
from bitllm.simulation.parameters import SIMULATION_VERSION
from bitllm.stages.workspace import git_revision, versions

ROWS, RECORD, RECIPE = "results.parquet", "results.json", "recipe.json"

_COLUMNS = ("control", "subject", "nsd_id", "n_repetitions", "caption", "cider", "rouge_l", "bleu_counts", "length",
            "bits")  # fmt: skip
_SEEDS = ("simulator_seeds", "model_seeds")
_ORIGIN = ("worlds", "versions", "git_revision")


class Kept(NamedTuple):
    """Published worlds of an experiment, with their learning rates."""

    rows: pd.DataFrame
    record: dict[str, Any]

    @property
    def rates(self) -> dict[str, dict[str, Any]]:
        """Learning rate of every system, and how it was chosen."""
        return dict(self.record["learning_rates"])

    def rows_of(self, world: str) -> pd.DataFrame | None:
        """Rows of one world; None if it is not published."""
        return self.rows[self.rows["world"] == world] if world in self.record["worlds"] else None

    def origins(self) -> list[dict[str, Any]]:
        """Worlds, versions and revision of every run that the rows come from."""
        earlier: list[dict[str, Any]] = self.record.get("earlier", [])
        known = {world for one in earlier for world in one["worlds"]}
        own = {key: self.record[key] for key in _ORIGIN}
        own["worlds"] = [world for world in own["worlds"] if world not in known]
        return [*earlier, own] if own["worlds"] else earlier


def read_kept(name: str, folder: Path) -> Kept | None:
    """The published results of an experiment; None if there are none."""
    if not (folder / name / ROWS).exists():
        return None
    rows, record = read_run(folder / name)
    require_same(read_experiment(name, folder), record, folder / name)
    if record["simulation_version"] != SIMULATION_VERSION:
        raise DataError(
            f"{folder / name / RECORD}: expected results of simulation version {SIMULATION_VERSION}, found "
            f"{record['simulation_version']}, which has other brains; run the experiment without --keep-published"
        )
    return Kept(rows.assign(bleu_counts=rows["bleu_counts"].map(list)), record)


def make_record(name: str, config: ExperimentConfig, *, is_quick: bool) -> dict[str, Any]:
    """Origin of the results of this process, without the worlds."""
    content = config.model_dump(mode="json")
    return {
        "question": name,
        "command": f"bitllm reproduce {name}" + (" --quick" if is_quick else ""),
        "data": f"simulated (preset {config.recipe.data.preset}, simulation version {SIMULATION_VERSION})",
        "is_quick": is_quick,
        "config_sha256": sha256_of_json(content),
        "config": content,
        "simulation_version": SIMULATION_VERSION,
        "versions": versions(),
        "git_revision": git_revision(),
    }


def published_rows(found: Outcomes, baselines: Mapping[str, list[str]] | None = None) -> pd.DataFrame:
    """Rows of one system, with the columns of the published results: one for each input and image.

    The table's ``input`` is ``control`` and its ``answer`` is ``caption`` here. ``length`` counts words between spaces.
    ``bits`` per caption are those of real betas against another image's, so no other input has any.
    """
    rows = rows_of(found, system="", baselines=baselines).rename(
        columns={"input": "control", "answer": "caption"}
    )
    is_real = rows["control"] == "real"
    real, permuted = rows[is_real], rows[rows["control"] == "permuted"]
    rows["length"] = [float(len(caption.split())) for caption in rows["caption"]]
    rows["bits"] = np.nan
    rows.loc[is_real, "bits"] = (real["log2_p"].to_numpy() - permuted["log2_p"].to_numpy()) / real[
        "n_references"
    ]
    return rows[list(_COLUMNS)]


def write_run(folder: Path, rows: pd.DataFrame, record: dict[str, Any]) -> None:
    """Write rows and their record, each completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows.assign(question=record["question"], config_sha256=record["config_sha256"])
    with file_written_whole(folder / ROWS) as unfinished:
        rows.to_parquet(unfinished, index=False)
    write_json(folder / RECORD, record)


def read_run(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows of a full (not quick) run, including those of incomplete waves, and its record."""
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
    found = set(rows["config_sha256"].unique())
    if found != {record["config_sha256"]}:
        raise DataError(
            f"{path}: expected rows of the configuration {record['config_sha256'][:12]} that {RECORD} lists, found "
            f"{', '.join(sorted(one[:12] for one in found))}; copy both files of one run"
        )
    if set(rows["world"].unique()) != set(record["worlds"]):
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
    """Refuse results of other claims or systems than the configuration's. The configuration may have more seeds.

    Records of version 0.1 describe systems by settings that no longer exist: for these only the claims, the names of
    the systems and the seeds are compared. (A test compares every published setting with today's recipes.)
    """
    then = record["config"]
    changed = [key for key in _SEEDS if not set(then[key]) <= set(getattr(config, key))]
    if "preset" in then["recipe"]:  # of version 0.1
        if tuple(Claim.parse(claim) for claim in then["claims"]) != config.claims:
            changed.append("claims")
        if list(then["systems"]) != list(config.systems):
            changed.append("systems")
    else:
        before = ExperimentConfig.parse(then, source=str(folder / RECORD))
        keys = [key for key in ExperimentConfig.model_fields if key not in (*_SEEDS, "seconds")]
        changed += [key for key in keys if _deciding(getattr(config, key)) != _deciding(getattr(before, key))]
    if changed:
        raise DataError(
            f"{folder / CONFIG}: expected the configuration that {RECORD} was made with, found other "
            f"{', '.join(changed)}; a rule is not "
            "changed after its result: undo the change, or run the experiment again"
        )


def require_one_recipe(path: Path, recipe: Recipe) -> None:
    """Record the recipe of the worlds in a folder, or refuse the folder if it has another one.

    Rows of finished worlds are found by a system's changes, which do not include the recipe.
    """
    now = _deciding(recipe).model_dump(mode="json") | {
        "preset": recipe.data.simulation.model_dump(mode="json"),
        "bitllm": __version__,
        "simulation": SIMULATION_VERSION,
    }
    then = read_json(path) if path.exists() else now
    recorded = {key: value for key, value in then.items() if key in Recipe.model_fields}
    then |= _deciding(Recipe.parse(recorded, source=str(path))).model_dump(
        mode="json"
    )  # settings added since
    if changed := [key for key in now if now[key] != then.get(key)]:
        raise OutputError(
            f"{path.parent}: expected worlds of one recipe, found some that were made with another "
            f"{', '.join(changed)}; name a new folder with --out"
        )
    if not path.exists():
        write_json(path, now)


def _deciding(value: Any) -> Any:
    """A recipe without the settings that do not change a result."""
    if not isinstance(value, Recipe):
        return value
    return value.model_copy(update={"variants": {}, "trainer": TrainerSettings()})
