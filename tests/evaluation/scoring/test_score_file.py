import json

import pytest
from rich.console import Console

from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scorer import METRICS, CaptionScorer
from bitllm.evaluation.scoring.captions_file import CaptionRecord, write_captions
from bitllm.evaluation.scoring.floors import permuted_captions
from bitllm.evaluation.scoring.score_file import render_scores, score_file

CAPTIONS = {"3": "a dog runs", "1": "two boats on a lake", "2": "a red bus"}
REFERENCES = {
    "1": ["two boats", "boats on the lake"],
    "2": ["a bus", "a red bus stops"],
    "3": ["a dog", "the dog runs fast"],
}


@pytest.fixture
def files(tmp_path):
    """Captions and references as plain JSON, and the same as our JSON lines."""
    for name, content in (("captions", CAPTIONS), ("references", REFERENCES)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    records = [
        CaptionRecord(nsd_id=int(key), subject="subj08", caption=text, references=tuple(REFERENCES[key]))
        for key, text in CAPTIONS.items()
    ]
    write_captions(tmp_path / "captions.jsonl", records)
    return tmp_path


def test_both_forms_give_the_same_scores(files):
    plain = score_file(files / "captions.json", files / "references.json")
    lines = score_file(files / "captions.jsonl", None)
    assert plain.metrics == lines.metrics
    direct = CaptionScorer([REFERENCES[key] for key in CAPTIONS], image_ids=[3, 1, 2]).score(
        list(CAPTIONS.values()), seed=0
    )
    assert plain.metrics == direct.metrics


def test_the_permuted_floor_is_the_mean_over_five_permutations(files):
    scores = score_file(files / "captions.jsonl", None, seed=4)
    scorer = CaptionScorer([REFERENCES[key] for key in CAPTIONS], image_ids=[3, 1, 2])
    rounds = permuted_captions(list(CAPTIONS.values()), [3, 1, 2], n_permutations=5, seed=4)
    for name in METRICS:
        expected = sum(scorer.metrics(texts)[name] for texts in rounds) / 5
        assert scores.floors["permuted"][name] == pytest.approx(expected)


def test_people_are_a_floor_only_where_each_image_has_two_references(files):
    assert set(score_file(files / "captions.jsonl", None).floors) == {"permuted", "human"}
    lonely = REFERENCES | {"2": ["a bus"]}
    (files / "references.json").write_text(json.dumps(lonely))
    assert set(score_file(files / "captions.json", files / "references.json").floors) == {"permuted"}


def test_plain_captions_without_references_are_refused(files):
    with pytest.raises(
        DataError, match=r"expected references beside captions .* give them with --references"
    ):
        score_file(files / "captions.json", None)


def test_the_table_shows_every_metric_with_its_interval_and_floors(files):
    scores = score_file(files / "captions.jsonl", None)
    console = Console(width=120, record=True, file=(files / "said").open("w"))
    console.print(render_scores(scores))
    said = console.export_text()
    for name in METRICS:
        assert name in said
        assert f"{scores.metrics[name]:.2f}" in said
        assert f"{scores.floors['human'][name]:.2f}" in said
    assert "3 images, 3 distinct captions" in said
