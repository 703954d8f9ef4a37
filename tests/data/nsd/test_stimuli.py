"""The table of images, their captions and pictures, and what is said when they lack something."""

import json

import numpy as np
import pandas as pd
import pytest

from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.stimuli import read_captions, read_pictures, read_stimuli
from bitllm.errors import DataError


def stimuli_of(mini) -> pd.DataFrame:
    return read_stimuli(mini.stimulus_table, np.arange(30), mini.shared)


def captions_of(mini) -> pd.DataFrame:
    return read_captions(NsdRelease(mini.root), stimuli_of(mini))


def pictures_of(mini, nsd_ids=(0, 3, 4, 5, 29)) -> np.ndarray:
    return np.concatenate(list(read_pictures(mini.stimuli, np.array(nsd_ids))))


def without_captions(path, coco_id: int, *, caption: str | None = None) -> None:
    content = json.loads(path.read_text())
    kept = [a for a in content["annotations"] if a["image_id"] != coco_id]
    if caption is not None:
        kept.append({"image_id": coco_id, "caption": caption})
    path.write_text(json.dumps({"annotations": kept}))


def test_captions_are_stripped_and_kept_in_file_order(written_release):
    captions = captions_of(written_release)
    assert captions["nsd_id"].is_monotonic_increasing
    assert captions.groupby("nsd_id")["caption"].agg(list).to_dict() == written_release.captions
    assert captions.groupby("nsd_id").size().value_counts().to_dict() == {5: 22, 6: 8}


def test_pictures_are_rows_of_the_file(written_release):
    np.testing.assert_array_equal(pictures_of(written_release), written_release.pictures[[0, 3, 4, 5, 29]])


@pytest.mark.parametrize("caption", [None, "  \n"])
def test_an_image_without_a_caption_is_named(release, caption):
    coco_id = 1000 + 7 * 28  # of nsd_id 1
    without_captions(release.annotations(), coco_id, caption=caption)
    message = rf"captions_train2017.json: expected captions of the COCO image {coco_id} \(nsdId 1\)"
    with pytest.raises(DataError, match=message):
        captions_of(release)


@pytest.mark.parametrize("content", ["[]", '{"1000": ["a dog"]}', '[{"image_id": 1000, "caption": "a dog"}]'])
def test_a_file_that_is_not_cocos_captions_is_named(release, content):
    release.annotations().write_text(content)
    with pytest.raises(DataError, match=r"captions_train2017\.json: expected .*annotations"):
        captions_of(release)


def test_entities_in_cocos_captions_are_replaced_and_counted(release):
    content = json.loads(release.annotations().read_text())
    content["annotations"][0]["caption"] = "A man&#39;s dog &amp; cat"
    release.annotations().write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    notes: list[str] = []
    captions = read_captions(NsdRelease(release.root), stimuli_of(release), notes)
    assert "A man's dog & cat" in captions["caption"].tolist()
    assert len(notes) == 1 and "1 captions" in notes[0]


def test_a_stimulus_table_with_an_image_twice_is_refused(release):
    table = pd.read_csv(release.stimulus_table)
    pd.concat([table, table.tail(1)]).to_csv(release.stimulus_table, index=False)
    with pytest.raises(DataError, match=r"nsd_stim_info_merged\.csv: .*nsdId"):
        stimuli_of(release)


def test_a_word_for_a_flag_is_named(release):
    table = pd.read_csv(release.stimulus_table, dtype=str)
    table.loc[2, "shared1000"] = "perhaps"
    table.to_csv(release.stimulus_table, index=False)
    with pytest.raises(DataError, match=r"`shared1000` .*`perhaps` in row 3"):
        stimuli_of(release)


def test_a_stimulus_table_without_an_image_is_named(release):
    pd.read_csv(release.stimulus_table)[:-2].to_csv(release.stimulus_table)
    message = r"nsdId 28.* \(?2 "
    with pytest.raises(DataError, match=message):
        stimuli_of(release)
