"""The first page of the results: for a neuroscientist who never saw the code."""

import re
from typing import NamedTuple

from bitllm.experiments.results.read import POSTER, Question
from bitllm.experiments.results.wording import (
    MEASURES,
    NOT_RUN,
    along_in_words,
    counted,
    difference,
    interval,
    number,
    size,
    verdict,
)
from bitllm.experiments.verdict import LEAST_BRAINS

HEAD = f"""# Results

<!-- Written by `make results` from experiments/*/results.parquet; change those, not this page. -->

## Summary

**What was simulated.** Eight subjects who look at pictures as in the Natural Scenes Dataset (NSD), written in NSD's
own file layout. We made their responses, the noise in them and what the subjects have in common, so the truth is
known. Models are trained on seven of the subjects; the eighth is decoded into captions, on pictures that no model
was trained on. All of it is done again on several *brains*: a brain is here a whole simulated data set, with eight
subjects and pictures of its own (seeds 11 to 15, and 21 for SmolLM2). On each of them models start from several random
seeds (*model seeds*). No setting was chosen on these brains, but for learning rates: on the first, on validation
images of the seventh subject, which trained nothing then.

**How to read a verdict.** Each claim compares two systems, or one system under two inputs, that differ in one thing
alone, on the same brains and pictures (an aligned encoder has had the steps of stage 1 on top). It was written down
with its rule before the run. **Borne out**: the 95 % interval of the difference (over brains, model seeds and images)
lies above 0. **Not borne out**: it lies below the smallest difference that was to count, fixed for each claim
beforehand (grey in the figures). **Undecided**: neither, or fewer than {LEAST_BRAINS} brains. "Not borne out" is a
finding, "undecided" is none. Every claim was put down with a prediction in `experiments/`, where the rows of every
caption lie too.

**The words.**

- *CIDEr* scores a caption by the words and phrases that it shares with the five reference captions of the picture;
  those that are rare among all captions count more. 0 is nothing in common; a person's caption scores some 280
  against the others' of its picture (in the demo). *BLEU-4* and *ROUGE-L* count common phrases too, 0 to 100.
- *Bits per caption* say how much more probable a true caption is to the model with the picture's own responses than
  with another picture's (log to base 2). 0: the responses tell nothing.
- The *permuted control* is the same model with another picture's responses. Its captions are just as fluent, so
  only what lies above it comes from the brain.
- *R@10*: how often the right picture is among the ten that an encoder likes best of all test pictures. *R@10
  linear*: the same after a linear head fitted on training data, which gives an encoder that never learnt about
  pictures, even a random one, a chance. *Cosine*: how alike its output is for real and for silenced responses (1: the
  same).
- The *encoder* turns responses into *brain tokens*, which a frozen language model (LLM) reads through an
  *interface*: at every layer (*cross_attention*) or in front of the text (*prefix*, *prefix_mlp*). Stage 1
  (*align*) teaches the encoder which picture a response belongs to, stage 2 (*sft*) the interface to caption, stage
  3 (*rft*) rewards good captions (CIDEr, BERTScore, agreement with the picture). *Captioning alone* leaves stage 1 out:
  encoder and interface learn together to caption.
"""

NOT_SAID = """### What it does not say

This is a simulation. Its responses follow a model of our own, its pictures and captions are simple, its language
model is small and (but for the question SmolLM2) was trained here, and how hard an unseen subject is was set by us.
The results show whether the poster's *differences* come out where nothing but the thing asked is changed. They say
nothing about how high a score on NSD would be and nothing about larger language models, and what is not borne out
here may still be true on NSD. The poster's figures are quoted as the poster's; none was measured here.
"""


class Headline(NamedTuple):
    """One row of the summary: a claim of the poster as a plain question."""

    question: str
    name: str
    """Folder of the experiment."""
    claim: int
    """Place of the claim in its configuration."""


HEADLINES = (
    Headline(
        "Are captions better when every layer of the language model can look at the brain, rather than with as many "
        "parameters in front of the text?",
        "interface",
        0,
    ),
    Headline("Are they better than with a plain projection in front of the text?", "interface", 1),
    Headline(
        "Are captions better when the encoder first learns which picture a response belongs to, rather than by "
        "captioning alone for as many steps of stage 2 (stage 1 comes on top)?",
        "alignment",
        2,
    ),
    Headline("By as much as four times?", "alignment", 3),
    Headline(
        "Does an encoder that learnt by captioning alone notice less when the responses are silenced?",
        "encoder",
        0,
    ),
    Headline("Does the aligned encoder find the picture, and not with shuffled voxels?", "encoder", 1),
    Headline("Do the captions get worse when all responses are silenced?", "perturbation", 0),
    Headline("Do the captions get worse when voxels are shuffled?", "perturbation", 1),
    Headline(
        "With silenced responses, is cross-attention left with more than a prefix, which collapsed on the poster?",
        "perturbation",
        5,
    ),
    Headline("Are captions better after rewarding good ones?", "reward", 0),
    Headline("By as much as 31 %?", "reward", 1),
)

_ALSO = (
    "smollm2",
    "smollm2_adapters",
    "longer_captioning",
    "unfreezing",
    "signal",
    "leave_one_out",
    "repetitions",
)
"""Questions beyond the poster whose verdict stands on the first page too."""

_TITLES = {"smollm2": "SmolLM2", "smollm2_adapters": "SmolLM2 adapters"}

_FIRST_CLAIM = (
    "The figures are those of a question's first claim, or along the amount that it is about; verdicts count all of "
    "its claims. Compare within a row: the same system has another mean over three brains than over five."
)
_HERE = "here (simulated; brains × model seeds × images)"
_COLUMNS = f"| question | poster (NSD, one run) | {_HERE} | verdict |\n|---|---|---|---|"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z*`])")


def make_summary(questions: list[Question]) -> str:
    """The summary of all questions: two tables, and what was written by hand of what they say."""
    by_name = {question.name: question for question in questions}
    poster = [_headline(by_name[row.name], row) for row in HEADLINES if row.name in by_name]
    beyond = [_beyond(question) for question in questions if question.name not in POSTER]
    parts = [HEAD, f"### The poster's five questions\n\n{_table(_COLUMNS, poster)}"]
    told = [by_name[name] for name in (*POSTER, *_ALSO) if name in by_name]
    if said := [f"- {sentence}" for question in told if (sentence := first_sentence(question))]:
        parts.append("### What it says\n\n" + "\n".join(said) + "\n")
    parts.append(NOT_SAID)
    if beyond:
        columns = f"| question | {_HERE} | verdict |\n|---|---|---|"
        parts.append(f"### Beyond the poster\n\n{_FIRST_CLAIM}\n\n{_table(columns, beyond)}")
    return "\n".join(parts)


def title(name: str) -> str:
    """The heading of a question."""
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def link(name: str) -> str:
    """A link to a question's own section."""
    return f"[{title(name)}](#{name.replace('_', '-')})"


def first_sentence(question: Question) -> str | None:
    """The first sentence of the verdict that was written by hand, with where it stands; None while there is none."""
    if question.verdict is None or question.results is None:
        return None
    return f"{_SENTENCE_END.split(question.verdict)[0]} ({link(question.name)})"


def _headline(question: Question, row: Headline) -> str:
    claim = question.config.claims[row.claim]
    first = f"| {link(row.name)}: {row.question} | {_with_measure(claim.poster, claim.measure)} "
    if question.results is None:
        return f"{first}| | {NOT_RUN} |"
    return (
        f"{first}| {_here(question, row.claim)} | **{verdict(claim, question.results.effects[row.claim])}** |"
    )


def _beyond(question: Question) -> str:
    first = f"| {link(question.name)}: {question.config.question} "
    if question.results is None:
        return f"{first}| | {NOT_RUN} |"
    verdicts = [
        verdict(claim, effect)
        for claim, effect in zip(question.config.claims, question.results.effects, strict=True)
    ]
    return f"{first}| {_along(question) or _here(question, 0)} | {counted(verdicts)} |"


def _here(question: Question, place: int) -> str:
    """Both means of a claim, the difference with its interval, and the size."""
    assert question.results is not None
    claim, effect = question.config.claims[place], question.results.effects[place]
    name = claim.measure
    told = "" if claim.factor == 1 else f"{difference(claim)} "
    return (
        f"{number(effect.more, name)} / {number(effect.less, name)} {MEASURES[name]}, {told}"
        f"{interval(effect, name)}; {size(question, names=False)}"
    )


def _along(question: Question) -> str | None:
    """Mean CIDEr at every amount, for a question about one."""
    if not question.config.along:
        return None
    return f"{question.config.unit}: CIDEr {along_in_words(question)}; {size(question, names=False)}"


def _with_measure(poster: str, measure: str) -> str:
    return f"{poster} {MEASURES[measure]}" if re.fullmatch(r"[\d.−]+ / [\d.−]+", poster) else poster


def _table(columns: str, lines: list[str]) -> str:
    return "\n".join([columns, *lines]) + "\n"
