"""Questions with their results (checked against the configuration of their run), and their numbers in words.

A wave is one model seed on all brains of an experiment. Complete waves of the first model seeds are published while
the others are still being trained. An incomplete wave is left out, so that all brains have the same weight.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from bitllm.config import StrictConfig
from bitllm.errors import DataError
from bitllm.experiments.config import ExperimentConfig, experiment_names, read_experiment
from bitllm.experiments.record import RECORD, ROWS, read_run, require_same
from bitllm.experiments.verdict import LEAST_BRAINS, Claim, Effect, effect_of, verdict_of

SUMMARY = "summary.yaml"
NOT_RUN = "no full run yet"

MEASURES = {
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "bleu_4": "BLEU-4",
    "bits": "bits per caption",
    "length": "words per caption",
    "recall_at_10": "R@10",
    "recall_at_10_linear": "R@10 (linear head)",
    "cosine_zero": "cosine",
    "object_f1": "object F1",
    "caption_recall_at_10": "R@10 of the caption",
    "accuracy": "accuracy in percent",
    "answer_bits": "bits per answer",
}
_DIGITS = dict.fromkeys(
    ("recall_at_10", "recall_at_10_linear", "cosine_zero", "object_f1", "caption_recall_at_10"), 3
)
_MUST_NOT = "must not come out"

_VERDICT = re.compile(r"^\*\*Verdict\.\*\*\s+(?P<text>.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_NO_VERDICT = "Not run yet."


class Headline(StrictConfig):
    """A claim of the poster as a plain question."""

    question: str
    name: str
    """Folder of the experiment."""
    claim: int
    """Index of the claim in the configuration."""


class Summary(StrictConfig):
    """Texts of the page, and a selection of results for its first part."""

    about: str
    """Head of the page."""
    limits: str
    """What the results do not show."""
    poster: tuple[str, ...]
    """The poster's own questions, in its order."""
    also: tuple[str, ...] = ()
    """Other questions with a verdict on the first page."""
    titles: dict[str, str] = Field(default_factory=dict)
    """Headings of questions, if not their names."""
    headlines: tuple[Headline, ...] = ()


@dataclass(frozen=True)
class Results:
    """The results of a question."""

    rows: pd.DataFrame
    """Rows of complete waves."""
    record: dict[str, Any]
    """Origin of the rows."""
    effects: tuple[Effect, ...]
    """The effect of each claim."""


@dataclass(frozen=True)
class Question:
    """A question, with results if there was a full run."""

    name: str
    title: str
    config: ExperimentConfig
    verdict: str | None
    """The verdict of its README, in one line."""
    results: Results | None


def read_summary(folder: Path) -> Summary:
    """Texts of the page, from the folder of experiments."""
    return Summary.read(Path(folder) / SUMMARY)


def read_questions(folder: Path) -> list[Question]:
    """All questions in the folder of experiments, the poster's first."""
    names, poster = experiment_names(folder), read_summary(folder).poster
    ordered = [name for name in poster if name in names] + [name for name in names if name not in poster]
    return [read_question(name, folder) for name in ordered]


def read_question(name: str, folder: Path) -> Question:
    """One question by name; see `read_questions`."""
    config, results = read_experiment(name, folder), None
    if any((folder / name / file).exists() for file in (ROWS, RECORD)):
        rows, record = read_run(folder / name)
        rows = complete_waves(rows, record, folder / name)
        require_same(config, record, folder / name)
        results = Results(rows, record, tuple(effect_of(claim, rows) for claim in config.claims))
    title = read_summary(folder).titles.get(name, name.replace("_", " ").capitalize())
    return Question(name, title, config, read_verdict(folder / name / "README.md"), results)


def read_verdict(path: Path) -> str | None:
    """The paragraph ``**Verdict.**`` of a README, on one line; None if it is "Not run yet."."""
    found = _VERDICT.search(path.read_text(encoding="utf-8")) if path.exists() else None
    text = " ".join(found["text"].split()) if found else _NO_VERDICT
    return None if text == _NO_VERDICT else text


def complete_waves(rows: pd.DataFrame, record: dict[str, Any], folder: Path) -> pd.DataFrame:
    """Rows of the first model seeds that all brains have."""
    config = record["config"]
    n_waves = n_complete_waves(rows, record)
    if n_waves == 0:
        raise DataError(
            f"{folder / ROWS}: expected all brains ({', '.join(map(str, config['simulator_seeds']))}) with the first "
            f"model seed, found the worlds {', '.join(record['worlds'])}; resume it with `{record['command']}`"
        )
    return rows[rows["model_seed"].isin(config["model_seeds"][:n_waves])]


def n_complete_waves(rows: pd.DataFrame, record: dict[str, Any]) -> int:
    """Number of the first model seeds that all brains have, with all systems."""
    config = record["config"]
    found = set(
        rows[["model_seed", "simulator_seed", "system"]].drop_duplicates().itertuples(index=False, name=None)
    )
    for n, models in enumerate(config["model_seeds"]):
        wave = {
            (models, brain, system) for brain in config["simulator_seeds"] for system in config["systems"]
        }
        if not wave <= found:
            return n
    return len(config["model_seeds"])


def number(value: float, measure: str) -> str:
    """A value of a measure: two decimals, or three for values between 0 and 1."""
    return f"{value:.{_DIGITS.get(measure, 2)}f}".replace("-", "−")


def measure_in_words(claim: Claim) -> str:
    """The measure of a claim, for answers with the task."""
    return MEASURES[claim.measure] + ("" if claim.task is None else f" ({claim.task})")


def interval(effect: Effect, measure: str) -> str:
    """A difference with its interval."""
    return effect.difference.shown(_DIGITS.get(measure, 2), sign=True)


def difference(claim: Claim) -> str:
    """The difference that is compared with 0, in words."""
    return "difference" if claim.factor == 1 else f"first − {claim.factor:g} × second"


def must_not(claim: Claim) -> bool:
    """Whether a claim is a sanity check, which is an error in the experiment if it is borne out."""
    return _MUST_NOT in claim.poster


def verdict(claim: Claim, effect: Effect) -> str:
    """The verdict in words, with a note on too few brains, a sanity check, or a small difference."""
    found = verdict_of(effect, claim.negligible)
    if effect.n_brains < LEAST_BRAINS:
        return f"{found} ({effect.n_brains} brain{'' if effect.n_brains == 1 else 's'})"
    if not must_not(claim):
        is_small = found == "borne out" and effect.difference.value < claim.negligible
        return f"{found} (negligible in size)" if is_small else found
    return {
        "borne out": "borne out (it must not be)",
        "not borne out": "not borne out (as it must be)",
        "undecided": "undecided (it must not be borne out)",
    }[found]


def counted(verdicts: Iterable[str]) -> str:
    """Number of each verdict: ``2 × borne out, 1 × undecided``; a single one without its number."""
    counts = Counter(verdicts)
    if counts.total() == 1:
        return next(iter(counts))
    return ", ".join(f"{n} × {words}" for words, n in counts.items())


def size(question: Question, *, names: bool = True) -> str:
    """Numbers of brains × model seeds × images, and how many were planned; optionally with the names of the three."""
    assert question.results is not None
    effect, config = question.results.effects[0], question.config
    images = question.results.rows.groupby(["simulator_seed", "system"])["nsd_id"].nunique()
    n_images = f"{images.min()}" if images.nunique() == 1 else f"{images.min()} to {images.max()}"
    brains = _of(effect.n_brains, len(config.simulator_seeds), "brain" if names else "")
    models = _of(effect.n_models, len(config.model_seeds), "model seed" if names else "")
    return f"{brains} × {models} × {n_images}" + (" images" if names else "")


def along_in_words(question: Question) -> str:
    """For a question about an amount (such as the number of trials): mean CIDEr with real betas at each amount."""
    assert question.results is not None
    rows = question.results.rows[question.results.rows["control"] == "real"]
    means = rows.groupby(["system", "world"])["cider"].mean().groupby("system").mean()
    return ", ".join(
        f"{means[system]:.1f} at {amount:g}"
        for system, amount in sorted(question.config.along.items(), key=lambda one: one[1])
    )


def _of(n: int, planned: int, what: str) -> str:
    number, so_far = (f"{n}", "") if n == planned else (f"{n} of {planned}", " so far")
    return f"{number} {what}{'' if planned == 1 else 's'}{so_far}" if what else number
