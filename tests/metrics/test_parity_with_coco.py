"""BLEU, ROUGE-L and CIDEr against the scorers of pycocoevalcap, on captions that hypothesis makes up."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitllm.metrics.bleu import bleu_counts, bleu_from_counts
from bitllm.metrics.cider import Cider, DocumentFrequencies, cider_d, cider_matrix
from bitllm.metrics.rouge import rouge_l

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is in the extra `dev`")
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider as CocoCider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge

# few words, so that n-grams repeat and match; some of them not ASCII or not letters
WORDS = st.sampled_from(["a", "man", "dog", "on", "the", "wave", "café", "-lrb-", "!!", "犬"])
TEXT = st.lists(WORDS, max_size=14).map(" ".join)
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
    theirs, _ = Bleu(4).compute_score(truth, found, verbose=0)
    np.testing.assert_allclose(ours, 100 * np.array(theirs), rtol=1e-9, atol=0)


@SETTINGS
@given(IMAGES)
def test_bleu_of_one_image_equals_pycocoevalcap(images):
    captions, references, truth, found = as_coco(images)
    ours = [bleu_from_counts(row) for row in bleu_counts(captions, references)]
    _, theirs = Bleu(4).compute_score(truth, found, verbose=0)
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
def test_the_matrix_of_all_pairs_equals_one_pair_at_a_time(images):
    captions, references, _, _ = as_coco(images)
    df = DocumentFrequencies.fit(references)
    scorer = Cider(references, df)
    expected = [[scorer.score([image], [text])[0] for image in range(len(references))] for text in captions]
    np.testing.assert_allclose(cider_matrix(captions, references, df), expected, rtol=1e-9, atol=1e-9)
