"""The model card: data, split, metrics and controls, the base LLM's licence, consent; no participant's data."""

from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from bitllm import __version__
from bitllm.report import values
from bitllm.report.headline import verdict
from bitllm.report.tables import metrics_of, retrieval_rows, score_groups
from bitllm.report.values import estimate, number, section, text

UNKNOWN_LICENCE = "other"
_LICENCES = {
    "meta-llama/llama-3.1": "llama3.1",
    "meta-llama/llama-3.2": "llama3.2",
    "meta-llama/llama-3.3": "llama3.3",
    "meta-llama/meta-llama-3.1": "llama3.1",
    "meta-llama/meta-llama-3-": "llama3",
    "huggingfacetb/smollm2": "apache-2.0",
    "smollm2-135m-instruct": "apache-2.0",
}


def licence_of(llm: str, *, data: str) -> str:
    """Licence of a base LLM by its name, as the hub calls it; ``other`` where it is not known.

    The small Llama of a demo is made from simulated captions, and falls under this project's own licence.
    """
    for start, licence in _LICENCES.items():
        if llm.lower().startswith(start):
            return licence
    return "apache-2.0" if "simulat" in data.lower() and llm in ("llm", "small") else UNKNOWN_LICENCE


def model_card(
    results: dict[str, Any],
    *,
    system: str,
    brain: dict[str, Any],
    llm: dict[str, Any],
    licence: str,
    is_whole: bool,
    interface: str,
) -> str:
    """The text of ``README.md`` in the hub's convention.

    Parameters
    ----------
    results
        As the report reads them; empty where the run was never judged.
    system
        Which system of the results it is.
    brain
        Content of ``brain.json``.
    llm
        Name, revision and sha256 of the base LLM.
    licence
        Of the base LLM, as the hub calls it.
    is_whole
        Whether the base LLM's weights are in the folder.
    interface
        How brain tokens reach the LLM.
    """
    is_simulated = "simulat" in text(results, "data").lower()
    environment = Environment(
        loader=PackageLoader("bitllm.export", ""),
        autoescape=False,  # noqa: S701 - Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    group = next((one for one in score_groups(results) if one.system == system), None)
    return environment.get_template("card.md").render(
        header=_header(results, system=system, llm=str(llm["name"]), licence=licence),
        n=values,
        version=__version__,
        system=system,
        brain=brain,
        llm=llm,
        licence=licence,
        is_whole=is_whole,
        interface=interface,
        is_simulated=is_simulated,
        data=text(results, "data") or "not recorded",
        subject=text(results, "subject"),
        n_images=number(results, "n_images"),
        results=results,
        rows=group.rows if group else [],
        metrics=[one for one in metrics_of(results) if group and one in group.rows[0].scores],
        verdict=verdict(results, system).sentence,
        bits=estimate(results, "bits", system, "per_caption", name="mean"),
        retrieval=[] if system == "no_align" else retrieval_rows(results),
        versions=section(results, "versions"),
    )


def _header(results: dict[str, Any], *, system: str, llm: str, licence: str) -> str:
    card = ModelCardData(
        language="en",
        license=licence,
        license_name="licence-of-the-base-llm" if licence == UNKNOWN_LICENCE else None,
        library_name="transformers",
        base_model=llm if llm.count("/") == 1 else None,
        tags=["bitllm", "fmri", "brain-decoding", "neuroscience", system],
        pipeline_tag="text-generation",
        metrics=["cider", "bleu", "rouge"] if results else None,
    )
    return card.to_yaml()
