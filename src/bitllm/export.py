"""``bitllm export``: a model of a run as a folder in the Hugging Face layout, with a model card."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from bitllm.errors import ConfigError, OutputError
from bitllm.evaluation.results import Results
from bitllm.evaluation.runs import checkpoint_folder, find_llm, system_names
from bitllm.files import folder_written_whole, read_record, require_empty, write_json
from bitllm.model.build import CARD
from bitllm.model.captioner import load_captioner, with_lora_weights
from bitllm.model.checkpoint.base import BaseLlm, load_llm
from bitllm.model.checkpoint.weights import RFT_CARD, sft_beneath
from bitllm.pipeline.privacy import PRIVACY
from bitllm.report.card import UNKNOWN_LICENSE, license_of, model_card
from bitllm.report.run import RESULTS, read_results

BRAIN_FILE = "brain.json"
"""File with the atlases of the labels, in the order that the model expects."""
_PREFERRED = ("rft", "sft")


class Exported(NamedTuple):
    """Summary of an export."""

    system: str
    is_whole: bool
    license: str
    was_evaluated: bool


def export_run(
    run: Path,
    out: Path,
    *,
    system: str | None = None,
    llm: str | None = None,
    whole: bool = False,
    license_name: str | None = None,
) -> Exported:
    """Write a system of a run as a model folder, completely or not at all.

    Parameters
    ----------
    run
        A checkpoint of sft or rft, or a folder of them.
    out
        A new folder.
    system
        Name of the system; by default rft, else sft.
    llm
        Base LLM, if it is not in the folder of the run.
    whole
        Whether to write the base LLM's weights too; a model of rft always contains them.
    license_name
        The hub's name of the base LLM's license; known for some LLMs.

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
    known = license_of(base.name, is_simulated=results is not None and results.about.is_simulated)
    named = license_name or known
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
            license_name=named,
            is_whole=is_whole,
            interface=model.config.interface,
            privacy=_privacy(folder, brain),
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    return Exported(name, is_whole, named, results is not None)


def push_to_hub(folder: Path, hub_id: str, *, license_name: str) -> str:
    """Upload an exported folder to a private repository with this id; returns its address."""
    if license_name == UNKNOWN_LICENSE:
        raise ConfigError(
            "--push-to-hub: expected the license of the base LLM, found none; name it with --license, e.g. llama3.2"
        )
    api = HfApi()
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        done: Any = api.upload_folder(repo_id=hub_id, folder_path=folder)
    except HFValidationError:
        raise ConfigError(
            f"--push-to-hub: expected NAME or OWNER/NAME, found `{hub_id}`; change it"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"{hub_id}: expected a hub that accepts the model, found an error ({reason}); the folder {folder} "
            "is complete, push it again later"
        ) from None
    return str(done.commit_url if hasattr(done, "commit_url") else done)


def export_model(folder: Path, base: BaseLlm, *, whole: bool) -> tuple[Any, bool]:
    """The model of a checkpoint, and whether to write the base LLM with it.

    A model of rft always contains the base LLM, because the LoRA weights are merged into it, in place.
    """
    if not (folder / RFT_CARD).is_file():
        return load_captioner(folder, base).model, whole
    sft = load_captioner(sft_beneath(folder), base)
    merged: Any = with_lora_weights(sft.model, folder)
    return merged.merge_and_unload(), True


def brain_of(folder: Path) -> dict[str, Any]:
    """Content of `BRAIN_FILE`: atlases, stage, checksum of the split, seed, and tasks other than captions."""
    card = read_record(folder / RFT_CARD, "stage", "split", "seed") if (folder / RFT_CARD).is_file() else {}
    sft = read_record((sft_beneath(folder) if card else folder) / CARD, "atlases", "stage", "split", "seed")
    return {
        "stage": str((card or sft)["stage"]),
        "atlases": list(sft["atlases"]),
        "coordinates": "MNI space, mm",
        "betas": "z-scores by voxel and session",
        "split_sha256": str((card or sft)["split"]),
        "seed": (card or sft)["seed"],
        **({"tasks": sft["tasks"]} if "tasks" in sft else {}),
    }


def _privacy(folder: Path, brain: dict[str, Any]) -> dict[str, Any] | None:
    """What `bitllm audit --privacy` measured on a system of the same training; None without it."""
    place = folder.parent / PRIVACY
    if not place.is_file():
        return None
    found = read_record(place, "system", "split_sha256", "membership", "not_run", "files")
    is_same = (found["system"], found["split_sha256"]) == (folder.resolve().name, brain["split_sha256"])
    return found if is_same else None


def _results(run: Path, folder: Path) -> Results | None:
    """Results that contain this system; None if it was not evaluated."""
    for place in dict.fromkeys((run, folder, folder.parent)):
        if (place / RESULTS).is_file():
            found = read_results(place)
            if folder.resolve().name in found.systems:
                return found
    return None
