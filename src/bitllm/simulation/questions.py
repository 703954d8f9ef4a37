"""Questions and dialogues about simulated scenes, in the layouts of VQAv2 and of VisDial 1.0.

They ask for what a scene has: object, number, color, action, setting, second object and relation.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitllm.simulation import vocabulary as words
from bitllm.simulation.parameters import stream
from bitllm.simulation.scenes import Scene

QUESTIONS_PER_IMAGE = 4
N_OPTIONS = 20
"""Options of each round of a dialogue; VisDial has 100."""
_ANNOTATORS = 10
_ROUNDS = 10
_INFO = {"description": "Simulated questions in VQAv2's layout", "version": "1.0"}
_LICENSE = {"url": "", "name": "No license needed: simulated"}


class Question(NamedTuple):
    """A question with its usual answer and another wording of it."""

    kind: str
    """VQAv2's ``question_type``."""
    text: str
    answer: str
    other: str
    answer_type: str = "other"


def questions_of(scene: Scene) -> list[Question]:
    """Every question that the scene answers."""
    thing, name = words.THINGS[scene.object], scene.object
    (_, several), be = thing.names[0], "is" if scene.count == 1 else "are"
    main = name if scene.count == 1 else several
    setting, action = words.SETTINGS[scene.setting], words.ACTIONS[scene.action]
    indoors = "yes" if scene.setting in words.INDOOR else "no"
    found = [
        Question("what is the main object", "What is the main object?", name, thing.names[-1][0]),
        Question("how many", f"How many {several} are there?", str(scene.count),
                 words.COUNTS[scene.count][0], "number"),
        Question("where", f"Where {be} the {main}?", *setting),
        Question("is it indoors", "Is it indoors?", indoors, indoors, "yes/no"),
    ]  # fmt: skip
    if scene.colour:
        found.append(Question("what color", f"What color {be} the {main}?", scene.colour, scene.colour))
    if scene.category in ("people", "animals", "vehicles"):
        found.append(Question("what are they doing", f"What {be} the {main} doing?", *action))
    if scene.partner:
        partner = words.THINGS[scene.partner].names[-1][0]
        found.append(Question("relation", f"What {be} the {main} {scene.relation}?", scene.partner, partner))
    return found


def write_vqa(folder: Path, coco_ids: Sequence[int], scenes: Sequence[Scene], *, seed: int) -> None:
    """Write VQAv2's two files of the train split, with a few questions about every image."""
    questions, annotations = [], []
    for index, (coco_id, scene) in enumerate(zip(coco_ids, scenes, strict=True)):
        rng = stream(seed, "questions", index)
        possible = questions_of(scene)
        chosen = sorted(rng.permutation(len(possible))[:QUESTIONS_PER_IMAGE].tolist())
        for number, place in enumerate(chosen):
            asked, ident = possible[place], 1000 * coco_id + number
            n_other = int(rng.integers(4))
            answers = [asked.answer] * (_ANNOTATORS - n_other) + [asked.other] * n_other
            questions.append({"image_id": coco_id, "question": asked.text, "question_id": ident})
            annotations.append(
                {
                    "question_type": asked.kind, "multiple_choice_answer": asked.answer,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": n}
                        for n, answer in enumerate(answers, start=1)
                    ],
                    "image_id": coco_id, "answer_type": asked.answer_type, "question_id": ident,
                }
            )  # fmt: skip
    about = {"info": _INFO, "license": _LICENSE, "data_type": "mscoco", "data_subtype": "train2014"}
    _write(folder / "v2_OpenEnded_mscoco_train2014_questions.json",
           about | {"task_type": "Open-Ended", "questions": questions})  # fmt: skip
    _write(folder / "v2_mscoco_train2014_annotations.json", about | {"annotations": annotations})


def write_visdial(
    folder: Path,
    coco_ids: Sequence[int],
    scenes: Sequence[Scene],
    captions: Sequence[tuple[str, ...]],
    *,
    seed: int,
) -> None:
    """Write VisDial's file of the train split, with a dialogue of ten rounds about every image."""
    rounds = [list(_rounds(scene, stream(seed, "dialogues", n)))[:_ROUNDS] for n, scene in enumerate(scenes)]
    questions = sorted({question for dialogue in rounds for question, _ in dialogue})
    answers = sorted({answer for dialogue in rounds for _, answer in dialogue})
    place = {"question": {text: n for n, text in enumerate(questions)},
             "answer": {text: n for n, text in enumerate(answers)}}  # fmt: skip
    dialogs: list[dict[str, Any]] = []
    for index, (coco_id, dialogue) in enumerate(zip(coco_ids, rounds, strict=True)):
        rng = stream(seed, "options", index)
        turns = []
        for question, answer in dialogue:
            right = place["answer"][answer]
            drawn = rng.permutation(len(answers))[:N_OPTIONS].tolist()
            others = [n for n in drawn if n != right][: N_OPTIONS - 1]
            gt_index = int(rng.integers(len(others) + 1))
            turns.append({"question": place["question"][question], "answer": right, "gt_index": gt_index,
                          "answer_options": [*others[:gt_index], right, *others[gt_index:]]})  # fmt: skip
        dialogs.append({"image_id": coco_id, "caption": captions[index][0], "dialog": turns})
    data = {"questions": questions, "answers": answers, "dialogs": dialogs}
    _write(folder / "visdial_1.0_train.json", {"version": "1.0", "split": "train", "data": data})


def _rounds(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """At least ten questions with answers; most say ``it``, so that they need the rounds before."""
    single, several = words.THINGS[scene.object].names[0]
    partner = scene.partner and _with_article(scene.partner)
    yield "what is in the picture", _with_article(single) if scene.count == 1 else several
    yield "how many are there", "just one" if scene.count == 1 else words.COUNTS[scene.count][0]
    yield "what color is it", scene.colour or "i can not tell"
    yield "what is it doing", words.ACTIONS[scene.action][0]
    yield "where is it", words.SETTINGS[scene.setting][0]
    yield "is it indoors", "yes" if scene.setting in words.INDOOR else "no"
    yield "is there anything else", f"yes , {partner}" if partner else "no"
    if partner:
        yield "where is it then", f"{scene.relation} the {scene.partner}"
    for category in rng.permutation([name for name in words.CATEGORIES if name != scene.category])[:2]:
        is_there = bool(scene.partner) and words.THINGS[scene.partner].category == category
        yield f"do you see {category}", "yes" if is_there else "no"
    yield f"do you see {scene.category}", "yes"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
