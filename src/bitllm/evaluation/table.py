"""The tidy table of an evaluation, ``evaluation.parquet``, and the results derived from it.

A row is one answer: of one system, to one input (the real betas or a control), for one image.

====================  ==================================================================================================
system                name of the system; ``encoder`` for rows of the encoder without an LLM
trials                ``averaged`` over repetitions, or ``single``
subject, task         subject; ``caption``, or the task of a question
input                 ``real``, or the control
nsd_id, row           image (0-based), and index among the rows of the same subject and trials
n_repetitions         number of trials averaged
answer                the caption, or the decoded answer
cider, rouge_l        in points
bleu_counts           counts that corpus BLEU sums over images (`bitllm.metrics.bleu.bleu_counts`)
length                number of words after the scorer's tokenization
log2_p                Σ over the references of the image of log2 p(reference | input), or log2 p of the first accepted
                      answer; NaN if not computed
n_references          number of references of the image
n_tokens, n_words     number of tokens (with end tokens) and words of these references in the form of `plain_caption`
ranks                 encoder: rank of the correct image among the test images, one per draw of the control
cosine_zero           encoder, real betas: cosine of the embeddings of real and zero betas
question, turn        questions: the question, and its number in the dialogue
history               questions: the earlier turns have their true answers (``gold``) or the system's (``own``)
accepted              questions: the accepted answer
score                 questions: accuracy of the decoded answer, 0 to 1
chosen, option_score  questions with options: the most probable option, and its accuracy
option_rank           questions with options: rank of the right option by its likelihood
ndcg                  questions with rated options: NDCG of the options by likelihood, 0 to 1
count_error           questions for a number: squared error of the decoded answer
====================  ==================================================================================================

``evaluation.json`` contains everything that belongs to no row (`ABOUT_KEYS`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pyarrow import ArrowInvalid
from scipy.stats import spearmanr

from bitllm.errors import DataError
from bitllm.evaluation.bits import difference_of_ratios
from bitllm.evaluation.categories import CATEGORY, category_numbers
from bitllm.evaluation.outcomes import Outcomes
from bitllm.evaluation.results import (
    About,
    CategoryTask,
    EncoderResult,
    GroupResult,
    Identification,
    InputResult,
    RegionResult,
    Results,
    RetrievalResult,
    Scores,
    SystemResult,
    from_json,
)
from bitllm.evaluation.scoring.caption_scorer import PerCaption, score_differences, score_estimates
from bitllm.evaluation.task_results import tasks_result
from bitllm.files import file_written_whole, read_json, write_json
from bitllm.metrics.intervals import (
    Estimate,
    bootstrap_mean,
    bootstrap_of_sums,
    paired_difference,
    paired_difference_of_sums,
    sum_by_image,
)
from bitllm.metrics.retrieval import identification_chances

TABLE, ABOUT = "evaluation.parquet", "evaluation.json"
CAPTION = "caption"
"""Value of ``task`` in the rows of captions and of the encoder."""
ENCODER = "encoder"
"""Value of ``system`` in the rows of the encoder."""
ABOUT_KEYS = ("about", "n_trainable", "comparisons", "embedding", "n_pictures", "human", "groups", "similarity",
              "regions", "attribution", "words", "references", "reward", "tasks", "categories",
              "category_task")  # fmt: skip
_COLUMNS = ("system", "trials", "subject", "task", "input", "nsd_id", "row", "n_repetitions", "answer", "cider",
            "rouge_l", "bleu_counts", "length", "log2_p", "n_references", "n_tokens", "n_words", "ranks",
            "cosine_zero", "question", "turn", "history", "accepted", "score", "chosen", "option_score", "option_rank",
            "ndcg", "count_error")  # fmt: skip
_WAYS = (2, 10, 50, 300)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, as stored on disk."""

    rows: pd.DataFrame
    about: dict[str, Any]
    """``about`` (`About`), ``n_trainable`` by system, ``comparisons`` (pairs of systems), ``embedding`` and
    ``n_pictures`` of the encoder, ``human``, ``groups`` (kind, name and nsd_ids of each), ``similarity`` to the nearest
    training image by nsd_id, ``regions`` (`RegionResult`), ``attribution``, ``words`` (bits of each word by system and
    input, in the order of ``row``), ``references`` by nsd_id, ``reward``, ``tasks`` (source, license, number of
    questions of each), ``categories`` by nsd_id and ``category_task`` (`CategoryTask`)."""


def rows_of(
    found: Outcomes,
    *,
    system: str,
    trials: str = "averaged",
    baselines: Mapping[str, list[str]] | None = None,
) -> pd.DataFrame:
    """Rows of one system, one for each input and image.

    Parameters
    ----------
    found
        Answers to every input, with log-probabilities of the references.
    system
        Name of the system.
    trials
        ``averaged`` or ``single``.
    baselines
        Captions for every row that need no LLM: ``constant``, ``nearest``.
    """
    held_out, tokens, n = found.held_out, found.tokens, len(found.held_out.trials)
    parts = []
    for name, answers in (found.captions | dict(baselines or {})).items():
        numbers = held_out.scorer.per_caption(answers)
        log2 = found.log2_probs.get(name)
        part = {
            **_place(held_out, system, trials, name),
            "answer": answers,
            "cider": numbers.cider,
            "rouge_l": numbers.rouge_l,
            "bleu_counts": numbers.bleu_counts.tolist(),
            "length": [len(words.split()) for words in held_out.scorer.tokenized(answers)],
            "log2_p": np.full(n, np.nan) if log2 is None else tokens.by_row(log2.sum(axis=1), n),
            "n_references": tokens.by_row(None, n).astype(np.int64),
            "n_tokens": tokens.by_row(tokens.n_tokens, n).astype(np.int64),
            "n_words": tokens.by_row(tokens.n_words, n).astype(np.int64),
        }
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def encoder_rows(
    held_out: Any,
    name: str,
    *,
    trials: str = "averaged",
    ranks: Int[np.ndarray, "n draws"] | None = None,
    cosine_zero: Float[np.ndarray, " n"] | None = None,
) -> pd.DataFrame:
    """Rows of the encoder under one input: ranks of the correct image, cosine to the embedding of zero betas."""
    n = len(held_out.trials)
    part = _place(held_out, ENCODER, trials, name) | {
        "ranks": [None] * n if ranks is None else ranks.tolist(),
        "cosine_zero": np.full(n, np.nan) if cosine_zero is None else cosine_zero,
    }
    return pd.DataFrame(part)


def _place(held_out: Any, system: str, trials: str, name: str) -> dict[str, Any]:
    return {
        "system": system,
        "trials": trials,
        "subject": held_out.subject,
        "task": CAPTION,
        "input": name,
        "nsd_id": held_out.nsd_id,
        "row": np.arange(len(held_out.trials)),
        "n_repetitions": held_out.n_repetitions,
    }


def write_evaluation(folder: Path, found: Evaluation) -> None:
    """Write ``evaluation.parquet`` and ``evaluation.json``, each completely or not at all."""
    write_rows(folder / TABLE, found.rows)
    write_json(folder / ABOUT, found.about)


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a table with all columns, completely or not at all."""
    with file_written_whole(path) as unfinished:
        rows.reindex(columns=list(_COLUMNS)).to_parquet(unfinished, index=False)


def read_rows(path: Path) -> pd.DataFrame:
    """Read a table."""
    if not path.is_file():
        raise DataError(f"{path}: expected the table of an evaluation, found no file; run `bitllm evaluate`")
    try:
        rows = pd.read_parquet(path)
    except (ArrowInvalid, OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected a Parquet file, found {error}; run `bitllm evaluate` again"
        ) from None
    missing = [name for name in _COLUMNS if name not in rows]
    if missing:
        raise DataError(
            f"{path}: expected the columns of an evaluation, found none named {', '.join(missing)}; run `bitllm "
            "evaluate` again with this version"
        )
    return rows


def read_evaluation(folder: Path) -> Evaluation:
    """Read ``evaluation.parquet`` and ``evaluation.json`` of a folder."""
    about = read_json(folder / ABOUT, "evaluation.json of `bitllm evaluate`")
    if not isinstance(about, dict) or "about" not in about:
        raise DataError(
            f"{folder / ABOUT}: expected an object with `about`, found none; run `bitllm evaluate` again"
        )
    return Evaluation(read_rows(folder / TABLE), about)


def results_of(found: Evaluation, where: str = ABOUT) -> Results:
    """Derive all results from the table.

    Parameters
    ----------
    found
        The evaluation.
    where
        Name of its ``evaluation.json``, for errors.
    """
    content, is_caption = found.about, found.rows["task"] == CAPTION
    rows, questions = found.rows[is_caption], found.rows[~is_caption]
    about = from_json(About, content["about"], f"{where}: about")
    names = [name for name in rows["system"].unique() if name != ENCODER]
    categories = content.get("categories", {})
    scored = {name: _inputs_of(rows[rows["system"] == name], categories) for name in names}
    systems = {
        name: SystemResult(
            averaged=_results_by_input(inputs["averaged"], about.seed),
            single=_results_by_input(inputs.get("single", {}), about.seed),
            n_trainable=content.get("n_trainable", {}).get(name),
            questions=tasks_result(
                questions[questions["system"] == name], content.get("tasks", {}), about.seed
            ),
        )
        for name, inputs in scored.items()
    }
    results = Results(
        about,
        systems,
        encoder=_encoder(rows[rows["system"] == ENCODER], content, about.seed),
        between_systems=_between_systems(
            {name: inputs["averaged"]["real"] for name, inputs in scored.items()},
            content.get("comparisons", []),
        ),
        human=content.get("human", {}),
        regions=tuple(
            from_json(RegionResult, one, f"{where}: regions") for one in content.get("regions", [])
        ),
        reward={name: (first, last) for name, (first, last) in content.get("reward", {}).items()},
        categories=_category_task(content, f"{where}: category_task"),
    )
    if not systems:
        return results
    final = scored[results.final]["averaged"]
    real, permuted = final["real"], final.get("permuted")
    return replace(
        results,
        groups=tuple(_group(one, real, permuted, about.seed) for one in content.get("groups", [])),
        similarity_to_training=_similarity_to_training(content.get("similarity", {}), real, permuted),
    )


@dataclass(frozen=True)
class _Input:
    """Rows of one system under one input, sorted by ``row``."""

    rows: pd.DataFrame
    numbers: PerCaption

    @property
    def log2_p(self) -> Float[np.ndarray, " n"]:
        return self.rows["log2_p"].to_numpy(np.float64)

    @property
    def has_log2_p(self) -> bool:
        return not np.isnan(self.log2_p).any()


def _category_task(content: dict[str, Any], where: str) -> CategoryTask | None:
    if task := content.get("category_task"):
        return from_json(CategoryTask, task, where)
    n = len(set(content.get("categories", {}).values()))
    return CategoryTask(n, 100 / n) if n else None


def _inputs_of(rows: pd.DataFrame, categories: Mapping[str, str]) -> dict[str, dict[str, _Input]]:
    """Inputs by kind of trials and name, in the order of the table."""
    found: dict[str, dict[str, _Input]] = {}
    for (trials, name), part in rows.groupby(["trials", "input"], sort=False):
        ordered = part.sort_values("row")
        own = [categories.get(str(image), "") for image in ordered["nsd_id"]]
        numbers = PerCaption(
            cider=ordered["cider"].to_numpy(np.float64),
            rouge_l=ordered["rouge_l"].to_numpy(np.float64),
            bleu_counts=np.vstack(ordered["bleu_counts"].tolist()).astype(np.int64),
            image_ids=tuple(ordered["nsd_id"].tolist()),
            extras=(category_numbers(ordered["answer"].tolist(), own),) if categories else (),
        )
        found.setdefault(str(trials), {})[str(name)] = _Input(ordered, numbers)
    return found


def _results_by_input(inputs: dict[str, _Input], seed: int) -> dict[str, InputResult]:
    return {name: _input_result(one, inputs["real"], seed) for name, one in inputs.items()}


def _input_result(one: _Input, real: _Input, seed: int) -> InputResult:
    answers = one.rows["answer"].tolist()
    is_real = one is real
    return InputResult(
        scores=score_estimates(one.numbers, seed=seed),
        n_distinct=len(set(answers)),
        n_empty=sum(not text.strip() for text in answers),
        mean_length=float(one.rows["length"].mean()),
        n_captions=len(answers),
        real_minus_this={}
        if is_real
        else score_differences(
            real.numbers, one.numbers, names=("CIDEr", "ROUGE-L", "BLEU-4", CATEGORY), seed=seed
        ),
        bits={} if is_real else _bits(real, one, seed),
    )


def _bits(real: _Input, control: _Input, seed: int) -> Scores:
    """log2 p(references | real) − log2 p(references | control) per caption, token and word."""
    # NaN marks inputs without likelihoods (`--likelihood`).
    if not (real.has_log2_p and control.has_log2_p):
        return {}
    rows, ids = real.rows, real.rows["nsd_id"].tolist()
    # The table has sums over references. The same units as `bitllm.evaluation.bits.evidence`, which has the
    # tokens.
    # per_caption: mean over the references of a row, then over rows. Per token and word: ratio of sums, so that
    # long references have more weight.
    per_caption = 1 / rows["n_references"].to_numpy()
    units = {
        "per_caption": (per_caption, np.ones(len(rows))),
        "per_token": (1.0, rows["n_tokens"].to_numpy()),
        "per_word": (1.0, rows["n_words"].to_numpy()),
    }
    return {
        unit: difference_of_ratios(real.log2_p * weight, control.log2_p * weight, counts, ids, seed=seed)
        for unit, (weight, counts) in units.items()
    }


def _between_systems(real: dict[str, _Input], pairs: Iterable[Sequence[str]]) -> dict[str, Estimate]:
    """Paired differences in CIDEr."""
    return {
        f"{a} - {b}": paired_difference(real[a].numbers.cider, real[b].numbers.cider)
        for a, b in pairs
        if a in real and b in real
    }


def _encoder(rows: pd.DataFrame, content: dict[str, Any], seed: int) -> EncoderResult:
    if rows.empty:
        return EncoderResult()
    parts = {
        (str(trials), str(name)): part.sort_values("row")
        for (trials, name), part in rows.groupby(["trials", "input"], sort=False)
    }
    real = parts["averaged", "real"]
    cosines = real["cosine_zero"].to_numpy(np.float64)
    cosine = (float(cosines.mean()), float(cosines.std(ddof=1)))
    ranked = {
        key: _Ranks.of(part, int(content["n_pictures"]))
        for key, part in parts.items()
        if part["ranks"].notna().all()
    }
    if not ranked:
        return EncoderResult(cosine_real_zero=cosine, embedding=content.get("embedding", ""))
    averaged = {name: one for (trials, name), one in ranked.items() if trials == "averaged"}
    retrieval = {name: one.result() for name, one in averaged.items()}
    if ("single", "real") in ranked:
        retrieval["single_trial"] = ranked["single", "real"].result()
    return EncoderResult(
        retrieval,
        averaged["real"].identification(seed),
        cosine,
        content.get("embedding", ""),
        {
            name + suffix: one
            for trials, suffix in (("averaged", ""), ("single", ", single trials"))
            if {(trials, "real"), (trials, "permuted")} <= ranked.keys()
            for name, one in ranked[trials, "real"].minus(ranked[trials, "permuted"], seed).items()
        },
    )


@dataclass(frozen=True)
class _Ranks:
    """Ranks of the correct image under one input."""

    ranks: Int[np.ndarray, "n draws"]
    nsd_id: list[int]
    n_pictures: int

    @classmethod
    def of(cls, part: pd.DataFrame, n_pictures: int) -> "_Ranks":
        return cls(np.vstack(part["ranks"].tolist()).astype(np.int64), part["nsd_id"].tolist(), n_pictures)

    def sums(self, values: Float[np.ndarray, "n draws"]) -> Float[np.ndarray, "images 2"]:
        """Sum over the queries of each image, and their number."""
        counts = np.full(len(values), float(values.shape[1]))
        return sum_by_image(np.column_stack([values.sum(axis=1), counts]), self.nsd_id)

    def result(self) -> RetrievalResult:
        hits = (self.ranks <= 10).astype(np.float64)
        return RetrievalResult(
            r_at={k: float((self.ranks <= k).mean()) for k in (1, 5, 10)},
            r_at_10=bootstrap_of_sums(self.sums(hits), _ratio),
            chance_r_at_10=min(10, self.n_pictures) / self.n_pictures,
            median_rank=float(np.median(self.ranks)),
            chance_median_rank=(self.n_pictures + 1) / 2,
            n_pictures=self.n_pictures,
            n_queries=self.ranks.size,
        )

    def identification(self, seed: int) -> tuple[Identification, ...]:
        """The N-way curve: accuracy of choosing the correct image among N."""
        curve = []
        for ways in sorted({*(ways for ways in _WAYS if ways < self.n_pictures), self.n_pictures}):
            correct = bootstrap_of_sums(self.sums(self.chances(ways)), _ratio, seed=seed)
            curve.append(Identification(ways, correct, 1 / ways))
        return tuple(curve)

    def chances(self, ways: int) -> Float[np.ndarray, "n draws"]:
        return identification_chances(self.ranks.ravel(), self.n_pictures, ways).reshape(self.ranks.shape)

    def minus(self, control: "_Ranks", seed: int) -> dict[str, Estimate]:
        """Paired difference from a control; the draws of a control are averaged."""
        found = {}
        for name in ("R@10", "2-way"):
            a, b = (
                one.sums(values.mean(axis=1, keepdims=True))
                for one in (self, control)
                for values in [one.ranks <= 10 if name == "R@10" else one.chances(2)]
            )
            found[name] = paired_difference_of_sums(a, b, _ratio, seed=seed)
        return found


def _group(group: dict[str, Any], real: _Input, permuted: _Input | None, seed: int) -> GroupResult:
    """Numbers within one group of the test images."""
    chosen = np.isin(real.rows["nsd_id"], group["nsd_ids"])
    found = GroupResult(group["kind"], group["name"], int(chosen.sum()))
    if found.n_images < 2:  # no interval over images
        return found
    cider = real.numbers.cider[chosen]
    found = replace(found, cider=bootstrap_mean(cider, seed=seed))
    if permuted is None:
        return found
    found = replace(
        found, real_minus_permuted=paired_difference(cider, permuted.numbers.cider[chosen], seed=seed)
    )
    if not (real.has_log2_p and permuted.has_log2_p):
        return found
    rows, bits = real.rows[chosen], (real.log2_p - permuted.log2_p)[chosen]
    words, images = rows["n_words"].to_numpy(), rows["nsd_id"].tolist()
    return replace(
        found, bits_per_word=difference_of_ratios(bits, np.zeros(len(bits)), words, images, seed=seed)
    )


def _similarity_to_training(
    similarity: dict[str, float], real: _Input, permuted: _Input | None
) -> Estimate | None:
    """Rank correlation of CIDEr real − permuted with the similarity to the nearest training image."""
    if not similarity or permuted is None:
        return None
    differences = real.numbers.cider - permuted.numbers.cider
    if np.ptp(differences) == 0:  # every caption has the same score: no order to compare
        return None
    found = spearmanr([similarity[str(image)] for image in real.numbers.image_ids], differences)
    return Estimate(float(found.statistic), p=float(found.pvalue))


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])
