import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.evaluation.scoring.caption_scorer import CaptionScorer
from bitllm.evaluation.scoring.floors import (
    best_constant_caption,
    derangement,
    human_ceiling,
    mean_metrics,
    permuted_captions,
)
from bitllm.metrics.cider import DocumentFrequencies, cider_d
from bitllm.metrics.tokenize import ptb_tokenize


def training(rng, n=30):
    subjects, places = ["a man", "a dog", "a red bus"], ["on a street", "in the grass", "near a wave"]
    return [[f"{rng.choice(subjects)} is {rng.choice(places)}." for _ in range(3)] for _ in range(n)]


def test_the_constant_caption_is_the_best_of_all_said_for_every_image(rng):
    references = training(rng)
    tokenised = [ptb_tokenize(texts) for texts in references]
    df = DocumentFrequencies.fit(tokenised)
    means = {
        text: cider_d(ptb_tokenize([text]) * len(references), tokenised, df).mean()
        for text in {text for texts in references for text in texts}
    }
    assert means[best_constant_caption(references)] == pytest.approx(max(means.values()))


def test_the_search_is_in_samples_that_the_seed_decides(rng):
    references = training(rng, 200)
    first = best_constant_caption(references, n_candidates=4, n_images=20, seed=1)
    assert first == best_constant_caption(references, n_candidates=4, n_images=20, seed=1)


def test_a_derangement_leaves_no_place_its_own(rng):
    for n in (2, 3, 50):
        order = derangement(range(n), rng)
        assert sorted(order) == list(range(n))
        assert (order != np.arange(n)).all()


def test_derangements_of_three_come_equally_often(rng):
    firsts = [derangement(range(3), rng)[0] for _ in range(600)]
    assert np.mean(np.array(firsts) == 1) == pytest.approx(0.5, abs=0.08)  # ±4 standard errors


def test_no_image_gets_a_trial_of_its_own():
    ids = np.repeat(np.arange(40), 3).tolist()
    captions = [f"{image}" for image in ids]
    for texts in permuted_captions(captions, ids, n_permutations=4):
        assert sorted(texts) == sorted(captions)
        assert all(text != caption for text, caption in zip(texts, captions, strict=True))


def test_there_is_no_ceiling_where_an_image_has_one_reference():
    scorer = CaptionScorer([["a dog"], ["a cat", "cats"], ["a bus"]])
    with pytest.raises(DataError, match="expected at least 2 references for every image, found 1"):
        human_ceiling(scorer)


def test_every_reference_is_held_out_in_turn():
    scorer = CaptionScorer([["a dog", "a dog runs", "dogs"], ["a cat", "two cats"]])
    rounds = []
    for k in range(2):
        others = [[*texts[:k], *texts[k + 1 :]] for texts in scorer.raw_references]
        captions = [texts[k] for texts in scorer.raw_references]
        rest = CaptionScorer(others)
        rounds.append(rest.metrics(captions) | {"CIDEr": cider_d(captions, others, scorer.df).mean()})
    assert human_ceiling(scorer) == pytest.approx(mean_metrics(rounds))


@pytest.mark.parametrize(
    ("n_references", "n_others", "n_rounds"),
    [(20, 200_000, 20), (21, 21, 20), (21, 5_000, 19), (3_000, 15_000, 5), (3_000, 200_000, 5)],
)
def test_thousands_of_references_are_held_out_in_few_rounds(n_references, n_others, n_rounds):
    """Sixty thousand references took hours when each was held out."""

    class Scorer(CaptionScorer):
        """Counts the rounds."""

        def __init__(self) -> None:
            super().__init__([["a dog", "dogs"], ["a cat", "two cats"]])
            self.references = (range(n_references), range(n_others))
            self.held_out: list[int] = []
            self.numbers = CaptionScorer([["a dog", "dogs"], ["a cat", "two cats"]]).per_held_out_reference(0)

        def per_held_out_reference(self, k):
            self.held_out.append(k)
            return self.numbers

    scorers = [Scorer(), Scorer(), Scorer()]
    found = [human_ceiling(scorer, seed=seed) for scorer, seed in zip(scorers, (1, 1, 2), strict=True)]
    first, again, other = (scorer.held_out for scorer in scorers)
    assert len(set(first)) == len(first) == n_rounds
    assert set(first) <= set(range(n_references))
    assert first == again
    assert (first == other) == (n_rounds == n_references)
    said = f"{n_rounds} of {n_references} references of each image (seed 2)"
    assert found[2].get("drawn") == (None if n_rounds == n_references else said)


def test_means_are_of_the_metrics_that_every_round_has():
    assert mean_metrics([{"a": 1.0, "b": 5.0}, {"a": 2.0}]) == {"a": 1.5}


def test_what_cannot_be_permuted_or_chosen_is_refused(rng):
    with pytest.raises(DataError, match="expected groups that can be exchanged, found 1 with up to 2 of 2"):
        derangement(["x", "x"], rng)
    with pytest.raises(DataError, match="found 2 with up to 3 of 4 places"):
        permuted_captions(list("abcd"), ["x", "x", "x", "y"])
    with pytest.raises(DataError, match=r"constant caption: .* found 0 images and 0 candidates"):
        best_constant_caption([])


def test_the_human_ceiling_of_brainhub_is_the_published_one(brainhub):
    scorer = CaptionScorer(brainhub.references)
    words, others = [texts[0] for texts in scorer.references], [texts[1:] for texts in scorer.references]
    # the published figure is of each image's first reference, with the idf of the remaining ones
    assert cider_d(words, others).mean() == pytest.approx(95.35, abs=0.005)
    # ours, every reference in turn with the idf that systems are scored with, differs little
    assert human_ceiling(scorer)["CIDEr"] == pytest.approx(95.35, abs=0.05)


def test_the_floors_of_brainhub_are_the_measured_ones(brainhub):
    scorer = CaptionScorer(brainhub.references)
    constant = scorer.metrics(["a man riding a wave on top of a surfboard."] * 982)
    assert constant["BLEU-4"] == pytest.approx(8.30, abs=0.01)
    assert constant["ROUGE-L"] == pytest.approx(34.51, abs=0.01)
    assert constant["CIDEr"] == pytest.approx(10.13, abs=0.01)
    permuted = [scorer.metrics(texts) for texts in permuted_captions(brainhub.captions, brainhub.ids)]
    assert np.mean([metrics["CIDEr"] for metrics in permuted]) == pytest.approx(4.12, abs=0.7)
