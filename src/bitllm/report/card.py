"""The model card of an exported model: data, split, scores with controls, license of the base LLM, consent."""

from typing import Any

from huggingface_hub import ModelCardData

from bitllm import __version__
from bitllm.evaluation.results import Results
from bitllm.evaluation.verdict import bits_of, judge_questions, verdict
from bitllm.report.page import render
from bitllm.report.privacy import privacy_lines
from bitllm.report.tables import metrics_of, retrieval_rows, score_groups

UNKNOWN_LICENSE = "other"
_LICENSES = {
    "meta-llama/llama-3.1": "llama3.1",
    "meta-llama/llama-3.2": "llama3.2",
    "meta-llama/llama-3.3": "llama3.3",
    "meta-llama/meta-llama-3.1": "llama3.1",
    "meta-llama/meta-llama-3-": "llama3",
    "huggingfacetb/smollm2": "apache-2.0",
    "smollm2-135m-instruct": "apache-2.0",
}


def license_of(llm: str, *, is_simulated: bool) -> str:
    """License of a base LLM by its name, in the hub's terms; ``other`` if it is not known.

    The small Llama of a demo is trained on simulated captions and has this project's license.
    """
    for start, found in _LICENSES.items():
        if llm.lower().startswith(start):
            return found
    return "apache-2.0" if is_simulated and llm in ("llm", "small") else UNKNOWN_LICENSE


def model_card(
    results: Results | None,
    *,
    system: str,
    brain: dict[str, Any],
    llm: dict[str, Any],
    license_name: str,
    is_whole: bool,
    interface: str,
    privacy: dict[str, Any] | None = None,
) -> str:
    """The text of ``README.md`` in the hub's format.

    Parameters
    ----------
    results
        Results of the evaluation; None if the system was not evaluated.
    system
        Name of the system.
    brain
        Content of ``brain.json``.
    llm
        Name, revision and sha256 of the base LLM.
    license_name
        The hub's name of the base LLM's license.
    is_whole
        Whether the folder contains the weights of the base LLM.
    interface
        How brain tokens reach the LLM.
    privacy
        Content of ``privacy.json``; None if it was not measured.
    """
    header = ModelCardData(
        language="en",
        license=license_name,
        license_name="license-of-the-base-llm" if license_name == UNKNOWN_LICENSE else None,
        library_name="transformers",
        base_model=str(llm["name"]) if str(llm["name"]).count("/") == 1 else None,
        tags=["bitllm", "fmri", "brain-decoding", "neuroscience", system],
        pipeline_tag="text-generation",
        metrics=None if results is None else ["cider", "bleu", "rouge"],
    )
    rows = [] if results is None else next(one.rows for one in score_groups(results) if one.system == system)
    has_encoder = results is not None and system != "no_align"
    return render(
        "card.md",
        header=header.to_yaml(),
        version=__version__,
        system=system,
        brain=brain,
        llm=llm,
        license=license_name,
        is_whole=is_whole,
        interface=interface,
        privacy=[] if privacy is None else privacy_lines(privacy),
        privacy_system="" if privacy is None else privacy["system"],
        about=None if results is None else results.about,
        is_simulated=results is not None and results.about.is_simulated,
        rows=rows,
        metrics=[] if results is None else [one for one in metrics_of(results) if one in rows[0].scores],
        verdict="" if results is None else verdict(results, system).sentence,
        bits=None if results is None else bits_of(results.systems[system]),
        tasks=None if results is None else results.systems[system].questions,
        questions_verdict=None if results is None else judge_questions(results, system),
        retrieval=retrieval_rows(results) if results is not None and has_encoder else [],
    )
