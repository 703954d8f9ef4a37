"""``grounding.json`` of `bitllm ground`, in the form of the report's results."""

from collections.abc import Mapping
from typing import Any

from bitllm.report.values import number, section


def results_of_grounding(contents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of systems that were grounded on the same data.

    Parameters
    ----------
    contents
        System → the content of its ``grounding.json``. What is common to all is taken from the first.
    """
    about = section(next(iter(contents.values())), "about")
    first = next(iter(contents.values()))
    data = str(about.get("data", ""))
    return {
        "data": "simulated brain" if data == "simulated" else data,
        "subject": about.get("subject"),
        "n_images": about.get("n_images"),
        "split": f"{about.get('split')}, part {about.get('part')}",
        "split_hash": about.get("split_sha256"),
        "seed": about.get("seed"),
        "llm": about.get("llm"),
        "systems": {name: _row(content, "averaged", "real") for name, content in contents.items()},
        "controls": {name: _controls(content) for name, content in contents.items()},
        "intervals": {
            name: section(content, "captions", "averaged", "real", "intervals")
            for name, content in contents.items()
        },
        "differences": {name: _differences(content) for name, content in contents.items()},
        "single_trial": {name: _single(content) for name, content in contents.items()},
        "ceiling": {"human": section(first, "captions", "human")},
        "retrieval": _retrieval(first),
        "cosine_real_zero": section(first, "encoder", "cosine_real_zero"),
        "bits": {
            name: section(content, "bits", "averaged", "permuted") for name, content in contents.items()
        },
        "identification": section(first, "encoder", "averaged").get("identification"),
        "references_sha256": about.get("references_sha256"),
        "tokenizer": about.get("tokenizer"),
        "versions": section(about, "versions"),
        "command": "bitllm ground",
    }


def _row(content: dict[str, Any], which: str, name: str) -> dict[str, Any]:
    found = section(content, "captions", which, name)
    row = section(found, "metrics")
    return row | {key: found[key] for key in ("distinct", "mean_length") if key in found}


def _controls(content: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in section(content, "captions", "averaged") if name != "real"]
    return {name: _row(content, "averaged", name) for name in names}


def _differences(content: dict[str, Any]) -> dict[str, Any]:
    found = section(content, "captions", "averaged")
    return {name: section(found, name, "real - control") for name in found if name != "real"}


def _single(content: dict[str, Any]) -> dict[str, Any]:
    row = _row(content, "single", "real")
    if not row:
        return {}
    n_trials = number(content, "about", "n_trials")
    lead = section(content, "captions", "single", "permuted", "real - control")
    return row | {"n_trials": n_trials, "real - permuted": lead}


def _retrieval(content: dict[str, Any]) -> dict[str, Any]:
    found = section(content, "encoder", "averaged", "retrieval")
    single = section(content, "encoder", "single", "retrieval", "real")
    return found | ({"single_trial": single} if single and found else {})
