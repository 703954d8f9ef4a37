"""``bitllm export``: a run's model as a folder in the Hugging Face layout, with its model card."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from bitllm.errors import ConfigError, DataError, OutputError
from bitllm.evaluation.runs import checkpoint_folder, find_llm, system_names
from bitllm.export.card import UNKNOWN_LICENCE, licence_of, model_card
from bitllm.export.weights import BRAIN_FILE, brain_of, export_model
from bitllm.files import folder_written_whole, require_empty, write_json
from bitllm.model.checkpoint.base import load_llm
from bitllm.report.runs.folder import read_results
from bitllm.report.values import text

_PREFERRED = ("rft", "sft")


class Exported(NamedTuple):
    """What was written."""

    system: str
    is_whole: bool
    licence: str
    was_judged: bool


def export_run(
    run: Path,
    out: Path,
    *,
    system: str | None = None,
    llm: str | None = None,
    whole: bool = False,
    licence: str | None = None,
) -> Exported:
    """Write a system of a run as a model folder, whole or not at all.

    Parameters
    ----------
    run
        A checkpoint of sft or rft, or a folder of them.
    out
        A new folder.
    system
        Which system; by default rft, else sft.
    llm
        Base LLM, where it does not lie beside the run.
    whole
        Write the base LLM's weights, too. After rft they always are.
    licence
        Of the base LLM, as the hub calls it; known for some.

    Raises
    ------
    BitLlmError
        If the run has no such system, its base LLM is missing, or ``out`` is not empty.
    """
    run = Path(run)
    require_empty(out)
    names = system_names(run) if run.is_dir() else []
    chosen = system if system is not None else next((name for name in _PREFERRED if name in names), None)
    folder = checkpoint_folder(run, chosen)
    base = load_llm(find_llm(folder, given=llm))
    results = _results(run, folder)
    named = licence or licence_of(base.name, data=text(results, "data"))
    reference, brain = base.reference(), brain_of(folder)
    model, is_whole = export_model(folder, base, whole=whole)
    name = folder.resolve().name
    with folder_written_whole(out) as unfinished:
        model.save_pretrained(unfinished, with_base_llm=is_whole)
        base.tokenizer.save_pretrained(unfinished)
        write_json(unfinished / BRAIN_FILE, brain)
        card = model_card(
            results,
            system=name,
            brain=brain,
            llm=reference,
            licence=named,
            is_whole=is_whole,
            interface=model.config.interface,
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    return Exported(name, is_whole, named, bool(results))


def push_to_hub(folder: Path, hub_id: str, *, licence: str) -> str:
    """Upload an exported folder to a private repository of that id; its address.

    Raises
    ------
    ConfigError
        If the licence of the base LLM is not known, or the id is none.
    OutputError
        If the hub refuses, or cannot be reached.
    """
    if licence == UNKNOWN_LICENCE:
        raise ConfigError(
            "--push-to-hub: expected the licence of the base LLM, found none; name it with --licence, e.g. llama3.2"
        )
    api = HfApi()
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        done: Any = api.upload_folder(repo_id=hub_id, folder_path=folder)
    except HFValidationError:
        raise ConfigError(f"--push-to-hub: expected NAME or OWNER/NAME, found `{hub_id}`") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"{hub_id}: expected a hub that takes the model, found that it does not ({reason}); the folder {folder} "
            "is whole, push it again later"
        ) from None
    return str(done.commit_url if hasattr(done, "commit_url") else done)


def _results(run: Path, folder: Path) -> dict[str, Any]:
    """What is known of how well it does; empty where it was never judged."""
    for place in dict.fromkeys((run, folder, folder.parent)):
        try:
            found = read_results(place)
        except DataError:
            continue
        if folder.resolve().name in found.get("systems", {}):
            return found
    return {}
