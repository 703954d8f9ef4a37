"""What a model gives away, in sentences for the terminal and the model card."""

from collections.abc import Mapping
from typing import Any

from bitllm.metrics.intervals import Estimate

_QUESTIONS = {
    "trial": "Was this trial used for training?",
    "image": "Was this image used for training?",
    "text": "Was this image's caption used to train the language model (no betas)?",
    "subject": "Was this person's brain used for training?",
    "size": "Was this trial used for the statistics of the z-scores (no model)?",
}


def privacy_lines(record: Mapping[str, Any]) -> list[str]:
    """One sentence for each measure of ``privacy.json``."""
    lines = [_membership(name, found) for name, found in record["membership"].items()]
    identity = record.get("identity")
    if identity is not None:
        people, chance = identity["n_subjects"], identity["chance"]
        lines.append(
            "Whose brain is it? Nearest centroid of the brain tokens: right in "
            f"{_estimate(identity).shown(2)} of {identity['n']} trials of {people} people (chance {chance:.2f}), "
            f"{_verdict(identity, chance)}."
        )
    lines += [f"Not measured ({name}): {reason}." for name, reason in record["not_run"].items()]
    files = record["files"]
    people = ", ".join(files["participants"]) or "none"
    data = ", ".join(files["data"]) or "none"
    lines.append(
        f"{files['files']} files of the checkpoint. Names of participants in: {people}. Data, or arrays as long as a "
        f"participant's trials or voxels: {data}."
    )
    return lines


def _membership(name: str, found: Mapping[str, Any]) -> str:
    by = "size" if name == "size" else "loss"
    numbers = f"{found['n_members']} against {found['n_others']} items; 0.5 is chance"
    return f"{_QUESTIONS[name]} AUC by {by} {_estimate(found).shown(2)} ({numbers}), {_verdict(found, 0.5)}."


def _verdict(found: Mapping[str, Any], chance: float) -> str:
    if found["low"] > chance:
        return "above chance: it can be told"
    return "below chance" if found["high"] < chance else "not told apart from chance"


def _estimate(found: Mapping[str, Any]) -> Estimate:
    return Estimate(found["value"], found["low"], found["high"])
