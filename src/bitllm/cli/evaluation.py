"""Commands that evaluate: evaluate a run, score captions of any decoder."""

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from bitllm.cli.terminal import OUT, print_json
from bitllm.evaluation.options import EvaluateOptions


def evaluate(
    run: tyro.conf.Positional[Path],
    store: tyro.conf.Positional[Path | None] = None,
    /,
    options: tyro.conf.OmitArgPrefixes[EvaluateOptions] = EvaluateOptions(),  # noqa: B008 - frozen
    json: bool = False,
) -> None:
    """Measure how much of the captions comes from the brain: scores, bits and retrieval with every control.

    Args:
        run: A run folder, or the folder of one checkpoint of sft or rft (then name the store).
        store: Store to evaluate on; by default that of the run. For a store of other data see --judge-on.
        options: What to evaluate, and where its parts are.
        json: Print results.json instead of tables.
    """
    from bitllm.cli.display import Display
    from bitllm.evaluation.results import to_json
    from bitllm.pipeline.evaluate import evaluate as run_evaluation
    from bitllm.report.terminal import render_table

    console = Console(stderr=True) if json else OUT
    with Display(console) as display:
        results = run_evaluation(run, store, options, progress=display.progress, log=display.tell)
    if json:
        print_json(to_json(results))
        return
    console.print(render_table(results))


def score(  # noqa: PLR0913 - each argument is an option of the command
    captions: tyro.conf.Positional[Path],
    /,
    *,
    references: Path | None = None,
    training_references: Path | None = None,
    compare: Path | None = None,
    per_image: Path | None = None,
    meteor: bool = True,
    spice: bool = True,
    bertscore: str | None = None,
    bertscore_layer: int | None = None,
    clip: str | None = None,
    images: Path | None = None,
    tokenizer: Literal["auto", "java", "python"] = "auto",
    seed: int = 0,
    json: bool = False,
) -> None:
    """Score captions, always with a constant caption, permuted captions and people for comparison.

    Args:
        captions: Our captions.jsonl, or {"id": "caption"}, COCO's results list or JSON lines of any decoder.
        references: {"id": ["reference", ...]} or COCO's annotations, if the captions do not contain references.
        training_references: References of training images, to choose the constant caption.
        compare: Captions of another system on the same images, for paired differences.
        per_image: Parquet file to write, with the scores of every caption.
        meteor: Compute METEOR, which needs Java and some seconds.
        spice: Compute SPICE, which needs Java, its jars and some minutes.
        bertscore: Folder or hub id of an encoder for BERTScore.
        bertscore_layer: Hidden layer for BERTScore; by default the last one.
        clip: Folder or hub id of a CLIP for CLIP-S and RefCLIP-S.
        images: For --clip: folder of images named by id (73.png), or a store.
        tokenizer: auto uses that of the COCO tools if Java is installed, else ours.
        seed: Seed of the bootstrap and the permutations.
        json: Print JSON instead of a table.
    """
    from bitllm.evaluation.scoring.score_file import ScoreOptions, score_file
    from bitllm.files import require_place
    from bitllm.report.terminal import render_scores

    if per_image is not None:
        require_place(per_image)
    options = ScoreOptions(
        tokenizer,
        meteor,
        spice,
        bertscore,
        bertscore_layer=bertscore_layer,
        clip=clip,
        images=images,
        seed=seed,
    )
    scores = score_file(
        captions, references, training_references=training_references, compare=compare, options=options
    )
    if per_image is not None:
        scores.write_per_image(per_image)
    print_json(scores.to_json()) if json else OUT.print(render_scores(scores))
