"""The tables against NSD's description of them, and against one another."""

import ast
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.simulation import SimulationConfig
from bitllm.simulation.vocabulary import OBJECTS

NSD = "nsddata/experiments/nsd"


@pytest.fixture(scope="module")
def stimuli(release: Path) -> pd.DataFrame:
    return pd.read_csv(release / NSD / "nsd_stim_info_merged.csv")


@pytest.fixture(scope="module")
def design(release: Path) -> dict[str, np.ndarray]:
    return scipy.io.loadmat(release / NSD / "nsd_expdesign.mat")


def test_the_design_file_has_nsd_s_keys_and_shapes(
    design: dict[str, np.ndarray], config: SimulationConfig
) -> None:
    assert design["masterordering"].shape == (1, 3 * config.images_per_subject)
    assert design["subjectim"].shape == (3, config.images_per_subject)
    assert design["sharedix"].shape == (1, config.n_shared)
    assert design["basiccnt"].shape == (3, 4) and design["basiccnt"].sum() == design["stimpattern"].sum()
    assert design["subjectim"].min() == 1 and design["subjectim"].max() == config.n_images


def test_the_stimulus_table_has_nsd_s_columns(stimuli: pd.DataFrame, config: SimulationConfig) -> None:
    subjects = range(1, 4)
    assert stimuli.columns.tolist() == [
        "Unnamed: 0", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000",
        *(f"subject{k}" for k in subjects), *(f"subject{k}_rep{r}" for k in subjects for r in range(3)),
    ]  # fmt: skip
    assert (stimuli["nsdId"] == np.arange(config.n_images)).all() and (
        stimuli["Unnamed: 0"] == stimuli["nsdId"]
    ).all()
    assert stimuli["cocoId"].is_unique and not (stimuli["cocoId"] == stimuli["nsdId"]).any()
    assert set(stimuli["cocoSplit"]) == {"train2017", "val2017"}
    assert all(len(ast.literal_eval(box)) == 4 for box in stimuli["cropBox"])


def test_planned_trials_are_one_based_positions_in_the_design(
    stimuli: pd.DataFrame, design: dict[str, np.ndarray]
) -> None:
    ordering, lists = design["masterordering"].ravel().astype(int), design["subjectim"].astype(int)
    for k in range(3):
        mine = stimuli[stimuli[f"subject{k + 1}"]]
        np.testing.assert_array_equal(np.sort(lists[k]) - 1, mine["nsdId"])
        for repetition in range(3):
            trials = mine[f"subject{k + 1}_rep{repetition}"].to_numpy()
            np.testing.assert_array_equal(lists[k, ordering[trials - 1] - 1] - 1, mine["nsdId"])
        assert (stimuli.loc[~stimuli[f"subject{k + 1}"], f"subject{k + 1}_rep0"] == 0).all()
    np.testing.assert_array_equal(np.flatnonzero(stimuli["shared1000"]) + 1, design["sharedix"].ravel())


def test_responses_follow_the_design_trial_by_trial(
    release: Path, design: dict[str, np.ndarray], config: SimulationConfig
) -> None:
    for k, subject in enumerate(config.subjects):
        table = pd.read_csv(release / f"nsddata/ppdata/{subject}/behav/responses.tsv", sep="\t")
        n = config.sessions[k] * config.trials_per_session
        assert table.shape == (n, 19) and (table["SUBJECT"] == k + 1).all()
        np.testing.assert_array_equal(table["10KID"], design["masterordering"].ravel()[:n])
        np.testing.assert_array_equal(table["73KID"], design["subjectim"][k, table["10KID"] - 1])
        np.testing.assert_array_equal(table["SESSION"], np.repeat(np.arange(config.sessions[k]) + 1, 60))
        np.testing.assert_array_equal(table["TRIAL"], np.tile(np.arange(5) + 1, n // 5))
        assert table["RUN"].min() == 1 and table["RUN"].max() == 12
        np.testing.assert_array_equal(table["ISOLD"] == 1, table["73KID"].duplicated())
        assert table["TIME"].is_monotonic_increasing and set(table["BUTTON"].dropna()) == {1, 2}


def test_captions_are_in_coco_s_structure_under_the_coco_id(release: Path, stimuli: pd.DataFrame) -> None:
    ids: list[int] = []
    for split in ("train2017", "val2017"):
        content = json.loads(
            (release / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json").read_text()
        )
        images = {image["id"] for image in content["images"]}
        assert images == set(stimuli.loc[stimuli["cocoSplit"] == split, "cocoId"])
        by_image = pd.Series([entry["image_id"] for entry in content["annotations"]]).value_counts()
        assert set(by_image.index) == images and (by_image == 5).all()
        ids += [entry["id"] for entry in content["annotations"]]
    assert len(set(ids)) == len(ids) == 5 * len(stimuli)


def test_a_crop_box_leaves_a_square(release: Path, stimuli: pd.DataFrame) -> None:
    boxes = stimuli.set_index("cocoId")["cropBox"]
    content = json.loads(
        (release / "nsddata_stimuli/stimuli/nsd/annotations/captions_train2017.json").read_text()
    )
    for image in content["images"]:
        top, bottom, left, right = ast.literal_eval(boxes[image["id"]])
        assert image["width"] * (1 - left - right) == pytest.approx(
            image["height"] * (1 - top - bottom), abs=0.01
        )


def test_instances_are_in_coco_s_structure_in_the_photographs_of_the_captions(
    release: Path, stimuli: pd.DataFrame
) -> None:
    folder = release / "nsddata_stimuli/stimuli/nsd/annotations"
    scenes = pd.read_parquet(release / "simulation_truth/scenes.parquet").set_index(stimuli["cocoId"])
    ids: list[int] = []
    for split in ("train2017", "val2017"):
        content = json.loads((folder / f"instances_{split}.json").read_text())
        photographs = {image["id"]: image for image in content["images"]}
        assert content["images"] == json.loads((folder / f"captions_{split}.json").read_text())["images"]
        names = {category["id"]: category["name"] for category in content["categories"]}
        assert len(set(names.values())) == len(names) == len(OBJECTS)
        shown: dict[int, list[str]] = {coco_id: [] for coco_id in photographs}
        for entry in content["annotations"]:
            shown[entry["image_id"]].append(names[entry["category_id"]])
            x, y, w, h = entry["bbox"]
            assert min(x, y) >= 0 and min(w, h) > 1 and entry["iscrowd"] == 0
            assert x + w <= photographs[entry["image_id"]]["width"] + 0.01
            assert y + h <= photographs[entry["image_id"]]["height"] + 0.01
            assert entry["area"] == pytest.approx(w * h)
            assert entry["segmentation"] == [pytest.approx([x, y, x + w, y, x + w, y + h, x, y + h])]
        for coco_id, found in shown.items():
            scene = scenes.loc[coco_id]
            several = {4: 5}.get(scene["count"], scene["count"])
            partner = [scene["partner"]] if scene["partner"] else []
            assert sorted(found) == sorted([scene["object"]] * several + partner)
        ids += [entry["id"] for entry in content["annotations"]]
    assert len(set(ids)) == len(ids)
