"""Numbers, measures and verdicts in words, as the page and its figures write them."""

from collections import Counter
from collections.abc import Iterable

from bitllm.experiments.results.read import Question
from bitllm.experiments.verdict import LEAST_BRAINS, Claim, Effect, verdict_of

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
}
_FINE = ("recall_at_10", "recall_at_10_linear", "cosine_zero")
_MUST_NOT = "must not come out"


def number(value: float, measure: str, *, signed: bool = False) -> str:
    """A value of a measure: two decimals, or three of what lies between 0 and 1."""
    digits = 3 if measure in _FINE else 2
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(effect: Effect, measure: str) -> str:
    """A difference with its interval."""
    low, high = number(effect.low, measure), number(effect.high, measure)
    return f"{number(effect.difference, measure, signed=True)} [{low}, {high}]"


def difference(claim: Claim) -> str:
    """What is compared with 0."""
    return "difference" if claim.factor == 1 else f"first − {claim.factor:g} × second"


def p_value(effect: Effect) -> str:
    """The p-value; what is below a thousandth, as that."""
    return f"{effect.p:.3f}" if effect.p >= 0.001 else "< 0.001"


def must_not(claim: Claim) -> bool:
    """Whether a claim is a check: it was written down as what must not come out."""
    return _MUST_NOT in claim.poster


def verdict(claim: Claim, effect: Effect) -> str:
    """The verdict; with it too few brains, whether a check came out as it must, and that a difference is small."""
    found = verdict_of(effect, claim.negligible)
    if effect.n_brains < LEAST_BRAINS:
        return f"{found} ({effect.n_brains} brain{'' if effect.n_brains == 1 else 's'})"
    if not must_not(claim):
        is_small = found == "borne out" and effect.difference < claim.negligible
        return f"{found} (negligible in size)" if is_small else found
    return {
        "borne out": "borne out (it must not be)",
        "not borne out": "not borne out (as it must be)",
        "undecided": "undecided (it must not be borne out)",
    }[found]


def counted(verdicts: Iterable[str]) -> str:
    """How often each verdict came out: ``2 × borne out, 1 × undecided``; one alone without its number."""
    counts = Counter(verdicts)
    if counts.total() == 1:
        return next(iter(counts))
    return ", ".join(f"{n} × {words}" for words, n in counts.items())


def size(question: Question, *, names: bool = True) -> str:
    """Brains × model seeds × images, and of how many that were planned; with or without the names of the three."""
    assert question.results is not None
    effect, config = question.results.effects[0], question.config
    images = question.results.rows.groupby(["simulator_seed", "system"])["nsd_id"].nunique()
    n_images = f"{images.min()}" if images.nunique() == 1 else f"{images.min()} to {images.max()}"
    brains = _of(effect.n_brains, len(config.simulator_seeds), "brain" if names else "")
    models = _of(effect.n_models, len(config.model_seeds), "model seed" if names else "")
    return f"{brains} × {models} × {n_images}" + (" images" if names else "")


def along_in_words(question: Question) -> str:
    """Mean CIDEr over worlds with the own responses at every amount, ascending, for a question about one."""
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
