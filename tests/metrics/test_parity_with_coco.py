"""BLEU, ROUGE-L and CIDEr against the scorers of pycocoevalcap, on captions that hypothesis makes up."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from bitllm.metrics.bleu import Bleu, bleu_counts, bleu_from_counts
from bitllm.metrics.cider import Cider, DocumentFrequencies, cider_d, mean_cider
from bitllm.metrics.rouge import rouge_l

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is in the extra `dev`")
from pycocoevalcap.bleu.bleu import Bleu as CocoBleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

# few words, so that n-grams repeat and match; some of them not ASCII, not letters or with a no-break space,
# and some of any letters at all
KNOWN = st.sampled_from(
    ["a", "man", "dog", "on", "the", "wave", "café", "-lrb-", "!!", "what?!", "1\u00a01/2", "犬"]
)
ANY = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=6)
TEXT = st.lists(st.one_of(KNOWN, KNOWN, KNOWN, ANY), max_size=14).map(" ".join)
IMAGES = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=8)), min_size=1, max_size=8)
SETTINGS = settings(max_examples=60, deadline=None)


def as_coco(images):
    captions, references = [caption for caption, _ in images], [texts for _, texts in images]
    truth, found = dict(enumerate(references)), {place: [text] for place, text in enumerate(captions)}
    return captions, references, truth, found


@SETTINGS
@given(IMAGES)
def test_corpus_bleu_equals_pycocoevalcap(images):
    captions, references, truth, found = as_coco(images)
    ours = bleu_from_counts(bleu_counts(captions, references).sum(axis=0))
    theirs, _ = CocoBleu(4).compute_score(truth, found, verbose=0)
    np.testing.assert_allclose(ours, 100 * np.array(theirs), rtol=1e-9, atol=0)


@SETTINGS
@given(IMAGES)
def test_bleu_of_one_image_equals_pycocoevalcap(images):
    captions, references, truth, found = as_coco(images)
    ours = [bleu_from_counts(row) for row in bleu_counts(captions, references)]
    _, theirs = CocoBleu(4).compute_score(truth, found, verbose=0)
    np.testing.assert_allclose(ours, 100 * np.array(theirs).T, rtol=1e-9, atol=0)


@SETTINGS
@given(IMAGES)
def test_rouge_l_equals_pycocoevalcap(images):
    captions, references, truth, found = as_coco(images)
    _, theirs = Rouge().compute_score(truth, found)
    np.testing.assert_allclose(rouge_l(captions, references) / 100, theirs, rtol=1e-12, atol=1e-12)


@SETTINGS
@given(IMAGES.filter(lambda images: any(text for _, texts in images for text in texts)))
def test_cider_equals_pycocoevalcap(images):
    captions, references, truth, found = as_coco(images)
    mean, theirs = CocoCider().compute_score(truth, found)
    ours = cider_d(captions, references) / 100
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.mean(), mean, rtol=1e-12, atol=1e-12)


class CountedAsHundred(list):
    def __len__(self):
        return 100


@SETTINGS
@given(IMAGES, st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=10, max_size=10))
def test_cider_with_frozen_frequencies_equals_pycocoevalcap_given_the_same(images, training):
    captions, references, _, _ = as_coco(images)
    df = DocumentFrequencies.fit(10 * training)
    scorer = CiderScorer()
    for caption, texts in images:
        scorer += (caption, texts)
    scorer.crefs = CountedAsHundred(scorer.crefs)
    scorer.document_frequency = defaultdict(float, df.counts)
    theirs = np.array(scorer.compute_cider())
    np.testing.assert_allclose(cider_d(captions, references, df) / 100, theirs, rtol=1e-12, atol=1e-12)


@SETTINGS
@given(IMAGES)
def test_the_mean_over_all_images_equals_one_pair_at_a_time(images):
    captions, references, _, _ = as_coco(images)
    df = DocumentFrequencies.fit(references)
    n = len(references)
    expected = [cider_d([text] * n, references, df).mean() for text in captions]
    np.testing.assert_allclose(mean_cider(captions, references, df), expected, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(st.lists(st.lists(TEXT, min_size=2, max_size=5), min_size=1, max_size=6))
def test_a_held_out_reference_scores_as_a_caption_against_the_others(sets):
    df = DocumentFrequencies.fit(sets)
    others = [texts[:1] + texts[2:] for texts in sets]
    own = [texts[1] for texts in sets]
    np.testing.assert_allclose(Cider(sets, df).score_of_reference(1), cider_d(own, others, df), rtol=1e-9)
    assert np.array_equal(Bleu(sets).counts_of_reference(1), bleu_counts(own, others))


@SETTINGS
@given(IMAGES)
def test_matched_ngrams_equal_those_of_sacrebleu(images):
    captions, references, _, _ = as_coco(images)
    scorer = BLEU(tokenize="none", smooth_method="none", effective_order=True)
    for row, (caption, texts) in zip(bleu_counts(captions, references), images, strict=True):
        found = scorer.sentence_score(caption, texts)
        assert row[2:6].tolist() == found.counts
        assert row[6:].tolist() == found.totals
