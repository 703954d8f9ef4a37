"""The results of an evaluation as plain dataclasses, which the terminal, the HTML page and the model card read.

`results_of` (in `bitllm.evaluation.table`) derives them from ``evaluation.parquet``; ``results.json`` is their JSON
form. Scores are in points, as the COCO tools print them (CIDEr 61.1). A number that was not computed is None or
absent.
"""

import types
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bitllm.errors import DataError
from bitllm.metrics.intervals import Estimate

T = TypeVar("T")
_NOTHING = object()

Scores = dict[str, Estimate]
"""Metric → score in points, with its interval over images."""


@dataclass(frozen=True)
class InputResult:
    """One system under one input: the real betas, or a control."""

    scores: Scores
    n_distinct: int
    """Number of different captions."""
    n_empty: int
    """Number of captions without a word."""
    mean_length: float
    """Mean number of words."""
    n_captions: int
    real_minus_this: Scores = field(default_factory=dict)
    """Paired difference real − this input, by metric; empty for the real input."""
    bits: Scores = field(default_factory=dict)
    """log2 p(references | real) − log2 p(references | this input), ``per_caption``, ``per_token``, ``per_word``; empty
    for the real input and where no likelihood was computed."""


@dataclass(frozen=True)
class TaskInput:
    """The questions of one task under one input; accuracies in points."""

    scores: Scores
    """Accuracy of the ``decoded`` answers, and by ``likelihood`` (the most probable option) if there are options."""
    n_distinct: int
    """Number of different decoded answers."""
    real_minus_this: Scores = field(default_factory=dict)
    """Paired difference real − this input; empty for the real input."""
    bits: Estimate | None = None
    """log2 p(accepted answer | real) − log2 p(accepted answer | this input), per question."""
    yes_ratio: float | None = None
    """Share of "yes" among the decoded answers to yes/no questions."""
    chosen_yes_ratio: float | None = None
    """The same among the most probable options."""
    rmse: float | None = None
    """Root of the mean squared error of decoded counts."""
    ranking: dict[str, float] = field(default_factory=dict)
    """Of the right option among many: ``R@1``, ``R@5``, ``R@10``, ``MRR``, ``mean rank``; of rated ones ``NDCG``."""

    @property
    def kind(self) -> str:
        """The score of the headline: by ``likelihood`` if there are options, else ``decoded``."""
        return "likelihood" if "likelihood" in self.scores else "decoded"

    @property
    def score(self) -> Estimate:
        """The score of the headline."""
        return self.scores[self.kind]

    @property
    def lead(self) -> Estimate | None:
        """Real − this input in the score of the headline."""
        return self.real_minus_this.get(self.kind)


@dataclass(frozen=True)
class TaskResult:
    """One task: its questions under every input."""

    answer_type: str
    metric: str
    """Definition of the accuracy of decoded answers."""
    source: str
    license: str
    n_available: int
    """Number of questions about the held-out images, of which ``n_questions`` were drawn with the seed."""
    n_options: int
    """Number of options of a question, the largest; 0 for open questions."""
    n_questions: int
    n_images: int
    inputs: dict[str, TaskInput]
    """By input, ``real`` first; the earlier turns of a dialogue have their true answers."""
    own_history: dict[str, TaskInput] = field(default_factory=dict)
    """The same for dialogues in which the earlier turns have the system's own answers; ``real`` and ``permuted``."""


@dataclass(frozen=True)
class TasksResult:
    """All tasks of one system. Over tasks, a question with options counts by likelihood, another one by its text."""

    tasks: dict[str, TaskResult]
    micro: Scores
    """By input: accuracy over all questions."""
    macro: Scores
    """By input: mean over the tasks."""
    micro_real_minus: Scores = field(default_factory=dict)
    macro_real_minus: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class SystemResult:
    """One trained system on the held-out subject."""

    averaged: dict[str, InputResult]
    """By input, ``real`` first: trials averaged over repetitions."""
    single: dict[str, InputResult] = field(default_factory=dict)
    """By input: single trials."""
    n_trainable: int | None = None
    """Number of trained parameters."""
    questions: TasksResult | None = None
    """Answers to questions, if the store has them."""

    @property
    def real(self) -> InputResult:
        """With real betas, averaged over repetitions."""
        return self.averaged["real"]

    @property
    def controls(self) -> dict[str, InputResult]:
        """All other inputs, averaged over repetitions."""
        return {name: found for name, found in self.averaged.items() if name != "real"}


@dataclass(frozen=True)
class RetrievalResult:
    """Brain → image retrieval among the test images, under one input."""

    r_at: dict[int, float]
    """k → share of queries with the right picture among the first k, for 1, 5 and 10."""
    r_at_10: Estimate
    chance_r_at_10: float
    median_rank: float
    chance_median_rank: float
    n_pictures: int
    n_queries: int


@dataclass(frozen=True)
class Identification:
    """Accuracy of choosing the correct image among N: one point of the N-way curve."""

    ways: int
    correct: Estimate
    chance: float


WITHOUT_ALIGN = "mean brain token"
"""Value of `EncoderResult.embedding` if there is no align stage."""


@dataclass(frozen=True)
class EncoderResult:
    """What the encoder's embedding reveals about the image, without an LLM."""

    retrieval: dict[str, RetrievalResult] = field(default_factory=dict)
    """By input; ``single_trial`` for single trials under the real betas."""
    identification: tuple[Identification, ...] = ()
    cosine_real_zero: tuple[float, float] | None = None
    """Mean and standard deviation over trials of the cosine of the embeddings of real and all-zero betas."""
    embedding: str = ""
    """The embedding that was used."""
    real_minus_permuted: dict[str, Estimate] = field(default_factory=dict)
    """Paired difference in ``R@10`` and in 2-way identification (``2-way``), with the draws of a control averaged;
    also for single trials (``R@10, single trials``, …)."""


@dataclass(frozen=True)
class GroupResult:
    """The final system on one group of test images."""

    kind: str
    """``repetitions``, ``category`` or ``similarity_to_training``."""
    name: str
    n_images: int
    cider: Estimate | None = None
    """None with fewer than two images, like all fields below."""
    real_minus_permuted: Estimate | None = None
    bits_per_word: Estimate | None = None


@dataclass(frozen=True)
class RegionResult:
    """A region silenced (betas 0), as many random other voxels silenced, and the region alone."""

    name: str
    """``ATLAS`` or ``ATLAS:LABEL``."""
    n_voxels: int
    bits_lost: Estimate
    """Bits per word lost when the region is silenced."""
    bits_lost_same_size: Estimate
    """Bits per word lost when as many random voxels outside the region are silenced."""
    bits_alone: Estimate
    """Bits per word from the region alone: its own image against another image."""
    cider_lost: Estimate
    cider_alone: Estimate
    bits_lost_by_category: dict[str, Estimate] = field(default_factory=dict)
    bits_alone_by_category: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class CategoryTask:
    """The category task of an evaluation, with a classifier as baseline; shares in percent."""

    n_categories: int
    chance: float
    classifier: Estimate | None = None
    """Nearest class mean by correlation on the same trials, without an LLM; None if it was not run."""
    n_permutations: int = 0
    permuted_mean: float | None = None
    """The same classifier with categories that are permuted within each test run: the mean over permutations."""
    permuted_best: float | None = None
    """The best of all permutations."""


@dataclass(frozen=True)
class About:
    """Where the numbers come from: data, split, seeds, software."""

    data: str
    """Source of the store; for a simulated brain with preset, seed and version."""
    is_simulated: bool
    subject: str
    is_subject_trained_on: bool | None
    """None if that is not known."""
    part: str
    """``test`` or ``validation``."""
    is_store_of_training: bool
    split: str
    split_sha256: str
    store_sha256: str
    n_images: int
    n_trials: int
    seed: int
    llm: str
    max_new_tokens: int
    references_sha256: str
    tokenizer: str
    signal: float | None = None
    """Strength of the simulated signal."""
    constant_caption: str = ""
    how_chosen: str = ""
    """How the settings were chosen, if that is known."""
    command: str = ""
    git_revision: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of every step of the run."""
    peak_memory_gb: float | None = None
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How each control was made."""
    not_run: dict[str, str] = field(default_factory=dict)
    """What was not computed, with the reason."""
    notes: tuple[str, ...] = ()
    """What a reader should know although it is not an error."""
    n_adapting_trials: int = 0
    """Trials of other images by whose betas the encoder was adapted to the subject; 0 if it was not."""
    design: str = ""
    """What is new in the test trials, if subject and images do not say it."""
    license: str = ""
    """License of the data."""
    citation: str = ""
    """Publication of the data."""


@dataclass(frozen=True)
class Results:
    """All results of an evaluation."""

    about: About
    systems: dict[str, SystemResult]
    """The final system (rft, else sft, else the first one) is `final`."""
    encoder: EncoderResult = EncoderResult()
    between_systems: dict[str, Estimate] = field(default_factory=dict)
    """``A - B`` → paired difference in CIDEr, both under their real betas."""
    human: dict[str, float] = field(default_factory=dict)
    """Each reference scored against the others of its image, by metric."""
    groups: tuple[GroupResult, ...] = ()
    similarity_to_training: Estimate | None = None
    """Rank correlation over images between CIDEr real − permuted and the similarity to the nearest training image;
    positive if images similar to a training image are decoded better."""
    regions: tuple[RegionResult, ...] = ()
    reward: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean sampled reward of the first and the last fifth of the rft steps: ``reward`` and each of its parts."""
    categories: CategoryTask | None = None
    """The category task, where each image shows one category; its shares are the metric ``Category`` of the scores."""

    @property
    def final(self) -> str:
        """Name of the system of the headline."""
        return next((name for name in ("rft", "sft") if name in self.systems), next(iter(self.systems), ""))

    @property
    def asked(self) -> str:
        """Name of the system of the section on questions: the final one if it was asked, else the last that was."""
        asked = [name for name, system in self.systems.items() if system.questions is not None]
        return self.final if self.final in asked or not asked else asked[-1]


def to_json(value: Any) -> Any:
    """JSON value of a dataclass of this module, without fields at their defaults."""
    if isinstance(value, Estimate):
        return {name: part for name, part in value._asdict().items() if part is not None}
    if is_dataclass(value) and not isinstance(value, type):
        own = {one.name: getattr(value, one.name) for one in fields(value)}
        return {
            name: to_json(own[name])
            for name in own
            if own[name] != _defaults(type(value)).get(name, _NOTHING)
        }
    if isinstance(value, dict):
        return {str(key): to_json(part) for key, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[T], content: Any, where: str) -> T:
    """Read the output of `to_json`.

    Parameters
    ----------
    kind
        A dataclass of this module.
    content
        The JSON value.
    where
        File and position in it, for errors.
    """
    return cast(T, _read(kind, content, where))


def _read(kind: Any, content: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any or (content is None and type(None) in parts):
        return content
    if origin in (Union, types.UnionType):
        return _read(next(part for part in parts if part is not type(None)), content, where)
    if kind is Estimate or is_dataclass(kind):
        return _read_record(kind, content, where)
    if origin is dict:
        _require(isinstance(content, dict), where, "an object", content)
        return {parts[0](name): _read(parts[1], part, f"{where}.{name}") for name, part in content.items()}
    if origin is tuple:
        inner = [parts[0]] * len(content) if parts[-1] is Ellipsis and isinstance(content, list) else parts
        _require(isinstance(content, list) and len(content) == len(inner), where, "a list", content)
        return tuple(_read(part, content[i], f"{where}[{i}]") for i, part in enumerate(inner))
    fits = isinstance(content, int | float if kind is float else kind)
    _require(fits and (kind is bool or not isinstance(content, bool)), where, kind.__name__, content)
    return content


def _read_record(kind: Any, content: Any, where: str) -> Any:
    _require(isinstance(content, dict), where, "an object", content)
    hints = get_type_hints(kind)
    needed = hints.keys() - _defaults(kind).keys()
    wrong = sorted((content.keys() - hints.keys()) | (needed - content.keys()))
    _require(not wrong, where, f"the fields of {kind.__name__}", f"unknown or missing: {', '.join(wrong)}")
    return kind(**{name: _read(hints[name], part, f"{where}.{name}") for name, part in content.items()})


def _defaults(kind: Any) -> dict[str, Any]:
    """Default value of every field that has one."""
    if kind is Estimate:
        return dict(Estimate._field_defaults)
    found = {one.name: one.default for one in fields(kind) if one.default is not MISSING}
    return found | {
        one.name: one.default_factory() for one in fields(kind) if one.default_factory is not MISSING
    }


def _require(fits: bool, where: str, expected: str, found: Any) -> None:
    if not fits:
        raise DataError(
            f"{where}: expected {expected}, found {str(found)[:80]}; run `bitllm evaluate` again with this version"
        )
