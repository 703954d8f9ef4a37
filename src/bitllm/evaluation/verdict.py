"""The verdict on a system: whether its captions depend on the betas. Also the names of all inputs, in their order.

The verdict uses only paired differences real − control in CIDEr, each with its interval over images, because one
constant sentence already reaches the BLEU and ROUGE-L of published decoders. `bitllm evaluate`, its report, the
model card and `bitllm score` all use `judge`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bitllm.evaluation.results import Results, SystemResult
from bitllm.metrics.intervals import Estimate


@dataclass(frozen=True)
class Verdict:
    """Whether the captions of a system depend on the betas; None if the differences do not decide it."""

    is_evidence: bool | None
    sentence: str


class Control(NamedTuple):
    """Names of a control, and what it rules out."""

    label: str
    short: str
    sentence: str


CONTROLS = {
    "permuted": Control(
        "another image's betas",
        "another image",
        "Betas of the same subject for another image. The activity is real, but the image is wrong. This is the "
        "strictest control: only the pairing of betas and image changes.",
    ),
    "other_subject": Control(
        "another subject's betas",
        "another subject",
        "Another subject's betas for the same image, taken from the nearest voxels. They carry information about the "
        "image, so this is a comparison and not a null control: where subjects share their tuning, it can score as "
        "high as the real betas.",
    ),
    "shuffle": Control(
        "betas shuffled over voxels",
        "voxels shuffled",
        "The betas of a trial in random voxel order: the same values without their spatial pattern.",
    ),
    "noise": Control(
        "noise like the betas",
        "noise",
        "Gaussian noise with the covariance of the betas: realistic statistics, no information about the image.",
    ),
    "zero": Control(
        "all betas zero",
        "zero betas",
        "Every beta is 0. Greedy decoding then gives the same caption for every image, so this is the score of a "
        "constant sentence.",
    ),
    "constant": Control(
        "one constant caption",
        "constant caption",
        "One sentence for all images, the best one on the training references: a score that needs no brain data.",
    ),
    "llm_alone": Control(
        "language model alone",
        "LLM alone",
        "The language model without any brain tokens: its prior.",
    ),
    "nearest": Control(
        "nearest training caption",
        "nearest caption",
        "A reference of the training image with the most similar brain embedding. It uses the betas of the image but "
        "generates nothing, so it is a comparison and not a null control: a system that scores lower gains nothing "
        "by generating.",
    ),
}
TASK_FLOORS = {
    "most_frequent": Control(
        "most frequent answer",
        "most frequent",
        "The answer that is most often right in training, to questions of the same type (else with the same first two "
        "words). It needs neither brain data nor a language model.",
    )
}
"""Floors of questions besides `CONTROLS`."""
COMPARISONS = frozenset({"nearest", "other_subject"})
"""Inputs with information about the image: a system that does not beat them may still decode."""
REAL = {
    "real": ("real betas", "real betas"),
    "single_trial": ("real betas, single trials", "single trials"),
}


class Wording(NamedTuple):
    """What a difference between real and permuted means, in words."""

    permuted: str
    comparison: str
    finding: str
    yes: str
    caveat: str = ""


DECODED = Wording(
    permuted="another image's betas",
    comparison="with the real betas than with another image's betas",
    finding="depend on the betas",
    yes="Yes: CIDEr",
)
CAPTIONS_ALONE = Wording(
    permuted="captions of other images",
    comparison="on their own images than on other images",
    finding="fit their own images better than other images",
    yes="CIDEr",
    caveat=" Whether this comes from the betas, only the controls of the decoder can show.",
)
"""For captions whose decoder is not known: a leak would give the same difference."""


def verdict(results: Results, name: str) -> Verdict:
    """Judge one system of an evaluation."""
    system, about = results.systems.get(name), results.about
    found = {} if system is None else {control: lead(system, control) for control in system.controls}
    return judge(
        name or "any system",
        {control: difference for control, difference in found.items() if difference is not None},
        images=f"{about.subject}, {about.n_images:,} images",
        n_distinct=None if system is None else system.real.n_distinct,
    )


def judge(
    name: str,
    differences: Mapping[str, Estimate],
    *,
    images: str,
    n_distinct: int | None = None,
    wording: Wording = DECODED,
) -> Verdict:
    """Judge a system by its paired differences.

    Evidence requires that the interval of every difference from a null control lies above 0. The difference from
    *permuted* alone shows whether the captions depend on the betas; the others show whether this makes them better
    than captions that need no betas.

    Parameters
    ----------
    name
        Name of the system.
    differences
        Control → CIDEr real − control, paired over images.
    images
        Whose images these are, and how many.
    n_distinct
        Number of different captions.
    wording
        What a difference means.
    """

    def said(control: str) -> str:
        words = wording.permuted if control == "permuted" else label(control)
        return f"{words} {differences[control].shown(sign=True)}"

    controls = [one for one in in_order(differences, CONTROLS) if one not in COMPARISONS]
    decisive = [one for one in controls if differences[one].has_interval]
    failed = [one for one in decisive if not differences[one].is_above_zero]
    permuted = differences["permuted"] if "permuted" in decisive else None
    if not decisive:
        return Verdict(None, f"Undecided: no paired difference with an interval for {name}.")
    if failed and (permuted is None or "permuted" in failed):
        listed = said("permuted") if permuted is not None else "; ".join(map(said, failed))
        listed += "; all captions are one sentence" if n_distinct == 1 else ""
        return Verdict(
            False,
            f"No evidence that the captions of {name} {DECODED.finding}: CIDEr real − control is not above 0 "
            f"({listed}).",
        )
    if permuted is None:
        return Verdict(
            None, f"Undecided: {name} was not run with {wording.permuted}, the control that decides."
        )
    if failed:
        return Verdict(
            False,
            f"In part: the captions of {name} {wording.finding} (CIDEr real − {said('permuted')}), but there is no "
            f"evidence that they score higher than captions that need no betas of the image "
            f"({'; '.join(map(said, failed))}).",
        )
    others = [one for one in decisive if one != "permuted"]
    sentence = f"{wording.yes} of {name} is {permuted.shown()} points higher {wording.comparison} ({images})"
    if others:
        least = min(others, key=lambda one: differences[one].value)
        smallest = f"smallest difference {differences[least].shown(sign=True)}, {label(least)}"
        sentence += f", and higher than under every other control ({smallest})"
    return Verdict(True, f"{sentence}.{wording.caveat}")


def judge_questions(results: Results, name: str) -> Verdict | None:
    """Judge the answers of one system to questions; None without questions.

    Evidence is a difference real − permuted with an interval above 0, over all questions. The sentence names the tasks
    for which it is, and says if the answers are no better than the most frequent ones.
    """
    found = results.systems[name].questions if name in results.systems else None
    difference = None if found is None else found.micro_real_minus.get("permuted")
    if found is None or difference is None:
        return None
    n = sum(task.n_questions for task in found.tasks.values())
    about = f"accuracy real − {label('permuted')} {difference.shown(sign=True)} points over {n:,} questions"
    if not difference.is_above_zero:
        return Verdict(
            False, f"Questions: no evidence that the answers of {name} depend on the betas ({about})."
        )
    shown = [
        task
        for task, one in found.tasks.items()
        if (lead := one.inputs["permuted"].lead) and lead.is_above_zero
    ]
    tasks = f"; above 0 for {', '.join(shown)}" if len(found.tasks) > 1 else ""
    floor = found.micro_real_minus.get("most_frequent")
    caveat = ""
    if floor is not None and not floor.is_above_zero:
        caveat = f" But they are not better than the {label('most_frequent')} ({floor.shown(sign=True)})."
    return Verdict(True, f"Questions: the answers of {name} depend on the betas: {about}{tasks}.{caveat}")


def lead(system: SystemResult, control: str) -> Estimate | None:
    """CIDEr real − control, paired over images."""
    return system.averaged[control].real_minus_this.get("CIDEr") if control in system.controls else None


def bits_of(system: SystemResult, unit: str = "per_caption", control: str = "permuted") -> Estimate | None:
    """log2 p(references | real) − log2 p(references | control)."""
    return system.averaged[control].bits.get(unit) if control in system.controls else None


def label(name: str, *, is_short: bool = False) -> str:
    """Name of an input in words; for an unknown one its key."""
    if name in REAL:
        return REAL[name][is_short]
    known = CONTROLS | TASK_FLOORS
    return known[name][is_short] if name in known else name.replace("_", " ")


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The known names in their order, then the others."""
    names, known = list(names), list(known)
    return [name for name in known if name in names] + [name for name in names if name not in known]
