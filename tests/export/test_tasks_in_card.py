"""A model that was trained on questions names its tasks and the licenses of their sources."""

import json

from bitllm.export import brain_of
from bitllm.model.build import CARD
from bitllm.report.card import model_card


def test_the_card_has_tasks_and_licenses_only_of_models_trained_on_questions(tmp_path):
    content = {"atlases": ["streams"], "stage": "sft", "split": "0" * 64, "seed": 0}
    licenses = {"derived": "CC BY 4.0", "own": "unknown"}
    how = {
        "system": "sft",
        "llm": {"name": "llm", "revision": None, "sha256": "1" * 64},
        "license_name": "other",
    }
    cards = []
    for tasks in ({}, {"tasks": {"weights": {"caption": 1.0, "presence": 0.3}, "licenses": licenses}}):
        (tmp_path / CARD).write_text(json.dumps(content | tasks))
        brain = brain_of(tmp_path)
        cards.append(model_card(None, brain=brain, is_whole=False, interface="prefix", **how))
    assert "licenses of the questions" not in cards[0]
    assert "| caption 1.0, presence 0.3 |" in cards[1]
    assert "| derived: CC BY 4.0; own: unknown |" in cards[1]
