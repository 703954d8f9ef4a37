"""The tables of an NSD release: design file, stimulus table, behavior, and COCO's captions and instances."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
from jaxtyping import Int

from bitllm.simulation.design import Design
from bitllm.simulation.parameters import REPETITIONS, SimulationConfig, stream
from bitllm.simulation.pictures import Box
from bitllm.simulation.vocabulary import THINGS

_MAT_HEADER_BYTES = 116
"""Length of the free text at the start of a MATLAB 5 file."""

_SIZES = ((640, 480), (480, 640), (640, 427), (640, 640), (500, 375))
"""Widths and heights of COCO's photographs."""


def write_design(path: Path, design: Design) -> None:
    """Write ``nsd_expdesign.mat`` with NSD's five keys (1-based)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(
        path,
        {
            "masterordering": design.masterordering[None].astype(np.float64),
            "subjectim": design.subjectim.astype(np.float64),
            "sharedix": design.sharedix[None].astype(np.float64),
            "stimpattern": design.stimpattern.astype(np.float64),
            "basiccnt": design.basiccnt.astype(np.float64),
        },
    )
    with path.open(
        "r+b"
    ) as file:  # scipy writes the time of day here, and the same seed must give the same bytes
        file.write(b"MATLAB 5.0 MAT-file, simulated".ljust(_MAT_HEADER_BYTES))


def stimulus_table(config: SimulationConfig, design: Design, *, seed: int) -> pd.DataFrame:
    """NSD's stimulus table without its index column, one row per image (row number = nsdId, 0-based)."""
    rng = stream(seed, "coco")
    shared = np.isin(np.arange(config.n_images) + 1, design.sharedix)
    sizes = rng.integers(len(_SIZES), size=config.n_images)
    table = pd.DataFrame(
        {
            "cocoId": rng.choice(np.arange(1, 581930), config.n_images, replace=False),
            "cocoSplit": np.where(shared | (rng.random(config.n_images) < 0.85), "train2017", "val2017"),
            "cropBox": [_crop_box(*_SIZES[size], float(rng.random())) for size in sizes],
            "loss": np.round(rng.exponential(0.2, config.n_images), 6),
            "nsdId": np.arange(config.n_images),
            "flagged": rng.random(config.n_images) < 0.01,
            "BOLD5000": rng.random(config.n_images) < 0.03,
            "shared1000": shared,
        }
    )
    trials = _planned_trials(design)
    repeats: dict[str, np.ndarray] = {}
    for index in range(len(config.sessions)):
        rows = design.subjectim[index] - 1
        planned = np.zeros((config.n_images, REPETITIONS), dtype=np.int64)
        planned[rows] = trials
        table[f"subject{index + 1}"] = planned[:, 0] > 0
        repeats |= {f"subject{index + 1}_rep{number}": planned[:, number] for number in range(REPETITIONS)}
    return table.assign(**repeats)


def _planned_trials(design: Design) -> Int[np.ndarray, "images repetitions"]:
    """1-based trial numbers of every image in a subject's list."""
    return np.argsort(design.masterordering, kind="stable").reshape(-1, REPETITIONS) + 1


def _crop_box(width: int, height: int, share: float) -> str:
    """Fractions to crop at (top, bottom, left, right) so that a square remains."""
    longer, shorter = max(width, height), min(width, height)
    cut = (longer - shorter) / longer
    first, second = round(cut * share, 7), round(cut * (1 - share), 7)
    return str((0, 0, first, second) if width > height else (first, second, 0, 0))


def write_coco_captions(folder: Path, stimuli: pd.DataFrame, captions: list[tuple[str, ...]]) -> None:
    """Write ``captions_train2017.json`` and ``captions_val2017.json`` in COCO's structure."""
    for split, photographs in _photographs(stimuli):
        annotations = [
            {"image_id": photograph["id"], "id": _ANNOTATIONS_AT_MOST * nsd_id + number, "caption": caption}
            for nsd_id, photograph, _ in photographs
            for number, caption in enumerate(captions[nsd_id])
        ]
        _write_coco(folder / f"captions_{split}.json", "captions", photographs, {"annotations": annotations})


def write_coco_instances(
    folder: Path, stimuli: pd.DataFrame, boxes: Callable[[int], list[tuple[str, Box]]]
) -> None:
    """Write ``instances_train2017.json`` and ``instances_val2017.json`` in COCO's structure.

    ``boxes`` returns name and box of each object of an image, in fractions of the square that the subject saw. The
    files have them in pixels of the whole photograph, from which ``cropBox`` cuts that square. The segmentation is
    the box.
    """
    numbers = {name: number for number, name in enumerate(THINGS, start=1)}
    categories = [
        {"supercategory": thing.category, "id": numbers[name], "name": name} for name, thing in THINGS.items()
    ]
    for split, photographs in _photographs(stimuli):
        annotations = [
            _instance(photograph, box, crop)
            | {"category_id": numbers[name], "id": _ANNOTATIONS_AT_MOST * nsd_id + number}
            for nsd_id, photograph, crop in photographs
            for number, (name, box) in enumerate(boxes(nsd_id))
        ]
        content = {"annotations": annotations, "categories": categories}
        _write_coco(folder / f"instances_{split}.json", "instances", photographs, content)


_ANNOTATIONS_AT_MOST = 10
"""Annotation ids reserved for each image."""

_Photograph = tuple[int, dict[str, Any], tuple[float, ...]]
"""``nsd_id``, COCO's record of the photograph, and what ``cropBox`` cuts from it."""


def _photographs(stimuli: pd.DataFrame) -> Iterator[tuple[str, list[_Photograph]]]:
    for split in ("train2017", "val2017"):
        chosen = stimuli[stimuli["cocoSplit"] == split].sort_values("cocoId")
        columns = (chosen[column].tolist() for column in ("nsdId", "cocoId", "cropBox"))
        yield (
            split,
            [
                (nsd_id, _coco_image(coco_id, *_size_of(crop_box)), _parts_of(crop_box))
                for nsd_id, coco_id, crop_box in zip(*columns, strict=True)
            ],
        )


def _write_coco(path: Path, what: str, photographs: list[_Photograph], content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "info": {"description": f"Simulated {what} in COCO's format", **_COCO_INFO},
        "licenses": [{"url": "", "id": 1, "name": "No licence needed: simulated"}],
        "images": [photograph for _, photograph, _ in photographs],
        **content,
    }
    path.write_text(json.dumps(whole), encoding="utf-8")


def _instance(photograph: dict[str, Any], box: Box, crop: tuple[float, ...]) -> dict[str, Any]:
    """An object's box in the photograph, clipped to it."""
    width, height = photograph["width"], photograph["height"]
    top, _, left, _ = crop
    side = min(width, height)
    x, right = (round(min(max(left * width + side * end, 0), width), 2) for end in box[::2])
    y, bottom = (round(min(max(top * height + side * end, 0), height), 2) for end in box[1::2])
    w, h = round(right - x, 2), round(bottom - y, 2)
    return {
        "segmentation": [[x, y, right, y, right, bottom, x, bottom]], "area": round(w * h, 4), "iscrowd": 0,
        "image_id": photograph["id"], "bbox": [x, y, w, h],
    }  # fmt: skip


_COCO_INFO = {
    "url": "", "version": "1.0", "year": 2017, "contributor": "bitllm", "date_created": "2017/09/01",
}  # fmt: skip


def _coco_image(coco_id: int, width: int, height: int) -> dict[str, int | str]:
    return {
        "license": 1, "file_name": f"{coco_id:012d}.jpg", "coco_url": "", "height": height, "width": width,
        "date_captured": "2013-11-14 17:02:52", "flickr_url": "", "id": coco_id,
    }  # fmt: skip


def _parts_of(crop_box: str) -> tuple[float, ...]:
    return tuple(float(part) for part in crop_box.strip("()").split(","))


def _size_of(crop_box: str) -> tuple[int, int]:
    cut = sum(_parts_of(crop_box))
    across = crop_box.startswith("(0, 0,")
    sizes = [
        size
        for size in _SIZES
        if abs(1 - min(size) / max(size) - cut) < 1e-4 and (size[0] >= size[1]) == across
    ]
    return sizes[0] if sizes else (640, 640)


def responses_table(config: SimulationConfig, design: Design, subject: int, *, seed: int) -> pd.DataFrame:
    """A subject's behavior: NSD's 19 columns, one row per trial (``subject`` is 0-based).

    The task was to say whether an image was seen before. Some answers are wrong, some are missing, and two subjects
    have a run without data, as in NSD.
    """
    n_sessions, per_session = config.sessions[subject], config.trials_per_session
    n_trials = n_sessions * per_session
    rng = stream(seed, "behaviour", subject)
    image = design.masterordering[:n_trials]
    session, run, trial = trial_positions(design, n_sessions)
    days = np.cumsum(rng.integers(2, 10, n_sessions)) - 2
    clock = rng.uniform(0.4, 0.7, n_sessions)
    since_last, since_first = _trials_since(image)
    is_old = design.repetition[:n_trials] > 0
    in_session = np.arange(n_trials) % per_session
    old_today = is_old & (since_last <= in_session)
    correct = rng.random(n_trials) < np.where(is_old, 0.82, 0.9)
    correct_today = rng.random(n_trials) < 0.85
    says_old = np.where(correct, is_old, ~is_old)
    answered = (rng.random(n_trials) < 0.985) & ~_lost_run(subject, session, run)
    changed = rng.random(n_trials) < 0.02

    def where_answered(values: np.ndarray) -> np.ndarray:
        return np.where(answered, values, np.nan)

    return pd.DataFrame(
        {
            "SUBJECT": subject + 1, "SESSION": session, "RUN": run, "TRIAL": trial,
            "73KID": design.subjectim[subject, image - 1], "10KID": image,
            "TIME": np.round((days + clock)[session - 1] + in_session * 4 / 86400, 8),
            "ISOLD": is_old.astype(int), "ISCORRECT": where_answered(correct),
            "RT": where_answered(np.round(rng.lognormal(6.75, 0.3, n_trials), 3)),
            "CHANGEMIND": where_answered(changed),
            "MEMORYRECENT": np.where(is_old, since_last, np.nan),
            "MEMORYFIRST": np.where(is_old, since_first, np.nan),
            "ISOLDCURRENT": old_today.astype(int), "ISCORRECTCURRENT": where_answered(correct_today),
            "TOTAL1": where_answered(~says_old | changed), "TOTAL2": where_answered(says_old | changed),
            "BUTTON": where_answered(np.where(says_old, 2, 1)),
            "MISSINGDATA": _lost_run(subject, session, run).astype(int),
        }
    )  # fmt: skip


def trial_positions(
    design: Design, n_sessions: int
) -> tuple[Int[np.ndarray, " trials"], Int[np.ndarray, " trials"], Int[np.ndarray, " trials"]]:
    """Session, run and trial within the run of every trial, all 1-based."""
    per_run = design.trials_per_run
    run = np.repeat(np.arange(len(per_run)) + 1, per_run)
    trial = np.concatenate([np.arange(n) + 1 for n in per_run])
    session = np.repeat(np.arange(n_sessions) + 1, len(run))
    return session, np.tile(run, n_sessions), np.tile(trial, n_sessions)


def _trials_since(image: Int[np.ndarray, " trials"]) -> tuple[np.ndarray, np.ndarray]:
    """Number of trials since the last and the first presentation of each trial's image; 0 if there was none."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    since_last, since_first = np.zeros(len(image)), np.zeros(len(image))
    for index, name in enumerate(image.tolist()):
        since_last[index] = index - last.get(name, index)
        since_first[index] = index - first.setdefault(name, index)
        last[name] = index
    return since_last, since_first


def _lost_run(
    subject: int, session: Int[np.ndarray, " trials"], run: Int[np.ndarray, " trials"]
) -> np.ndarray:
    """In NSD the button presses of one run of subj04 and one of subj06 were lost; here in their second session."""
    lost = {3: 3, 5: 10}.get(subject, 0)
    return (session == 2) & (run == lost)
