from dataclasses import replace

import pandas as pd
import pytest
from rich.console import Console

from bitllm.evaluation.scoring.caption_scorer import METRICS, CaptionScorer
from bitllm.evaluation.scoring.score_table import render_scores, write_per_image
from bitllm.metrics.bleu import bleu_counts, bleu_from_counts
from bitllm.metrics.intervals import Estimate

REFERENCES = [["a dog runs", "a dog"], ["two boats", "boats on a lake"], ["a red bus", "the bus"]]
CAPTIONS = ["a dog", "boats", ""]


@pytest.fixture
def scores():
    found = CaptionScorer(REFERENCES).score(CAPTIONS, n_bootstrap=20)
    floors = {
        "constant": {"caption": "a dog", "chosen_on": "training references", "CIDEr": 1.25},
        "human": dict.fromkeys(METRICS, 77.77),
    }
    pair = {"CIDEr": Estimate(1.5, -0.25, 3.25, 0.125)}
    return replace(
        found,
        floors=floors,
        differences={"real - permuted": pair, "a - b": pair},
        not_run={"SPICE": "no jars"},
        notes=["1 of 3 captions are empty"],
        summary="no evidence of anything",
    )


def said(scores, tmp_path, width=80):
    console = Console(width=width, record=True, file=(tmp_path / "said").open("w"))
    console.print(render_scores(scores))
    return console.export_text()


def test_the_table_shows_every_metric_with_its_interval_and_floors(scores, tmp_path):
    text = said(scores, tmp_path)
    for name in METRICS:
        assert name in text
        assert f"{scores.metrics[name]:.2f}" in text
    assert text.count("77.77") == len(METRICS)
    assert "3 images, 3 distinct captions" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_below_it_stands_what_must_be_known(scores, tmp_path):
    text = said(scores, tmp_path)
    for line in (
        'constant: "a dog" (training references)',
        "SPICE: not run: no jars",
        "note: 1 of 3 captions are empty",
        f"tokenizer ptb-python, references {scores.references_sha256[:12]}",
        "no evidence of anything",
    ):
        assert line in text
    assert " a - b " in text
    assert "[-0.25, 3.25]" in text
    assert "real - permuted" not in text


def test_a_floor_without_a_metric_has_a_dash(scores, tmp_path):
    row = next(line for line in said(scores, tmp_path).splitlines() if "BLEU-1" in line)
    assert row.split("│")[4].strip() == "-"


def test_scores_of_every_caption_are_a_parquet_file(scores, tmp_path):
    write_per_image(tmp_path / "each.parquet", scores, ["x", "y", "z"], CAPTIONS)
    table = pd.read_parquet(tmp_path / "each.parquet")
    assert list(table.columns) == ["id", "caption", *METRICS]
    assert table["id"].tolist() == ["x", "y", "z"]
    assert table["CIDEr"].mean() == pytest.approx(scores.metrics["CIDEr"])
    expected = bleu_from_counts(bleu_counts(["boats"], [REFERENCES[1]])[0])
    assert table.loc[1, "BLEU-1"] == pytest.approx(expected[0])
