"""The rewards of rft: the poster's composite R = α·R_CIDEr + β·R_BERT + γ·R_IP, and verifier rewards.

References
----------
The poster, "Stage 3". It defines neither R_IP nor the weights and models. Ours: CIDEr-D against the image's references
with document frequencies of the *training* references (with those of a batch, a single image would always score 0);
BERTScore F1, the best over the references; the inner product of the unit CLIP embeddings of caption and image.

Verifiers check a caption against the image or the brain instead of the references. ``objects`` is the F1 of the
objects that a caption names (as CHAIR, Rohrbach et al. 2018, counts them). ``contrast`` and ``neural_rank`` are
log-probabilities of the right choice: the image among other training images by CLIP, the trial's own betas among other
trials of the session by an encoder that was trained without this image.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from bitllm.config import StrictConfig
from bitllm.data.dataset import TrialSet
from bitllm.data.prompt import plain_caption
from bitllm.data.store import Store
from bitllm.data.targets import ClipEmbedder, Targets
from bitllm.data.tasks.exchange import Question
from bitllm.errors import ConfigError
from bitllm.losses.policy import RewardScale
from bitllm.metrics.answers import score_of
from bitllm.metrics.bertscore import BertScorer
from bitllm.metrics.cider import Cider, DocumentFrequencies
from bitllm.metrics.objects import categories_by_image, object_scores, object_vocabulary
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.training.loop import StopAfterCheckpointError

_CACHED = 256  # reference vectors in memory, so that it does not grow with the number of images
_N_ANY = 16  # training images whose references together reward the text alone

RewardSource = Literal["own", "permuted", "any", "none"]


class RewardConfig(StrictConfig):
    """Weights of the parts of the reward; a part with weight 0 is not computed."""

    cider: float = Field(default=1.0, ge=0)
    """α, of CIDEr-D (0 to 10)."""
    bertscore: float = Field(default=1.0, ge=0)
    """β, of BERTScore F1 (at most 1)."""
    ip: float = Field(default=1.0, ge=0)
    """γ, of the inner product of caption and image (at most 1)."""
    objects: float = Field(default=0.0, ge=0)
    """Of the F1 of the named objects (0 to 1)."""
    contrast: float = Field(default=0.0, ge=0)
    """Of the log-probability (nats) of the right image among other training images, given the caption."""
    neural_rank: float = Field(default=0.0, ge=0)
    """Of the log-probability (nats) of the trial's betas among those of other trials, given the caption."""
    answers: float = Field(default=1.0, ge=0, exclude_if=lambda weight: weight == 1.0)
    """Of the accuracy of an answer (0 to 1) to a question of `rft.tasks`, which no other part rewards."""
    scale: RewardScale = "raw"
    """raw: parts in their own units. group: each part standardized among the G captions of an input."""
    n_rivals: int = Field(default=63, ge=1)
    """Largest number of other trials of the same subject and session in the ranking of neural_rank."""

    @model_validator(mode="after")
    def _rewards_something(self) -> "RewardConfig":
        if not any(getattr(self, name) for name in PARTS):
            raise ValueError("expected at least one weight above 0, found only 0; set rft.rewards.cider to 1")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every part, by name."""
        of_captions = {name: getattr(self, name) for name in PARTS}
        return of_captions | {CLIP_F1: self.bertscore, ANSWERS: self.answers}


PARTS = ("cider", "bertscore", "ip", "objects", "contrast", "neural_rank")
"""Parts of the reward of a caption."""
ANSWERS = "answers"
"""Name of the part of an answer to a question."""
_LOG_PROBS = ("contrast", "neural_rank")
CLIP_F1 = "clip_f1"
"""Name of the part that replaces BERTScore where its encoder is the text tower of a CLIP."""


class Answers(NamedTuple):
    """Sampled captions, with the trial and image of each."""

    trial: Sequence[int]
    """Index of each caption's trial among the training trials."""
    nsd_id: Sequence[int]
    captions: Sequence[str]
    has_ended: Sequence[bool]
    """Whether each caption ended with an end token."""
    questions: Sequence[Question | None] = ()
    """For each caption, the question that it answers, if any; empty if there are only captions."""

    def rows(self, chosen: Sequence[int]) -> "Answers":
        """Some of the captions."""
        return Answers(
            [self.trial[row] for row in chosen],
            [self.nsd_id[row] for row in chosen],
            [self.captions[row] for row in chosen],
            [self.has_ended[row] for row in chosen],
            [self.questions[row] for row in chosen] if self.questions else (),
        )


Parts = Mapping[str, Float[np.ndarray, " n"]]
"""The parts of the reward of each caption, by name."""

Reward = Callable[[Answers], Parts]
"""Rewards captions, part by part."""


class RewardError(StopAfterCheckpointError):
    """A reward that raised an error or is not finite."""


@dataclass(frozen=True)
class RewardModels:
    """What the parts of a reward need, besides the captions of the store; None for parts that are not rewarded."""

    clip: ClipEmbedder | None = None
    targets: Targets | None = None
    """Embeddings of the images by the same CLIP."""
    bert_scorer: BertScorer | None = None
    bert_part: str = "bertscore"
    """Name of its part: ``bertscore``, or ``clip_f1`` if its encoder is a CLIP's text tower."""
    trial_embeddings: Float[np.ndarray, "trials d"] | None = None
    """Unit embeddings of the betas of every training trial in the space of CLIP's captions, each by an encoder that
    was trained without the trial's image."""


class CompositeReward:
    """Scores sampled captions of training trials.

    Parameters
    ----------
    store
        Captions and objects of the images.
    trials
        Training trials; the references of their images give the document frequencies.
    models
        Models of the parts that have a weight.
    seed
        Of the rival trials of ``neural_rank``.

    Raises
    ------
    ConfigError
        If a session has no rival trials for ``neural_rank``.
    DataError
        If the store has no objects for ``objects``.
    """

    def __init__(
        self, store: Store, trials: TrialSet, models: RewardModels, config: RewardConfig, *, seed: int = 0
    ) -> None:
        self.config, self.models = config, models
        nsd_ids = sorted(set(trials.nsd_id.tolist()))
        self.references = {nsd_id: list(store.captions[nsd_id]) for nsd_id in nsd_ids}
        tokenized: dict[Hashable, list[str]] = {
            nsd_id: ptb_tokenize(captions) for nsd_id, captions in self.references.items()
        }
        self.cider = Cider(tokenized, DocumentFrequencies.fit(list(tokenized.values())), max_cached=_CACHED)
        if config.objects > 0:
            self.vocabulary, self.objects = object_vocabulary(store), categories_by_image(store)
        self.images = np.array(nsd_ids)
        if config.contrast > 0:
            self.rival_images = rival_images(len(nsd_ids), config.n_rivals, seed=seed)
        if config.neural_rank > 0:
            self.rival_trials = rival_trials(trials, config.n_rivals, seed=seed)

    def __call__(self, answers: Answers) -> dict[str, Float[np.ndarray, " n"]]:
        """The parts with a weight, and CIDEr; a caption without an end token gets 0, or the lowest log-probability.

        An answer to a question is rewarded by its accuracy (VQA accuracy or exact match), and a caption by the other
        parts; what does not apply is 0.

        No reward depends on the other captions, so it does not matter how a batch is divided among processes.
        """
        if not answers.questions:
            return self._of_captions(answers)
        found = {name: np.zeros(len(answers.captions)) for name in (*self._names, ANSWERS)}
        captions = [row for row, question in enumerate(answers.questions) if question is None]
        if captions:
            of_captions = self._of_captions(answers.rows(captions)._replace(questions=()))
            for name, part in of_captions.items():
                found[name][captions] = part
        for row, question in enumerate(answers.questions):
            if question is not None and answers.has_ended[row]:
                found[ANSWERS][row] = score_of(question, answers.captions[row])
        return found

    @property
    def _names(self) -> list[str]:
        """Names of the parts of a caption's reward."""
        by_clip = ("ip", "contrast", "neural_rank") if self.models.clip is not None else ()
        bert = [] if self.models.bert_scorer is None else [self.models.bert_part]
        return ["cider", *bert, *(name for name in ("objects", *by_clip) if getattr(self.config, name) > 0)]

    def _of_captions(self, answers: Answers) -> dict[str, Float[np.ndarray, " n"]]:
        models = self.models
        nsd_id, captions = [int(one) for one in answers.nsd_id], answers.captions
        parts = {"cider": self.cider.score(nsd_id, ptb_tokenize(captions)) / 100}
        if models.bert_scorer is not None:
            references = [[plain_caption(text) for text in self.references[image]] for image in nsd_id]
            parts[models.bert_part] = models.bert_scorer.score(captions, references) / 100
        if self.config.objects > 0:
            scores = object_scores(captions, [self.objects[image] for image in nsd_id], self.vocabulary)
            parts["objects"] = np.nan_to_num(scores.f1)  # 0 for all captions of an image without objects
        if models.clip is not None:
            parts |= self._by_clip(models.clip, answers)
        ended = np.asarray(answers.has_ended, dtype=bool)
        # the lowest possible value of a log-probability: cosines differ by 2 at most
        lowest = 0.0 if models.clip is None else -2 * _sharpness(models.clip) - np.log1p(self.config.n_rivals)
        return {
            name: np.where(ended, part, lowest if name in _LOG_PROBS else 0.0) for name, part in parts.items()
        }

    def _by_clip(self, clip: ClipEmbedder, answers: Answers) -> dict[str, Float[np.ndarray, " n"]]:
        """The parts that embed the captions."""
        models, parts = self.models, {}
        assert models.targets is not None
        text, sharpness = clip.captions(answers.captions), _sharpness(clip)
        pictures = models.targets.image[models.targets.rows(self.images)]
        own = np.searchsorted(self.images, answers.nsd_id)
        if self.config.ip > 0:
            parts["ip"] = (text * pictures[own]).sum(axis=1)
        if self.config.contrast > 0:
            parts["contrast"] = rank_log_prob(
                text, pictures, own, self.rival_images[own], sharpness=sharpness
            )
        if self.config.neural_rank > 0:
            assert models.trial_embeddings is not None
            trial = np.asarray(answers.trial)
            rivals = self.rival_trials[trial]
            parts["neural_rank"] = rank_log_prob(
                text, models.trial_embeddings, trial, rivals, sharpness=sharpness
            )
        return parts


def _sharpness(clip: ClipEmbedder) -> float:
    return float(clip.clip.logit_scale.exp())


def rank_log_prob(
    text: Float[np.ndarray, "n d"],
    embeddings: Float[np.ndarray, "m d"],
    own: Int[np.ndarray, " n"],
    rivals: Int[np.ndarray, "n K"],
    *,
    sharpness: float,
) -> Float[np.ndarray, " n"]:
    """Log-probability (nats) of each caption's own row of ``embeddings`` among it and its rivals (−1 for none).

    The log softmax of sharpness · cosine.
    """
    among = np.column_stack([own, rivals])
    scores = sharpness * np.einsum("nd,nkd->nk", text, embeddings[among])
    scores[among < 0] = -np.inf
    return scores[:, 0] - _logsumexp(scores)


def _logsumexp(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    highest = scores.max(axis=1)
    return highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))


def rival_images(n_images: int, n_rivals: int, *, seed: int) -> Int[np.ndarray, "images K"]:
    """For each image, up to ``n_rivals`` other ones (rows; −1 for none)."""
    rivals = np.full((n_images, n_rivals), -1)
    n = min(n_rivals, n_images - 1)
    for row in range(n_images):
        drawn = np.random.default_rng([seed, row, 17]).choice(n_images - 1, n, replace=False)
        rivals[row, :n] = drawn + (drawn >= row)  # all but the image itself
    return rivals


def rival_trials(trials: TrialSet, n_rivals: int, *, seed: int) -> Int[np.ndarray, "trials K"]:
    """Trials of other images in the same subject and session, up to ``n_rivals``, for each single trial.

    Rows of ``trials``; filled up with −1. Trials of one session share its noise, so that noise does not identify one.

    Raises
    ------
    ConfigError
        If a session has no trial of another image.
    """
    session = trials.sessions()
    rivals = np.full((len(trials), n_rivals), -1)
    for subject, number in sorted(set(zip(trials.subject_index.tolist(), session.tolist(), strict=True))):
        members = np.flatnonzero((trials.subject_index == subject) & (session == number))
        rng = np.random.default_rng([seed, subject, number, 7])
        for row in members:
            others = members[trials.nsd_id[members] != trials.nsd_id[row]]
            if not len(others):
                raise ConfigError(
                    f"rft.rewards.neural_rank: expected trials of several images in session {number} of "
                    f"{trials.subjects[subject]}, found one; set its weight to 0"
                )
            drawn = rng.permutation(others)[:n_rivals]
            rivals[row, : len(drawn)] = drawn
    return rivals


def reward_from(reward: Reward, source: RewardSource, trials: TrialSet, *, seed: int) -> Reward:
    """The reward, or one of the checks that it must beat.

    Parameters
    ----------
    source
        ``own``: the reward itself. ``permuted``: captions are rewarded as if they described another training trial,
        always the same one for each image. ``any``: by the mean over 16 training trials that are the same for all
        captions, so that only the text counts. ``none``: by a random number for each trial and caption.
    """
    if source == "own":
        return reward
    first: dict[int, int] = {}  # a trial of each image
    for row, nsd_id in enumerate(trials.nsd_id.tolist()):
        first.setdefault(nsd_id, row)
    order = np.random.default_rng(seed).permutation(sorted(first)).tolist()
    if source == "permuted":
        other = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no image has its own
        return lambda answers: reward(_as_if(answers, [other[int(one)] for one in answers.nsd_id], first))
    if source == "any":
        return lambda answers: _mean_parts(
            [reward(_as_if(answers, [image] * len(answers.captions), first)) for image in order[:_N_ANY]]
        )
    return lambda answers: {"random": _random(answers, seed)}


def _random(answers: Answers, seed: int) -> Float[np.ndarray, " n"]:
    """A number for each trial and caption, the same in every run: a resumed training sees the same rewards."""
    pairs = zip(answers.trial, answers.captions, strict=True)
    return np.array(
        [np.random.default_rng([seed, trial, crc32(text.encode())]).random() for trial, text in pairs]
    )


def _as_if(answers: Answers, nsd_ids: list[int], trial_of: dict[int, int]) -> Answers:
    return answers._replace(nsd_id=nsd_ids, trial=[trial_of[nsd_id] for nsd_id in nsd_ids])


def _mean_parts(found: list[Parts]) -> Parts:
    return {name: np.mean([parts[name] for parts in found], axis=0) for name in found[0]}


def checked_reward(reward: Reward, answers: Answers) -> Parts:
    """Call the reward and require finite values.

    Raises
    ------
    RewardError
        If the reward raises or is not finite; the message contains the caption.
    """
    try:
        parts = reward(answers)
    except Exception as error:
        at = next((row for row in range(len(answers.captions)) if _raises(reward, answers, row)), 0)
        raise RewardError(
            f"reward: expected numbers for the caption {answers.captions[at]!r} of image {answers.nsd_id[at]}, found "
            f"{type(error).__name__} ({error}); fix the reward and run the same command, which resumes"
        ) from error
    for name, part in parts.items():
        bad = np.flatnonzero(~np.isfinite(part))
        if len(bad):
            raise RewardError(
                f"reward: expected a finite number for the caption {answers.captions[bad[0]]!r} of image "
                f"{answers.nsd_id[bad[0]]}, found {part[bad[0]]} of {name}; check the reward models and run the same "
                "command, which resumes"
            )
    return parts


def _raises(reward: Reward, answers: Answers, row: int) -> bool:
    try:
        reward(answers.rows([row]))
    except Exception:  # noqa: BLE001 - a reward may be anyone's code
        return True
    return False
