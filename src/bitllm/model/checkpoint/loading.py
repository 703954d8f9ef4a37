"""`from_pretrained` and `save_pretrained` of BIT-LLM: exact, and without a copy of the base LLM.

A checkpoint in the Hugging Face layout (``config.json``, ``model.safetensors``) is of one of two kinds. If its
configuration names a ``base_llm``, it contains only the trained part (encoder and interface); the base LLM is loaded
from its own place and its checksum compared. Otherwise it contains all weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import cached_file, logging

from bitllm.data.io.models import model_loading
from bitllm.errors import CheckpointError, ConfigError
from bitllm.model.checkpoint.base import BaseLlm, load_llm
from bitllm.model.checkpoint.weights import WEIGHTS, base_weights, read_weights, require_exact

_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class ExactCheckpoints(PreTrainedModel):
    """A model whose weights load exactly or not at all."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *arguments: Any,
        base_llm: str | Path | BaseLlm | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint, as `transformers` does, but refuse one that does not fit.

        Parameters
        ----------
        pretrained_model_name_or_path
            Folder or hub id of the checkpoint.
        base_llm
            For a checkpoint of the trained part: the base LLM (folder, GGUF file, hub id, or a loaded `BaseLlm`). By
            default the folder of that name next to the checkpoint, else the hub id in the checkpoint.
        kwargs
            Arguments of `transformers.PreTrainedModel.from_pretrained`. ``dtype`` (or ``torch_dtype``) is the
            precision of the LLM: a torch.dtype, its name, or ``"auto"`` for the stored one. Encoder and interface
            are always in float32.

        Raises
        ------
        CheckpointError
            If a weight is missing, unexpected, damaged or of another shape, or it is not the same base LLM.
        ConfigError
            If the base LLM is not found, or ``dtype`` is not a floating-point type.
        """
        source = str(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB if key in kwargs}
        config, dtype = kwargs.pop("config", None), _dtype_in(kwargs)
        with model_loading(source, "a checkpoint", error=CheckpointError):
            pass  # checks the files of a local folder before `transformers` opens them
        if config is None:
            config_class: Any = cls.config_class
            config, kwargs = config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in _HUB}
        if config.base_llm is None:
            return cls._load_exactly(
                source, *arguments, config=config, dtype=dtype, source=source, **hub, **kwargs
            )
        wanted = None if dtype == "auto" else dtype
        base = _resolve_base(config.base_llm, base_llm, Path(source), dtype=wanted)
        tensors = read_weights(Path(_weights_file(source, hub)))
        state_dict = {**tensors, **base_weights(base.llm)}
        return cls._load_exactly(
            None,
            *arguments,
            config=config,
            state_dict=state_dict,
            dtype=wanted or base.llm.dtype,
            generation_config=base.llm.generation_config,
            source=source,
            **kwargs,
        )

    @classmethod
    def assemble(cls, config: Any, state_dict: dict[str, Any], *, source: str, **kwargs: Any) -> Any:
        """A model of ``config`` with these weights of the base LLM; encoder and interface are newly initialized."""
        return cls._load_exactly(
            None, config=config, state_dict=state_dict, source=source, ours_may_lack=True, **kwargs
        )

    @classmethod
    def _load_exactly(
        cls, place: str | None, *arguments: Any, source: str, ours_may_lack: bool = False, **kwargs: Any
    ) -> Any:
        wants_info = kwargs.pop("output_loading_info", False)
        with _quiet():
            # ignore_mismatched_sizes, because transformers' own error lists no names: require_exact reports
            # them all.
            loaded: Any = super().from_pretrained(
                place, *arguments, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        model, info = loaded
        model.name_or_path = model.config._name_or_path = ""  # a path of this machine, which peft would save
        is_headless = not hasattr(model, "lm_head")
        require_exact(
            missing=[name for name in info["missing_keys"] if not (ours_may_lack and cls.is_ours(name))],
            unexpected=[n for n in info["unexpected_keys"] if not (is_headless and n.startswith("lm_head"))],
            mismatched=info["mismatched_keys"],
            source=source,
        )
        return (model, info) if wants_info else model

    @classmethod
    def is_ours(cls, name: str) -> bool:
        """Whether a parameter belongs to encoder or interface, by its name in this class."""
        return "encoder." in name or "interface." in name or ".adapter." in name

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        with_base_llm: bool = False,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Parameters
        ----------
        with_base_llm
            Whether to write the base LLM's weights too. They are always written if the configuration names no base
            LLM.
        state_dict
            Weights to write; by default the model's own.
        kwargs
            Arguments of `transformers.PreTrainedModel.save_pretrained`.
        """
        named = self.config.base_llm
        if named is not None and not with_base_llm:
            everything = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in everything.items() if self.is_ours(name)}
        self.config.base_llm = None if with_base_llm else named
        try:
            with _quiet():
                super().save_pretrained(str(save_directory), state_dict=state_dict, **kwargs)
        finally:
            self.config.base_llm = named


def _dtype_in(kwargs: dict[str, Any]) -> Any:
    """Take ``dtype`` or ``torch_dtype`` out of ``kwargs``: a torch.dtype, or "auto"."""
    given = [kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs]
    found = next((value for value in given if value is not None), "auto")
    if isinstance(found, str) and found != "auto":
        found = getattr(torch, found.removeprefix("torch."), found)
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ConfigError(
        f'dtype: expected "auto", a floating-point torch.dtype or its name, found {found!r}; '
        'use for example "bfloat16"'
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and loading reports of `transformers`: what they warn about is an error here."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def _resolve_base(
    wanted: dict[str, Any], given: str | Path | BaseLlm | None, source: Path, *, dtype: Any
) -> BaseLlm:
    name = str(wanted["name"])
    if not isinstance(given, BaseLlm):
        beside = source.parent / name
        place = given or (beside if source.exists() and beside.is_dir() else name)
        try:
            given = load_llm(place, dtype=dtype, revision=wanted.get("revision") if place == name else None)
        except ConfigError as error:
            raise ConfigError(
                f"{source}: expected its base LLM {name} next to the checkpoint or at {place}, found none ({error}); "
                f"name it with base_llm=PATH"
            ) from None
    if given.sha256 != wanted["sha256"]:
        raise CheckpointError(
            f"{source}: expected the base LLM that it was trained with, {name} (sha256 {wanted['sha256'][:12]}…), "
            f"found {given.name} ({given.sha256[:12]}…); load that LLM"
        )
    return given


def _weights_file(source: str, hub: dict[str, Any]) -> str:
    try:
        return str(cached_file(source, WEIGHTS, **hub))
    except OSError:
        raise CheckpointError(
            f"{source}: expected a checkpoint with {WEIGHTS}, found none; train the stage first"
        ) from None
