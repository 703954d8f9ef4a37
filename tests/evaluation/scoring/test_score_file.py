import json
from contextlib import nullcontext

import pytest

from bitllm.errors import BitLlmError, DataError
from bitllm.evaluation.scoring import score_file as score_file_module
from bitllm.evaluation.scoring.caption_scorer import METRICS, CaptionScorer, score_estimates
from bitllm.evaluation.scoring.captions_file import CaptionRecord, write_captions
from bitllm.evaluation.scoring.floors import best_constant_caption, permuted_captions
from bitllm.evaluation.scoring.score_file import ScoreOptions, meteor_metric, score_file
from bitllm.metrics.java import Meteor, why_no_meteor

CAPTIONS = {"3": "a dog runs", "1": "two boats on a lake", "2": "a red bus"}
REFERENCES = {
    "1": ["two boats", "boats on the lake"],
    "2": ["a bus", "a red bus stops"],
    "3": ["a dog", "the dog runs fast"],
}


@pytest.fixture(scope="module")
def meteor():
    """METEOR's process, which reads large tables first."""
    if (reason := why_no_meteor()) is not None:
        pytest.skip(f"METEOR: {reason}")
    with Meteor() as process:
        yield process


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


def plain(folder, captions="captions.json", **options):
    return score_file(folder / captions, folder / "references.json", **options)


def test_both_forms_give_the_scores_of_the_scorer_and_the_record_says_by_what(files):
    scores, ours = plain(files), score_file(files / "captions.jsonl", None)
    scorer = CaptionScorer([REFERENCES[key] for key in CAPTIONS])
    assert scores.metrics == ours.metrics == scorer.metrics(list(CAPTIONS.values()))
    assert scores.scores == score_estimates(scorer.per_caption(list(CAPTIONS.values())))
    assert scores.floors == ours.floors
    content = json.loads(json.dumps(scores.to_json()))
    assert content["metrics"] == scores.metrics
    assert content["intervals"]["CIDEr"] == list(scores.scores["CIDEr"][1:3])
    assert (content["distinct"], content["n_images"], content["tokenizer"]) == (3, 3, "ptb-python")
    assert content["mean_length"] == (3 + 5 + 3) / 3
    assert set(content["versions"]) == {"bitllm", "nltk", "numpy", "python"}


def test_the_permuted_floor_is_the_mean_over_five_permutations(files):
    scores = plain(files, options=ScoreOptions(seed=4))
    scorer = CaptionScorer([REFERENCES[key] for key in CAPTIONS])
    rounds = permuted_captions(list(CAPTIONS.values()), list(CAPTIONS), n_permutations=5, seed=4)
    for name in METRICS:
        expected = sum(scorer.metrics(texts)[name] for texts in rounds) / 5
        assert scores.floors["permuted"][name] == pytest.approx(expected)
    found = scores.differences["real - permuted"]["CIDEr"]
    assert found.value == pytest.approx(scores.metrics["CIDEr"] - scores.floors["permuted"]["CIDEr"])


def test_the_constant_caption_is_an_oracle_unless_training_references_are_given(files):
    constant = plain(files).floors["constant"]
    assert constant["chosen_on"] == "oracle: the references of the test"
    assert constant["caption"] == best_constant_caption([REFERENCES[key] for key in CAPTIONS])
    training = {"x": ["two zebras", "two zebras"], "y": ["two zebras graze"], "z": ["a tower"]}
    (files / "training.json").write_text(json.dumps(training))
    constant = plain(files, training_references=files / "training.json").floors["constant"]
    assert constant["chosen_on"] == "training references"
    assert "zebras" in constant["caption"]


def test_people_are_a_floor_only_where_each_image_has_two_references(files):
    assert set(plain(files).floors) == {"constant", "permuted", "human"}
    (files / "references.json").write_text(json.dumps(REFERENCES | {"2": ["a bus"]}))
    scores = plain(files)
    assert set(scores.floors) == {"constant", "permuted"}
    assert scores.not_run["human ceiling"] == "expected at least 2 references for every image, found 1"


def test_thousands_of_references_are_sampled_for_people(files):
    many = {i: [f"{text} {n}" for n in range(30) for text in texts] for i, texts in REFERENCES.items()}
    (files / "references.json").write_text(json.dumps(many))
    assert "20 of 60 references" in plain(files).floors["human"]["drawn"]


def test_what_was_not_asked_for_is_not_run_and_says_how(files):
    scores = plain(files)
    assert set(scores.metrics) == set(METRICS)
    assert "--no-meteor" in scores.not_run["METEOR"]
    assert "--bertscore MODEL" in scores.not_run["BERTScore"]
    assert "--images FOLDER" in scores.not_run["CLIP-S"]


def test_empty_captions_are_scored_and_counted(files):
    (files / "captions.json").write_text(json.dumps(CAPTIONS | {"1": "", "2": " "}))
    scores = plain(files)
    assert scores.notes == ["2 of 3 captions are empty; they are scored as they are"]
    assert scores.per_caption.cider[1:].tolist() == [0, 0]


def test_two_systems_are_compared_image_by_image_whatever_their_order(files):
    worse = {"2": "a red car", "3": "a cat", "1": "two boats"}
    (files / "worse.json").write_text(json.dumps(worse))
    scores = plain(files, compare=files / "worse.json")
    alone = plain(files, "worse.json")
    found = scores.differences["captions.json - worse.json"]
    assert set(found) == set(METRICS)
    for name, difference in found.items():
        assert difference.value == pytest.approx(scores.metrics[name] - alone.metrics[name])


def test_a_system_with_other_references_is_not_compared(files):
    records = [
        CaptionRecord(nsd_id=int(i), subject="subj08", caption="x", references=("y", i)) for i in CAPTIONS
    ]
    write_captions(files / "other.jsonl", records)
    with pytest.raises(DataError, match="expected the same references in both systems"):
        score_file(files / "captions.jsonl", None, compare=files / "other.jsonl")


def test_without_java_words_are_by_python_and_meteor_is_not_run(files, no_java):
    scores = plain(files, options=ScoreOptions("auto", meteor=True, spice=True))
    assert scores.tokenizer == "ptb-python"
    assert scores.notes == [
        "words are by the Python tokenizer, since Java's does not run: PTB tokenizer: expected Java on the "
        "path, found none; install a Java runtime"
    ]
    assert scores.not_run["METEOR"] == "expected Java on the path, found none; install a Java runtime"
    assert "METEOR" not in scores.metrics
    with pytest.raises(BitLlmError, match="PTB tokenizer: expected Java on the path"):
        plain(files, options=ScoreOptions("java"))


@pytest.mark.skipif(why_no_meteor() is not None, reason=f"METEOR: {why_no_meteor()}")
def test_a_java_that_crashes_leaves_the_other_metrics(files, fake_java):
    fake_java("echo Error: Could not create the Java Virtual Machine. >&2; exit 1")
    scores = plain(files, options=ScoreOptions("auto", meteor=True))
    assert scores.metrics == plain(files).metrics
    assert "exit status 1: Error: Could not create" in scores.not_run["METEOR"]
    assert "Could not create the Java Virtual Machine" in scores.notes[0]
    fake_java("").write_text("no program")
    scores = plain(files, options=ScoreOptions("auto", meteor=True))
    assert "Java does not start" in scores.not_run["METEOR"]
    assert "Java does not start" in scores.notes[0]


def test_meteor_is_on_every_floor_and_a_caption_of_15_000_words_leaves_it_out_alone(
    files, meteor, monkeypatch
):
    """METEOR's jar takes minutes or its whole heap for it; the other metrics do not mind."""
    monkeypatch.setattr(score_file_module, "Meteor", lambda: nullcontext(meteor))
    options = ScoreOptions("python", meteor=True)
    scores = plain(files, options=options)
    assert all(0 < floor["METEOR"] <= 100 for floor in scores.floors.values())
    (files / "captions.json").write_text(json.dumps({**CAPTIONS, "3": "dog " * 15_000}))
    scores = plain(files, options=options)
    assert "caption of 15,000 words" in scores.not_run["METEOR"]
    assert scores.metrics == plain(files).metrics
    assert set(METRICS) <= set(scores.metrics)


def test_one_image_is_too_few(files):
    for name, content in (("captions", {"3": "a dog"}), ("references", {"3": ["a dog"]})):
        (files / f"{name}.json").write_text(json.dumps(content))
    for tokenizer in ("auto", "python"):
        with pytest.raises(DataError, match="expected at least 2 images, found 1"):
            plain(files, options=ScoreOptions(tokenizer))


def test_a_clip_without_pictures_or_with_those_of_other_ids_is_refused(files):
    """A store counts its pictures by nsd_id: the COCO id 25 is another picture than the NSD id 25."""
    (files / "store").mkdir()
    (files / "store" / "manifest.json").write_text("{}")
    rows = [{"image_id": int(i), "caption": text} for i, text in CAPTIONS.items()]
    (files / "coco.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"store: .*nsd_id"):
        plain(files, "coco.json", options=ScoreOptions(clip="clip", images=files / "store"))
    with pytest.raises(DataError, match="--images FOLDER"):
        plain(files, options=ScoreOptions(clip="some"))


def test_meteor_of_a_published_decoder_and_of_its_floors_is_met(brainhub, meteor):
    """The leaderboard's 19.45; one permutation and each image's first reference were measured in advance."""
    scorer = CaptionScorer(brainhub.references, tokenizer="java", extras=[meteor_metric(meteor)])
    (dealt,) = permuted_captions(brainhub.captions, brainhub.ids, n_permutations=1)
    own, permuted = scorer.per_caption(brainhub.captions), scorer.per_caption(dealt)
    value, low, high, _ = score_estimates(own, n_bootstrap=200)["METEOR"]
    assert value == pytest.approx(19.45, abs=0.01)
    assert low < value < high < low + 2
    assert permuted.total()["METEOR"] == pytest.approx(8.28, abs=0.3)
    assert scorer.per_held_out_reference(0).total()["METEOR"] == pytest.approx(24.64, abs=0.6)


def test_the_verdict_of_a_published_decoder_is_about_its_captions_alone(brainhub, tmp_path):
    for name, values in (("captions", brainhub.captions), ("references", brainhub.references)):
        content = dict(zip(brainhub.ids[:200], values[:200], strict=True))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    said = plain(tmp_path).summary
    assert said.startswith("CIDEr of captions.json is")
    assert "higher on their own images than on other images (200 images)" in said
