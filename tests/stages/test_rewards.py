import numpy as np
import pytest
from pydantic import ValidationError

from bitllm.data.dataset import TrialSet, select_trials
from bitllm.data.prompt import plain_caption
from bitllm.data.targets import make_targets
from bitllm.errors import ConfigError, TrainingError
from bitllm.metrics.bertscore import BertScorer
from bitllm.metrics.cider import DocumentFrequencies, cider_d
from bitllm.metrics.objects import categories_by_image
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.stages.rewards import (
    Answers,
    CompositeReward,
    RewardConfig,
    RewardModels,
    checked_reward,
    rank_log_prob,
    reward_from,
    rival_images,
    rival_trials,
)

NOTHING = {"cider": 0.0, "bertscore": 0.0, "ip": 0.0}


class OneScorer(BertScorer):
    """A BERTScore of 100 for every caption, or another constant."""

    def __init__(self, value=100.0):
        self.value = value

    def score(self, captions, references):
        self.references = references
        return np.full(len(captions), self.value)


@pytest.fixture(scope="module")
def trials(easy):
    return select_trials(easy.store, easy.split, "train", averaged=False)


@pytest.fixture(scope="module")
def make(easy, small_clip, trials):
    """A composite reward of the easy brain's training trials."""
    targets = make_targets(easy.store, small_clip)
    width = targets.image.shape[1]
    embeddings = np.random.default_rng(0).normal(size=(len(trials), width)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)

    def make(scorer=None, **weights):
        config = RewardConfig(**weights)
        models = RewardModels(
            clip=small_clip, targets=targets, bert_scorer=scorer or OneScorer(), trial_embeddings=embeddings
        )
        return CompositeReward(easy.store, trials, models, config)

    return make


@pytest.fixture(scope="module")
def answers(trials):
    """Captions of the first trials of some images, ended unless told otherwise."""
    first = {}
    for row, nsd_id in enumerate(trials.nsd_id.tolist()):
        first.setdefault(nsd_id, row)

    def answers(nsd_ids, captions, has_ended=None):
        ended = [True] * len(captions) if has_ended is None else has_ended
        return Answers([first[nsd_id] for nsd_id in nsd_ids], nsd_ids, captions, ended)

    return answers


@pytest.fixture(scope="module")
def images(easy):
    return sorted(easy.split.train_images)


def test_only_parts_with_a_weight_are_computed_and_cider(images, answers, make):
    assert set(make()(answers(images[:1], ["a dog"]))) == {"cider", "bertscore", "ip"}
    reward = make(**NOTHING | {"contrast": 1.0})
    reward.models = RewardModels(reward.models.clip, reward.models.targets)
    assert set(reward(answers(images[:1], ["a dog"]))) == {"cider", "contrast"}


def test_cider_has_the_document_frequencies_of_the_training_references(easy, images, answers, make):
    captions = ["a dog on a bench", "two boats"]
    references = [ptb_tokenize(easy.store.captions[nsd_id]) for nsd_id in images]
    df = DocumentFrequencies.fit(references)
    expected = cider_d(ptb_tokenize(captions), references[:2], df) / 100
    assert np.allclose(make()(answers(images[:2], captions))["cider"], expected)


def test_the_inner_product_is_that_of_the_clips_own_embeddings(easy, images, answers, make, small_clip):
    captions = ["a dog", "two boats near a beach"]
    caption_rows = small_clip.captions(captions)
    picture_rows = small_clip.pictures(easy.store.pictures(images[:2]))
    expected = [
        sum(a * b for a, b in zip(x, y, strict=True)) for x, y in zip(caption_rows, picture_rows, strict=True)
    ]
    assert np.allclose(make()(answers(images[:2], captions))["ip"], expected, atol=1e-6)


def test_a_caption_without_its_end_gets_nothing(easy, images, answers, make):
    same = [easy.store.captions[images[0]][0]] * 3
    reward = make(contrast=1.0, neural_rank=1.0)
    parts = reward(answers([images[0], images[0], images[1]], same, [True, False, True]))
    assert parts["cider"][0] > 1
    assert (parts["cider"][1], parts["bertscore"][1], parts["ip"][1]) == (0, 0, 0)
    for name in ("contrast", "neural_rank"):
        assert parts[name].max() <= 0
        assert parts[name].min() == parts[name][1] < parts[name][[0, 2]].min()


def test_empty_and_endless_captions_score_and_do_not_crash(images, answers, make):
    parts = make(contrast=1.0, neural_rank=1.0)(answers(images[:3], ["", "word " * 500, "?!"]))
    assert all(np.isfinite(part).all() for part in parts.values())
    assert (parts["cider"] == 0).all()


def test_rival_images_are_others_and_the_same_every_time():
    rivals = rival_images(30, 8, seed=0)
    for row, of_row in enumerate(rivals.tolist()):
        assert len(set(of_row)) == 8
        assert row not in of_row
        assert 0 <= min(of_row) <= max(of_row) < 30
    assert np.array_equal(rivals, rival_images(30, 8, seed=0))
    assert sorted(rival_images(3, 4, seed=0)[0].tolist()) == [-1, -1, 1, 2]


def test_the_reward_of_a_caption_does_not_depend_on_the_others(images, answers, make):
    """Else it would depend on how a batch is divided among processes."""
    reward = make(contrast=1.0, neural_rank=1.0, objects=1.0)
    asked = answers(images[:4], ["a dog", "two boats", "", "a cat on a mat"], [True, False, True, True])
    together = reward(asked)
    for row in range(4):
        alone = reward(asked.rows([row]))
        assert {name: part[row] for name, part in together.items()} == pytest.approx(
            {name: part[0] for name, part in alone.items()}, abs=1e-5
        )


def test_the_probability_of_a_rank_is_the_softmax_over_the_right_one_and_its_rivals():
    rng = np.random.default_rng(2)
    text, trials = rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    own, rivals = np.array([0, 3, 5]), np.array([[1, 2], [4, -1], [0, 1]])
    expected = []
    for row in range(3):
        others = [rival for rival in rivals[row] if rival >= 0]
        scores = {trial: 1.5 * sum(text[row] * trials[trial]) for trial in [own[row], *others]}
        expected.append(scores[own[row]] - np.log(sum(np.exp(score) for score in scores.values())))
    assert np.allclose(rank_log_prob(text, trials, own, rivals, sharpness=1.5), expected)


def test_rivals_are_trials_of_other_images_in_the_same_session(trials):
    rivals, session = rival_trials(trials, 8, seed=0), trials.sessions()
    assert (rivals >= 0).any(axis=1).all()
    for row, of_row in enumerate(rivals):
        others = of_row[of_row >= 0]
        assert len(set(others.tolist())) == len(others)
        assert (trials.nsd_id[others] != trials.nsd_id[row]).all()
        assert (trials.subject_index[others] == trials.subject_index[row]).all()
        assert (session[others] == session[row]).all()
    assert np.array_equal(rivals, rival_trials(trials, 8, seed=0))
    assert not np.array_equal(rivals, rival_trials(trials, 8, seed=1))


def test_a_session_with_one_image_has_no_rivals(trials):
    one = trials[trials.nsd_id == trials.nsd_id[0]]
    alone = TrialSet(one.store, one.subjects, one.subject_index[:1], one.rows[:1], one.nsd_id[:1])
    with pytest.raises(ConfigError, match=r"rewards\.neural_rank"):
        rival_trials(alone, 4, seed=0)


def test_naming_the_objects_of_an_image_is_rewarded(easy, images, answers, make):
    objects = categories_by_image(easy.store)
    image = next(nsd_id for nsd_id in images if len(objects[nsd_id]) == 2)
    one, two = sorted(objects[image])
    captions = [f"a {one} and a {two}", f"a {one}", "nothing to see"]
    parts = make(**NOTHING | {"objects": 1.0})(answers([image] * 3, captions))
    assert parts["objects"].tolist() == pytest.approx([1.0, 2 / 3, 0.0])


def test_a_reward_that_is_not_a_number_is_refused_with_its_caption(images, answers, make):
    with pytest.raises(TrainingError, match=rf"'two boats' of image {images[0]}, found nan of bertscore"):
        checked_reward(make(OneScorer(np.nan)), answers(images[:1], ["two boats"]))


def test_bertscore_reads_references_as_the_llm_says_them(easy, images, answers, make):
    scorer = OneScorer()
    make(scorer)(answers(images[:1], ["a dog"]))
    assert scorer.references == [[plain_caption(text) for text in easy.store.captions[images[0]]]]


@pytest.mark.parametrize("weights", [{"cider": -1.0}, NOTHING, {"cider": float("nan")}])
def test_weights_are_not_negative_and_not_all_0(weights):
    with pytest.raises(ValidationError, match=r"rewards\.cider|greater than or equal to 0|finite"):
        RewardConfig(**weights)


def test_a_reward_that_raises_is_named_with_the_caption_that_it_raised_at():
    def reward(answers):
        if "boat" in answers.captions:
            raise ZeroDivisionError("nothing to divide by")
        return {"one": np.zeros(len(answers.captions))}

    message = r"'boat' of image 8, found ZeroDivisionError \(nothing to divide by\)"
    with pytest.raises(TrainingError, match=message):
        checked_reward(reward, Answers([0, 1], [7, 8], ["dog", "boat"], [True, True]))


def test_a_permuted_reward_never_uses_the_references_of_the_image_itself(easy, make, images, answers, trials):
    asked = answers(images, [easy.store.captions[nsd_id][0] for nsd_id in images])
    own = make(cider=1.0, bertscore=0.0, ip=0.0)
    permuted = reward_from(own, "permuted", trials, seed=0)
    cider, other = (reward(asked)["cider"] for reward in (own, permuted))
    assert (cider > 1).mean() > 0.9
    assert other.mean() < 0.3 * cider.mean()


def test_a_reward_of_any_image_depends_on_the_text_alone(easy, make, images, answers, trials):
    reward = reward_from(make(cider=1.0, bertscore=0.0, ip=0.0), "any", trials, seed=0)
    caption = easy.store.captions[images[0]][0]
    values = reward(answers(images[:5], [caption] * 5))["cider"]
    assert np.ptp(values) == 0
    assert np.ptp(reward(answers(images[:2], [caption, "a dog"]))["cider"]) > 0


def test_a_random_reward_is_the_same_in_every_run_and_another_for_each_trial(answers, images, trials, make):
    asked = answers(images[:3], ["a dog"] * 3)
    first, second = (reward_from(make(), "none", trials, seed=3)(asked)["random"] for _ in range(2))
    assert np.array_equal(first, second)
    assert len(set(first.tolist())) == 3
