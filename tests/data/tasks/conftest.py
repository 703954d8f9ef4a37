"""Small files in the exact layouts of published sets of questions, about three of four images."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest


@pytest.fixture(scope="session")
def stimuli() -> pd.DataFrame:
    """Images of a store: three with a COCO id, one without."""
    columns = {"coco_id": [111, 222, 345678, -1], "part": ["train", "validation", "test", "train"]}
    return pd.DataFrame(columns, index=pd.Index([3, 7, 12, 20], name="nsd_id"))


def _vqa(kinds: tuple[str, ...] = ("is it", "how many", "what is the")) -> dict[str, Any]:
    asked = [(111, "Is it raining?", "no", "yes/no"), (222, "How many dogs are there?", "2", "number"),
             (999, "What is the man doing?", "surfing", "other")]  # fmt: skip
    header = {"info": {"version": "2.0"}, "license": {"url": "", "name": "CC BY 4.0"}, "data_type": "mscoco",
              "data_subtype": "train2014"}  # fmt: skip
    annotations = [
        {"question_type": kind, "multiple_choice_answer": answer, "image_id": image, "answer_type": form,
         "question_id": 1000 * image, "answers": [
             {"answer": "maybe" if n == 1 else answer, "answer_confidence": "yes", "answer_id": n}
             for n in range(1, 11)]}
        for (image, _, answer, form), kind in zip(asked, kinds, strict=True)
    ]  # fmt: skip
    return {
        "questions.json": header
        | {
            "task_type": "Open-Ended",
            "questions": [
                {"image_id": image, "question": q, "question_id": 1000 * image} for image, q, *_ in asked
            ],
        },
        "annotations.json": header | {"annotations": annotations},
    }


def _aokvqa() -> dict[str, Any]:
    one = {"question_id": "22MexNkBPpdZGX6sxbxVBH", "image_id": 111, "question": "What awaits the man?",
           "choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": 3,
           "direct_answers": ["taxi", *["ride"] * 7, "bus", "cab"], "difficult_direct_answer": False,
           "rationales": ["a", "b", "c"], "split": "train"}  # fmt: skip
    hard = one | {"question_id": "q2", "image_id": 345678, "difficult_direct_answer": True}
    return {"aokvqa_v1p0_train.json": [one, hard, one | {"question_id": "q3", "image_id": 5}]}


def _visdial() -> dict[str, Any]:
    turns = [{"question": 1, "answer": 2, "gt_index": 0, "answer_options": [2, 0, 1]},
             {"question": 0, "answer": 0, "gt_index": 2, "answer_options": [1, 2, 0]}]  # fmt: skip
    data = {
        "questions": ["is it in color", "is there a dog"],
        "answers": ["yes", "no", "yes , a brown one"],
        "dialogs": [
            {"image_id": image, "caption": "a dog on a beach", "dialog": turns} for image in (111, 345678, 5)
        ],
    }
    dense = [{"image_id": image, "round_id": 2, "relevance": [0.2, 0, 0.8]} for image in (345678, 5)]
    return {
        "visdial_1.0_train.json": {"version": "1.0", "split": "train", "data": data},
        "visdial_1.0_train_dense_sample.json": dense,
    }


def _llava() -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog on a beach."},
             {"from": "human", "value": "Which color?"}, {"from": "gpt", "value": "Brown."}]  # fmt: skip
    ids = ("000000000111", "000000000999", "000000345678")
    rows = [{"id": ident, "image": f"{ident}.jpg", "conversations": turns} for ident in ids]
    return {"conversation_58k.json": rows}


def _genome() -> dict[str, Any]:
    qas = [{"qa_id": 986769, "image_id": 1, "question": "What color is the clock?", "answer": "Green.",
            "a_objects": [], "q_objects": []}]  # fmt: skip
    image = {"url": "", "width": 800, "height": 600, "flickr_id": None}
    return {
        "question_answers.json": [
            {"id": 1, "qas": qas},
            {"id": 2, "qas": [qas[0] | {"image_id": 2, "qa_id": 2}]},
        ],
        "image_data.json": [
            {"image_id": 1, "coco_id": 222} | image,
            {"image_id": 2, "coco_id": None} | image,
        ],
    }


def _cocoqa() -> dict[str, str]:
    return {"questions.txt": "what is in the park ?\nhow many dogs ?\nwhat is it ?\n", "answers.txt": "dog\ntwo\nred\n",
            "img_ids.txt": "111\n222\n9\n", "types.txt": "0\n1\n2\n"}  # fmt: skip


def _nsd_vqa() -> pd.DataFrame:
    rows = [(12, 345678, 9, 1, "Is there an animal?", ["no"], "animal yes/no"),
            (3, 111, 9, 1, "What color is the bus?", ["red", "dark red"], "color"),
            (500, 1, 9, 1, "Who?", ["nobody"], "holding")]  # fmt: skip
    columns = ["nsd_image_id", "coco_image_id", "question_id", "answer_id", "question", "answers", "category"]
    return pd.DataFrame(rows, columns=columns)


TABLE = (
    "image,question,answers,options,conversation,turn\n"
    "3,Is there a dog?,yes,,,\n"
    "12,Is it a cat or a dog?,dog,cat|dog,,\n"
    "7,What is it?,a big dog|a dog,,talk,1\n"
    "7,Where is it?,in a park,,talk,2\n"
    "3,How many?,2|two,,,\n"
)


def contents_of(source: str) -> dict[str, Any]:
    """Contents of the files of a source, by name."""
    made = {"a-okvqa": _aokvqa, "visdial": _visdial, "llava": _llava, "visual-genome": _genome,
            "coco-qa": _cocoqa}  # fmt: skip
    if source == "nsd-vqa":
        return {"nsd_vqa.parquet": _nsd_vqa()}
    if source == "table":
        return {"questions.csv": TABLE}
    return made.get(source, _vqa)()


@pytest.fixture
def written(tmp_path: Path):
    """Write the files of a source: ``written("vqa-v2", contents)`` returns their paths."""

    def write(source: str, contents: dict[str, Any] | None = None) -> list[Path]:
        for name, content in (contents_of(source) if contents is None else contents).items():
            path = tmp_path / name
            if isinstance(content, pd.DataFrame):
                content.to_parquet(path, index=False)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(
                    content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
                )
        return [tmp_path] if source == "coco-qa" else sorted(tmp_path.iterdir())

    return write


@pytest.fixture(name="contents_of")
def _contents_of():
    return contents_of
