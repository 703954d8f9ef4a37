"""``bitllm train``: one stage of a run, alone or in several processes; started again, it goes on.

RUN/  split.json  targets.safetensors  align.yaml  align/  sft.yaml  sft/  rft.yaml  rft/  brain_tokens/
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bitllm.data.splits import PRESETS, Split, images_in_statistics, load_split, make_split
from bitllm.data.store import Store, open_store
from bitllm.data.targets import Targets, load_clip, load_targets, make_targets, save_targets
from bitllm.errors import CheckpointError, ConfigError
from bitllm.files import read_json
from bitllm.metrics.bertscore import load_bert_scorer
from bitllm.model.aligner import load_aligner
from bitllm.model.build import CARD
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.encoder import BrainEncoder
from bitllm.model.precision import base_dtype
from bitllm.runs.config import RunConfig
from bitllm.runs.records import after, require_same_split, write_records
from bitllm.stages.align import align_fingerprint, make_encoder, train_align
from bitllm.stages.rewards import CompositeReward, RewardWeights
from bitllm.stages.rft import rft_fingerprint, train_rft
from bitllm.stages.sft import sft_fingerprint, train_sft
from bitllm.stages.workspace import is_finished
from bitllm.training.distributed import barrier, is_main, process_group
from bitllm.training.logging import Progress
from bitllm.training.loop import RunContext

_LOG = logging.getLogger("bitllm")
Stage = Literal["align", "sft", "rft"]


def train_stage(
    stage: Stage,
    config: RunConfig,
    *,
    name: str | None = None,
    start_from: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, bool]:
    """Train one stage of a run, or go on with it.

    Parameters
    ----------
    stage
        Which one.
    config
        The run.
    name
        Of the stage's folder in the run; the stage's own by default.
    start_from
        The sft that rft starts from (``sft``), or that sft goes on from (none): its name in the run, or its folder.
    progress
        Called with what is under way, how much is done, how much there is.

    Returns
    -------
    tuple
        The folder of the stage, and whether it had been finished before.

    Raises
    ------
    BitLlmError
        If data, models, settings or the stage before are missing or do not fit. The run then keeps the records that
        it had; CLIP's embeddings may have been made.
    """
    with process_group():
        store = open_store(config.store)
        split = _split(config, store)
        folder = config.run / (name or stage)
        start = _start(stage, config, start_from)
        _require_before(stage, config, start, folder)
        require_same_split(split, config.run)
        if start is not None:
            _warn_of_another_store(store, start)
        _warn_of_statistics(store, split)
        written = partial(write_records, config, split, folder.name)
        under_way = _Stage(config, store, split, folder, start, after(written, progress))
        was_done = {"align": under_way.align, "sft": under_way.sft, "rft": under_way.rft}[stage]()
        if not was_done and is_main():
            written()  # no step was left to do where a stage was killed after its last one
        return folder, was_done


@dataclass(frozen=True)
class _Stage:
    """One stage of a run; each method trains, and tells whether that had been done before."""

    config: RunConfig
    store: Store
    split: Split
    folder: Path
    start: Path | None
    progress: Progress

    @property
    def context(self) -> RunContext:
        """How it is run; the default folder for brain tokens is in the run's folder."""
        cache_dir = self.config.how.brain_tokens or self.config.run / "brain_tokens"
        return RunContext(self.config.how.model_copy(update={"brain_tokens": cache_dir}), self.progress)

    def align(self) -> bool:
        """Stage 1."""
        config, targets = self.config, _targets(self.config, self.store)
        parts: Any = {"encoder_config": config.encoder, "config": config.align, "seed": config.seed}
        if is_finished(self.folder, align_fingerprint(self.store, self.split, targets, **parts)):
            return True
        train_align(self.store, self.split, targets, self.folder, **parts, context=self.context)
        return False

    def sft(self) -> bool:
        """Stage 2."""
        config = self.config
        llm_sha256 = load_llm(config.llm, dtype=base_dtype(config.sft.precision)).sha256
        parts: Any = {
            "start": self.start or _encoder(config, self.store, self.split),
            "config": config.sft,
            "seed": config.seed,
        }
        if is_finished(self.folder, sft_fingerprint(self.store, self.split, llm_sha256=llm_sha256, **parts)):
            return True
        train_sft(
            self.store,
            self.split,
            self.folder,
            **parts,
            encoder_arguments=config.encoder.arguments(self.store),
            atlases=config.encoder.atlases,
            llm_path=config.llm,
            context=self.context,
        )
        return False

    def rft(self) -> bool:
        """Stage 3."""
        assert self.start is not None
        parts: Any = {"config": self.config.rft, "seed": self.config.seed}
        if is_finished(self.folder, rft_fingerprint(self.store, self.split, sft=self.start, **parts)):
            return True
        train_rft(
            self.store,
            self.split,
            self.folder,
            **parts,
            sft_folder=self.start,
            llm_path=self.config.llm,
            make_reward=_reward_maker(self.config, self.store),
            context=self.context,
        )
        return False


def _reward_maker(config: RunConfig, store: Store) -> Callable[[list[int], RewardWeights], CompositeReward]:
    if config.bertscore is None and config.rft.rewards.bertscore > 0:
        raise ConfigError(
            "bertscore: expected a folder or hub id of an encoder (e.g. microsoft/deberta-xlarge-mnli), found none; "
            "name one, or set rft.rewards.bertscore to 0"
        )
    targets, clip = _targets(config, store), load_clip(config.clip)
    scorer = None if config.bertscore is None else load_bert_scorer(config.bertscore)

    def make_reward(nsd_ids: list[int], weights: RewardWeights) -> CompositeReward:
        return CompositeReward(store, nsd_ids, targets, clip=clip, bert_scorer=scorer, weights=weights)

    return make_reward


def _split(config: RunConfig, store: Store) -> Split:
    if config.split in PRESETS:
        return make_split(store, config.split)
    if not Path(config.split).is_file():
        raise ConfigError(
            f"split: expected one of {', '.join(PRESETS)} or the file of a split, found `{config.split}`; make one "
            "with `bitllm split`"
        )
    return load_split(Path(config.split))


def _targets(config: RunConfig, store: Store) -> Targets:
    if config.targets is not None:
        return load_targets(config.targets, store=store)
    place = config.run / "targets.safetensors"
    if is_main() and not place.is_file():
        save_targets(make_targets(store, load_clip(config.clip)), place)
    barrier()
    return load_targets(place, store=store)


def _encoder(config: RunConfig, store: Store, split: Split) -> BrainEncoder:
    if config.encoder_from == "random":
        return make_encoder(store, split, config.encoder, seed=config.seed)
    aligner = load_aligner(config.run / "align")
    card = config.encoder.arguments(store)
    expected = BrainEncoder(**{**card, "n_labels": tuple(card["n_labels"])}).state_dict()
    found = aligner.encoder.state_dict()
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape:
            has = tuple(found[name].shape) if name in found else "nothing"
            raise CheckpointError(
                f"{config.run / 'align'}: expected the encoder of this configuration ({name} of shape "
                f"{tuple(tensor.shape)}), found {has}; its sizes or atlases are others: train align again"
            )
    return aligner.encoder


def _start(stage: Stage, config: RunConfig, start_from: str | None) -> Path | None:
    """The folder of the sft that a stage starts from: of that name in the run, else that folder."""
    name = "sft" if stage == "rft" and start_from is None else start_from
    if name is None:
        return None
    in_run = config.run / name
    return in_run if in_run.exists() or not Path(name).is_dir() else Path(name)


def _require_before(stage: Stage, config: RunConfig, start: Path | None, folder: Path) -> None:
    """Refuse a stage whose start is missing, or would be overwritten, before anything is written."""
    needs_align = stage == "sft" and start is None and config.encoder_from == "align"
    if needs_align and not (config.run / "align").is_dir():
        raise CheckpointError(
            f"{config.run / 'align'}: expected the encoder of the align stage, found no folder; run "
            "`bitllm train align` first, or set encoder_from to random for the baseline"
        )
    if start is not None and not (start / CARD).is_file():
        raise CheckpointError(
            f"{start}: expected a finished sft to start from, found none; run `bitllm train sft` "
            "first, or name one with --start-from"
        )
    if start is not None and start.resolve() == folder.resolve():
        raise ConfigError(
            f"--start-from: expected another folder than that of the stage itself, found {start}; give the stage a "
            "--name of its own"
        )


def _warn_of_another_store(store: Store, start: Path) -> None:
    """Say where nothing tells that an sft never saw the test images: within one store no split trains on them."""
    record = start / "run.json"
    if not record.is_file() or read_json(record)["learnt_from"]["store"] != store.sha256:
        _LOG.warning(
            "%s: not known to be trained on %s; see to it yourself that it never saw its test images",
            start,
            store.path,
        )


def _warn_of_statistics(store: Store, split: Split) -> None:
    """Say that test images of the split are none that the data never saw; `bitllm audit` counts it as a leak."""
    seen = images_in_statistics(store, split)
    if seen:
        _LOG.warning(
            "%s: the statistics of its z-scores (`%s`) saw %s of the %s test images of the split `%s`; prepare it with "
            "`--normalization training` where that matters",
            store.path,
            store.manifest.statistics,
            len(seen),
            len(split.test_images),
            split.name,
        )


def say_warnings() -> None:
    """Print this package's warnings, such as that of a damaged checkpoint, as lines of the main process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bitllm: %(message)s"))
    handler.addFilter(lambda _: is_main())
    _LOG.handlers = [handler]
    _LOG.propagate = False
