"""One figure for each question that has results: SVG, and what a reader who does not see it is told."""

from bitllm.experiments.results.curves import draw_curves
from bitllm.experiments.results.drawing import as_svg, style
from bitllm.experiments.results.forest import draw_forest
from bitllm.experiments.results.read import Question
from bitllm.experiments.results.wording import along_in_words, counted, size, verdict


def make_figure(question: Question) -> str:
    """The SVG of a question with results: curves where it is about an amount, its claims otherwise."""
    results, config = question.results, question.config
    assert results is not None
    with style():
        if config.along:
            return as_svg(draw_curves(results.rows, config.along, config.unit))
        return as_svg(draw_forest(config.claims, results.effects))


def alt_text(question: Question) -> str:
    """What the figure shows and what comes out, in words without square brackets."""
    results, config = question.results, question.config
    assert results is not None
    if not config.along:
        found = counted(
            verdict(claim, effect) for claim, effect in zip(config.claims, results.effects, strict=True)
        )
        return (
            f"One row for each claim: the difference with its 95 % interval and a point for every brain "
            f"({size(question)}). Verdicts: {found}. The numbers stand in the table above."
        )
    return (
        f"CIDEr with the image's own responses and with another image's, and bits per caption, along {config.unit}, "
        f"with 95 % intervals and a point for every brain ({size(question)}). CIDEr with the own responses: "
        f"{along_in_words(question)}."
    )
