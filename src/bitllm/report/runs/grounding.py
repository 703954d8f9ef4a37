"""``grounding.json`` of `bitllm ground`, in the form of the report's results."""

from collections.abc import Mapping
from typing import Any

from bitllm.errors import DataError
from bitllm.report.headline import final_system
from bitllm.report.values import number, section

_SAME = ("subject", "part", "split_sha256", "store_sha256", "references_sha256")


def results_of_grounding(contents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of systems that were grounded on the same data.

    Parameters
    ----------
    contents
        System → the content of its ``grounding.json``. What is of the encoder is the final system's.

    Raises
    ------
    DataError
        If they were not judged on the same subject, part, split, store and references.
    """
    _require_same(contents)
    first = contents[final_system({"systems": dict(contents)})]
    about = section(first, "about")
    data = str(about.get("data", ""))
    return {
        "data": "simulated brain" if data == "simulated" else data,
        "subject": about.get("subject"),
        "subject_is_trained_on": about.get("subject_is_trained_on"),
        "part": about.get("part"),
        "is_store_of_training": about.get("is_store_of_training"),
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
        "control_intervals": {name: _control_intervals(content) for name, content in contents.items()},
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


def _require_same(contents: Mapping[str, dict[str, Any]]) -> None:
    """Refuse scores of different data in one table."""
    first, *others = contents
    for name in others:
        for key in _SAME:
            here, there = (section(contents[one], "about").get(key) for one in (first, name))
            if here != there and None not in (here, there):  # records of before do not say all of it
                raise DataError(
                    f"{first}/grounding.json and {name}/grounding.json: expected systems judged on the same data, "
                    f"found the {key} {here} and {there}; ground them on the same, or report one with its own folder"
                )


def _row(content: dict[str, Any], which: str, name: str) -> dict[str, Any]:
    found = section(content, "captions", which, name)
    row = section(found, "metrics")
    return row | {key: found[key] for key in ("distinct", "mean_length") if key in found}


def _controls(content: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in section(content, "captions", "averaged") if name != "real"]
    return {name: _row(content, "averaged", name) for name in names}


def _control_intervals(content: dict[str, Any]) -> dict[str, Any]:
    found = section(content, "captions", "averaged")
    return {name: section(found, name, "intervals") for name in found if name != "real"}


def _differences(content: dict[str, Any]) -> dict[str, Any]:
    found = section(content, "captions", "averaged")
    return {name: section(found, name, "real - control") for name in found if name != "real"}


def _single(content: dict[str, Any]) -> dict[str, Any]:
    row = _row(content, "single", "real")
    if not row:
        return {}
    n_trials = number(content, "about", "n_trials")
    lead = section(content, "captions", "single", "permuted", "real - control")
    intervals = section(content, "captions", "single", "real", "intervals")
    return row | {"n_trials": n_trials, "real - permuted": lead, "intervals": intervals}


def _retrieval(content: dict[str, Any]) -> dict[str, Any]:
    found = section(content, "encoder", "averaged", "retrieval")
    single = section(content, "encoder", "single", "retrieval", "real")
    return found | ({"single_trial": single} if single and found else {})
