import numpy as np
import pytest
from pydantic import ValidationError

from bitllm.data.prompt import plain_caption
from bitllm.data.targets import make_targets
from bitllm.errors import TrainingError
from bitllm.metrics.bertscore import BertScorer
from bitllm.metrics.cider import DocumentFrequencies, cider_d
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.stages.rewards import CompositeReward, RewardWeights, checked_reward, permuted_reward


class OneScorer(BertScorer):
    """A BERTScore of 100 for every caption, or what it was told to say."""

    def __init__(self, value=100.0):
        self.value = value

    def score(self, captions, references):
        self.references = references
        return np.full(len(captions), self.value)


@pytest.fixture(scope="module")
def make(easy, small_clip):
    """A composite reward of the easy brain's training images."""
    targets = make_targets(easy.store, small_clip)

    def make(scorer=None, **weights):
        return CompositeReward(
            easy.store,
            sorted(easy.split.train_images),
            targets,
            clip=small_clip,
            bert_scorer=scorer or OneScorer(),
            weights=RewardWeights(**weights),
        )

    return make


def test_the_total_is_the_weighted_sum_of_its_parts(easy, make):
    ids = sorted(easy.split.train_images)[:3]
    captions = [easy.store.captions[nsd_id][0] for nsd_id in ids]
    rewards = make(cider=2.0, bertscore=0.5, ip=3.0)(ids, captions, [True, True, True])
    expected = 2 * rewards.cider + 0.5 * rewards.bertscore + 3 * rewards.ip
    assert np.allclose(rewards.total, expected)
    assert (rewards.bertscore == 1).all()


def test_cider_has_the_document_frequencies_of_the_training_references(easy, make):
    ids = sorted(easy.split.train_images)
    captions = ["a dog on a bench", "two boats"]
    references = [ptb_tokenize(easy.store.captions[nsd_id]) for nsd_id in ids]
    df = DocumentFrequencies.fit(references)
    expected = cider_d(ptb_tokenize(captions), references[:2], df) / 100
    assert np.allclose(make()(ids[:2], captions, [True, True]).cider, expected)


def test_the_inner_product_is_that_of_the_clips_own_embeddings(easy, make, small_clip):
    ids = sorted(easy.split.train_images)[:2]
    captions = ["a dog", "two boats near a beach"]
    caption_rows = small_clip.captions(captions)
    picture_rows = small_clip.pictures(easy.store.pictures(ids))
    expected = [
        sum(a * b for a, b in zip(x, y, strict=True)) for x, y in zip(caption_rows, picture_rows, strict=True)
    ]
    assert np.allclose(make()(ids, captions, [True, True]).ip, expected, atol=1e-6)


def test_a_caption_without_its_end_scores_nothing(easy, make):
    ids = sorted(easy.split.train_images)[:2]
    same = [easy.store.captions[ids[0]][0]] * 2
    rewards = make()([ids[0], ids[0]], same, [True, False])
    assert rewards.total[0] > 1
    assert [part[1] for part in rewards] == [0, 0, 0, 0]


def test_empty_and_endless_captions_score_and_do_not_crash(easy, make):
    ids = sorted(easy.split.train_images)[:3]
    rewards = make()(ids, ["", "word " * 500, "?!"], [True, True, True])
    assert np.isfinite(rewards.total).all()
    assert (rewards.cider == 0).all()


def test_a_reward_that_is_not_a_number_is_refused_with_its_caption(easy, make):
    ids = sorted(easy.split.train_images)[:1]
    with pytest.raises(TrainingError, match=rf"'two boats' of image {ids[0]}, found nan"):
        checked_reward(make(OneScorer(np.nan)), ids, ["two boats"], [True])


def test_bertscore_reads_references_as_the_llm_says_them(easy, make):
    scorer = OneScorer()
    nsd_id = min(easy.split.train_images)
    make(scorer)([nsd_id], ["a dog"], [True])
    assert scorer.references == [[plain_caption(text) for text in easy.store.captions[nsd_id]]]


def test_weights_are_not_negative():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        RewardWeights(cider=-1.0)


def test_a_reward_that_raises_is_named_with_the_caption_that_it_raised_at():
    def reward(nsd_ids, captions, has_ended):
        if "boat" in captions:
            raise ZeroDivisionError("nothing to divide by")
        return np.zeros(len(captions))

    message = r"'boat' of image 8, found ZeroDivisionError \(nothing to divide by\);"
    with pytest.raises(TrainingError, match=message):
        checked_reward(reward, [7, 8], ["dog", "boat"], [True, True])


def test_without_a_scorer_there_is_no_bertscore(easy, make):
    reward = make()
    reward.bert_scorer = None
    rewards = reward(sorted(easy.split.train_images)[:1], ["a dog"], [True])
    assert rewards.bertscore.tolist() == [0.0]


def test_a_permuted_reward_never_uses_the_references_of_the_image_itself(make, easy):
    nsd_ids = sorted(easy.split.train_images)
    captions = [easy.store.captions[nsd_id][0] for nsd_id in nsd_ids]
    own = make(cider=1.0, bertscore=0.0, ip=0.0)
    permuted = permuted_reward(own, nsd_ids, seed=0)
    cider, other = (reward(nsd_ids, captions, [True] * len(captions)).cider for reward in (own, permuted))
    assert (cider > 1).mean() > 0.9
    assert other.mean() < 0.3 * cider.mean()
