"""Captions are joined to images by name or by COCO id, never by the order of either."""

import json

import pandas as pd
import pytest
import yaml

from bitllm.data.formats.custom import read_custom
from bitllm.data.formats.trials import read_trials, stimuli_of
from bitllm.data.io.captions import captions_by_nsd_id
from bitllm.errors import DataError

NAMES = ["apple", "bicycle", "zebra"]
COCO_IDS = {"apple": 2, "bicycle": 0, "zebra": 1}  # in another order than the names


def annotations(ids, ending=".jpg", *, images=True):
    rows = [{"id": n, "image_id": i, "caption": f"the  {name}"} for n, (name, i) in enumerate(ids.items())]
    files = [{"id": i, "file_name": f"train/{name}{ending}"} for name, i in ids.items()]
    return {"annotations": rows} | ({"images": files} if images else {})


def joined(folder, names, *contents, coco_ids=None, numbers_are_coco_ids=True):
    """Captions by name."""
    paths = [folder / f"captions{n}.json" for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    stimuli = pd.DataFrame({"nsd_id": range(len(names)), "stimulus_id": names, "coco_id": coco_ids or -1})
    found = captions_by_nsd_id(paths, stimuli, [], numbers_are_coco_ids=numbers_are_coco_ids)
    return {name: found[n] for n, name in enumerate(names)}


EXPECTED = {name: (f"the {name}",) for name in NAMES}


@pytest.mark.parametrize("ending", [".jpg", ".PNG", ""])
def test_names_are_joined_by_the_file_names_of_coco(tmp_path, ending):
    assert joined(tmp_path, NAMES, annotations(COCO_IDS, ending)) == EXPECTED


def test_names_with_their_ending_are_joined_too(tmp_path):
    names = [f"{name}.jpg" for name in NAMES]
    assert list(joined(tmp_path, names, annotations(COCO_IDS)).values()) == list(EXPECTED.values())


def test_names_are_joined_by_the_coco_id_of_the_trials(tmp_path):
    ids = list(COCO_IDS.values())
    assert joined(tmp_path, NAMES, annotations(COCO_IDS, images=False), coco_ids=ids) == EXPECTED
    assert joined(tmp_path, NAMES, annotations(COCO_IDS)["annotations"], coco_ids=ids) == EXPECTED


def test_a_coco_id_that_contradicts_the_name_of_the_image_is_refused(tmp_path):
    ids = [*COCO_IDS.values()]
    assert joined(tmp_path, NAMES, annotations(COCO_IDS), coco_ids=ids) == EXPECTED
    for wrong in (ids[::-1], [ids[2], ids[1], -1]):
        with pytest.raises(DataError, match=r"captions0\.json.*`coco_id` 1 .*`apple`.*2"):
            joined(tmp_path, NAMES, annotations(COCO_IDS), coco_ids=wrong)
    rows = [{"image_id": n, "caption": f"photo {n}"} for n in (7, 25)]
    with pytest.raises(DataError, match=r"`coco_id` 25 .*`0{11}7`.*found 7 "):
        joined(tmp_path, ["0" * 11 + "7", "x"], rows, coco_ids=[25, 7])
    # names of NSD are numbers of its own
    assert joined(
        tmp_path, ["0", "1"], annotations({"1": 4, "0": 5}), coco_ids=[4, 5], numbers_are_coco_ids=False
    )


def test_a_join_by_order_is_refused(tmp_path):
    for content in (annotations(COCO_IDS, images=False), annotations(COCO_IDS)["annotations"]):
        with pytest.raises(DataError, match=r"captions0\.json.*`apple`.*`coco_id`.*`file_name`"):
            joined(tmp_path, NAMES, content)
    other = {f"thing{n}": n for n in range(3)}
    with pytest.raises(DataError, match=r"captions0\.json.*`apple`"):
        joined(tmp_path, NAMES, annotations(other))
    with pytest.raises(DataError, match=r"captions of the image `apple`, found none"):
        joined(tmp_path, NAMES, {str(n): [f"thing{n}"] for n in range(3)})


def test_names_that_are_numbers_are_joined_by_file_name_before_the_number(tmp_path):
    """``1.jpg`` may have any id in a file that the lab wrote itself."""
    ids = {"0": 2, "1": 0, "2": 1}
    assert joined(tmp_path, list(ids), annotations(ids)) == {name: (f"the {name}",) for name in ids}


@pytest.mark.parametrize("pattern", ["{:d}", "{:012d}", "COCO_train2014_{:012d}"])
def test_names_that_are_coco_ids_are_joined_by_number(tmp_path, pattern):
    names = [pattern.format(n) for n in (139, 25, 7)]
    rows = [{"image_id": n, "caption": f"photo {n}"} for n in (7, 25, 139)]
    expected = dict(zip(names, [("photo 139",), ("photo 25",), ("photo 7",)], strict=True))
    assert joined(tmp_path, names, {"annotations": rows}) == expected
    assert joined(tmp_path, names, rows[:1], {"annotations": rows[1:]}) == expected  # train and val


def test_ids_of_nsd_are_no_coco_ids(tmp_path):
    rows = [{"image_id": n, "caption": f"photo {n}"} for n in range(3)]
    with pytest.raises(DataError, match="--stimulus-table"):
        joined(tmp_path, ["0", "1", "2"], rows, numbers_are_coco_ids=False)


def test_rows_and_maps_by_name_are_joined_by_name(tmp_path):
    rows = [{"image_id": name, "caption": f"the {name}"} for name in NAMES[::-1]]
    assert joined(tmp_path, NAMES, rows) == EXPECTED
    assert joined(tmp_path, NAMES, {name: f"the {name}" for name in NAMES[::-1]}) == EXPECTED
    padded = ["0007", "0012"]
    rows = [{"image_id": name, "caption": f"the {name}"} for name in padded[::-1]]
    assert joined(tmp_path, padded, rows) == {name: (f"the {name}",) for name in padded}


def test_a_caption_without_words_or_an_image_without_captions_is_named(tmp_path):
    with pytest.raises(DataError, match=r"`zebra`, found ' \\n'"):
        joined(tmp_path, NAMES, {name: f"the {name}" for name in NAMES} | {"zebra": [" \n"]})
    with pytest.raises(DataError, match=r"`zebra`, found none"):
        joined(tmp_path, NAMES, {name: f"the {name}" for name in NAMES} | {"zebra": []})


def trials_with_ids(path, ids):
    rows = "".join(f"{n}\ts1\t1\t1\t{name}\t{i}\n" for n, (name, i) in enumerate(ids))
    path.write_text("trial_row\tsubject\tsession\trun\tstimulus_id\tcoco_id\n" + rows)
    return stimuli_of(read_trials(path, subjects=("s1",)).table, path)[0]


def test_the_trials_table_may_have_coco_ids(tmp_path):
    ids = [("b", 7), ("a", 139), ("b", 7), ("c", 581929), ("", "")]
    stimuli = trials_with_ids(tmp_path / "trials.tsv", ids)
    assert dict(zip(stimuli["stimulus_id"], stimuli["coco_id"], strict=True)) == {
        "a": 139,
        "b": 7,
        "c": 581929,
    }


@pytest.mark.parametrize("ids", [["7", "8"], ["", ""], ["-1", "-1"], ["1.5", "1.5"]])
def test_an_image_without_one_coco_id_is_named(tmp_path, ids):
    with pytest.raises(DataError, match=r"trials\.tsv.*`coco_id`.*`b`"):
        trials_with_ids(tmp_path / "trials.tsv", [("a", 3), *(("b", i) for i in ids)])


def test_a_prepared_lab_has_its_captions_by_name(table, prepared):
    names = {n: f"{'zyxwvutsrqpo'[n]}{n}" for n in range(12)}  # sorted in the other order
    trials = pd.read_csv(table.root / "trials.tsv", sep="\t")
    trials["stimulus_id"] = trials["stimulus_id"].map(names)
    trials.to_csv(table.root / "trials.tsv", sep="\t", index=False)
    for n, name in names.items():
        (table.root / f"pictures/{n}.png").rename(table.root / f"pictures/{name}.png")
    table.captions_file.write_text(json.dumps(annotations({name: n for n, name in names.items()})))
    reading = read_custom(table.root / "header.yaml")
    store = prepared(reading)
    assert store.stimuli["coco_id"].tolist() == [-1] * 12
    name_of = store.stimuli["stimulus_name"].to_dict()
    assert {name_of[n]: texts for n, texts in store.captions.items()} == {
        name: (f"the {name}",) for name in names.values()
    }
    header = yaml.safe_load((table.root / "header.yaml").read_text())
    (table.root / "header.yaml").write_text(yaml.safe_dump(header | {"captions": "no-names.json"}))
    content = annotations({name: n for n, name in names.items()}, images=False)
    (table.root / "no-names.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no-names\.json.*`coco_id`"):
        read_custom(table.root / "header.yaml")
    trials["coco_id"] = trials["stimulus_id"].map({name: n for n, name in names.items()})
    trials.to_csv(table.root / "trials.tsv", sep="\t", index=False)
    again = prepared(read_custom(table.root / "header.yaml"), "again")
    assert again.captions == store.captions
    assert again.stimuli["coco_id"].tolist() == list(range(12))[::-1]
