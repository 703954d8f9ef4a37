"""From the Parquet files of the experiments to ``docs/results.md``: ``make results``.

An experiment's full results lie beside its question, as ``experiments/NAME/results.parquet`` and ``results.json``.
What has none is listed with its claims and says so.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from bitllm.errors import DataError
from bitllm.experiments.config import CONFIG, Claim, ExperimentConfig, experiment_names, read_experiment
from bitllm.experiments.engine import RECORD, ROWS
from bitllm.experiments.verdict import LEAST_BRAINS, Effect, effect_of, verdict_of
from bitllm.files import file_written_whole, read_json

NOT_RUN = "no full run yet"

_HEAD = f"""# Results

<!-- Written by `make results` from experiments/*/results.parquet; change those, not this page. -->

The poster's claims, put to the test where the truth is known: on **simulated** brains. The poster's figures are from
NSD's subject 8. Ours are from the simulation and say nothing about how high a score on NSD would be, only whether the
*differences* that the poster reports come out when nothing but the thing asked is changed. Every system had the same
brain, encoder, LLM, seed and number of steps, and a learning rate of its own, chosen on subj07's validation images.

A claim is **borne out** where the 95 % interval of the difference (over brains, model seeds and images) lies above 0,
**not borne out** where it lies below the difference that was called negligible before the run, **undecided** otherwise
or with fewer than {LEAST_BRAINS} simulated brains. Each question has its prediction and its command in `experiments/`.
"""


def read_results(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and record of a finished full run.

    Raises
    ------
    DataError
        If they do not belong together, or are of a quick or an unfinished run.
    """
    record, path = read_json(folder / RECORD), folder / ROWS
    rows = pd.read_parquet(path)
    found = set(rows["config_sha256"])
    if found != {record["config_sha256"]}:
        raise DataError(
            f"{path}: expected rows of the configuration {record['config_sha256'][:12]} that {RECORD} tells of, found "
            f"{', '.join(sorted(one[:12] for one in found))}; copy both files of one run"
        )
    if record["is_quick"] or not record["is_complete"]:
        kind = "a quick" if record["is_quick"] else "an unfinished"
        raise DataError(
            f"{path}: expected the results of a full run, found those of {kind} one; run "
            f"`bitllm reproduce {record['question']}` to its end"
        )
    return rows, record


def sentences(folder: Path, record: dict[str, Any]) -> list[str]:
    """What is printed after a run: a sentence for each claim, and where the numbers lie."""
    rows = pd.read_parquet(folder / ROWS)
    config = ExperimentConfig.parse(record["config"])
    lines = [f"{claim.text}: {_in_words(claim, effect_of(claim, rows))}" for claim in config.claims]
    lines.append(f"numbers: {folder / ROWS}, {folder / RECORD}")
    if record["is_quick"]:
        lines.append("a quick run: these numbers mean nothing but that everything ran")
    return lines


def make_page(folder: Path) -> str:
    """The page of results, from the folder of all experiments.

    Raises
    ------
    DataError
        If results are not those of a full run of the configuration beside them.
    """
    parts = [_HEAD]
    for name in experiment_names(folder):
        config = read_experiment(name, folder)
        parts.append(f"## {name.capitalize()}\n\n{config.question}\n")
        if not (folder / name / ROWS).exists():
            parts.append(f"*{NOT_RUN}*\n\n{_table(config.claims, None)}")
            continue
        rows, record = read_results(folder / name)
        _require_same(config, record, folder / name)
        effects = [effect_of(claim, rows) for claim in config.claims]
        parts.append(f"{_origin(record, effects[0])}\n\n{_table(config.claims, effects)}\n{_systems(rows)}")
    return "\n".join(parts)


def _require_same(config: ExperimentConfig, record: dict[str, Any], folder: Path) -> None:
    """Refuse results of other claims or systems than the configuration has; some of its brains are enough."""
    now, then = config.model_dump(mode="json"), record["config"]
    changed = [key for key in now if key != "simulator_seeds" and now[key] != then.get(key)]
    if changed:
        raise DataError(
            f"{folder / CONFIG}: expected the configuration that {RECORD} was made with, found other "
            f"{', '.join(changed)}; a rule is not changed after its result: put it back, or run the experiment again"
        )


def _origin(record: dict[str, Any], effect: Effect) -> str:
    return (
        f"Data: {record['data']}; {effect.n_brains} brains × {effect.n_models} model seeds × {effect.n_images} test "
        f"images of the held-out subject, repetitions averaged. `{record['command']}`, bitllm "
        f"{record['versions']['bitllm']}, revision {str(record['git_revision'])[:12]}, configuration "
        f"{record['config_sha256'][:12]}."
    )


def _table(claims: tuple[Claim, ...], effects: list[Effect] | None) -> str:
    lines = [
        "| claim | poster (NSD) | ours (simulated) | difference [95 %] | p | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for place, claim in enumerate(claims):
        if effects is None:
            ours = f"| | | | {NOT_RUN} |"
        else:
            effect = effects[place]
            ours = (
                f"| {claim.measure} {effect.more:.2f} / {effect.less:.2f} | {_interval(effect)} | {effect.p:.3f} "
                f"| **{verdict_of(effect, claim.negligible)}** |"
            )
        lines.append(f"| {claim.text} | {claim.poster} {ours}")
    return "\n".join(lines) + "\n"


def _systems(rows: pd.DataFrame) -> str:
    """Mean CIDEr and number of distinct captions (mean over worlds) of every system under every input."""
    lines = ["| system | input | CIDEr | ROUGE-L | words | distinct captions |", "|---|---|---|---|---|---|"]
    for (system, control), part in rows.groupby(["system", "control"], sort=False):
        distinct = part.groupby("world")["caption"].nunique().mean()
        lines.append(
            f"| {system} | {control} | {part['cider'].mean():.1f} | {part['rouge_l'].mean():.1f} "
            f"| {part['length'].mean():.1f} | {distinct:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _in_words(claim: Claim, effect: Effect) -> str:
    return (
        f"{claim.measure} {claim.more} {effect.more:.2f}, {claim.less} {effect.less:.2f}, difference "
        f"{_interval(effect)}, p {effect.p:.3f}, {verdict_of(effect, claim.negligible)} ({effect.n_brains} brains, "
        f"{effect.n_models} model seeds, {effect.n_images} images)"
    )


def _interval(effect: Effect) -> str:
    return f"{effect.difference:+.2f} [{effect.low:.2f}, {effect.high:.2f}]".replace("-", "−")


def write_page(folder: Path, page: Path) -> None:
    """Write the page of results, whole or not at all."""
    with file_written_whole(page) as unfinished:
        unfinished.write_text(make_page(folder), encoding="utf-8")


if __name__ == "__main__":
    write_page(Path("experiments"), Path("docs") / "results.md")
