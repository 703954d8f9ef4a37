"""One store of two data sets: nothing is lost, each photograph is one image, and test images stay test images."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.join import join_stores
from bitllm.data.shared_images import audit_two_stores
from bitllm.data.splits import leave_one_subject_out
from bitllm.data.store import open_store
from bitllm.data.store.write import replace_tasks
from bitllm.data.tasks import exchanges
from bitllm.errors import DataError

COLUMNS = ["session", "run", "trial"]


@pytest.fixture(scope="module")
def joined(easy_release, made, tmp_path_factory, request):
    """The joint store with the two that it is made of."""
    out = tmp_path_factory.mktemp("joined") / "both"
    main(["join", str(easy_release / "store"), str(made[1].path), "--out", str(out)])
    return open_store(out), open_store(easy_release / "store"), made[1]


def test_every_trial_keeps_its_betas_and_its_photograph(joined):
    both, *stores = joined
    assert both.subjects == tuple(sorted(name for store in stores for name in store.subjects))
    coco = both.stimuli["coco_id"].to_dict()
    for store in stores:
        for name in store.subjects:
            one, same = store.subject(name), both.subject(name)
            assert np.array_equal(one.betas, same.betas)
            assert one.trials[COLUMNS].equals(same.trials[COLUMNS])
            shown, still_shown = (table["nsd_id"].tolist() for table in (one.trials, same.trials))
            for nsd_id, joint in zip(shown, still_shown, strict=True):
                assert store.stimuli["coco_id"][nsd_id] == coco[joint]
                is_first = joint in stores[0].stimuli.index
                caption = stores[0].captions[joint] if is_first else store.captions[nsd_id]
                assert both.captions[joint] == caption


def test_a_photograph_is_one_image_for_test_if_a_store_has_it_for_test(joined):
    both, *stores = joined
    assert max(Counter(both.stimuli["coco_id"].tolist()).values()) == 1
    expected = {}
    for store in stores:
        for coco_id, part in zip(store.stimuli["coco_id"], store.stimuli["part"], strict=True):
            expected.setdefault(coco_id, set()).add(part)
    part = both.stimuli.set_index("coco_id")["part"]
    order = ("test", "validation", "train")
    assert part.to_dict() == {n: next(one for one in order if one in parts) for n, parts in expected.items()}
    assert sum(len(parts) > 1 for parts in expected.values()) > 5
    leaks = audit_two_stores(both, stores[0])["leaks"]
    assert not [line for line in leaks if "is for test in " + str(stores[0].path) in line]


def test_labels_are_those_of_each_atlas_and_unknown_where_a_store_has_none(joined):
    both, nsd, bold5000 = joined
    assert both.atlases == nsd.atlases | bold5000.atlases
    for store, other in ((nsd, bold5000), (bold5000, nsd)):
        name = store.subjects[0]
        voxels, own = both.subject(name).voxels, store.subject(name).voxels
        for atlas in store.atlases:
            assert voxels[atlas].tolist() == own[atlas].tolist()
        for atlas in other.atlases.keys() - store.atlases.keys():
            assert not voxels[atlas].any()
        np.testing.assert_array_equal(voxels[["x_mm", "y_mm", "z_mm"]], own[["x_mm", "y_mm", "z_mm"]])


def test_pictures_and_questions_are_those_of_their_image(joined):
    both, nsd, bold5000 = joined
    later = [n for n in both.stimuli.index if n not in nsd.stimuli.index]
    for nsd_ids, store in ((nsd.stimuli.index[:9].tolist(), nsd), (later[:9], bold5000)):
        number = store.stimuli.reset_index().set_index("coco_id")["nsd_id"]
        own = [int(number[both.stimuli["coco_id"][n]]) for n in nsd_ids]
        assert np.array_equal(both.pictures(nsd_ids), store.pictures(own))
    assert {(one.nsd_id, one.questions, one.answers) for one in exchanges(both)} == {
        (one.nsd_id, one.questions, one.answers) for one in exchanges(nsd)
    }


def test_it_is_split_like_any_store_and_says_what_it_is_made_of(joined):
    both, nsd, bold5000 = joined
    split = leave_one_subject_out(both, "CSI4")
    assert split.test_subjects == ("CSI4",) and {"subj01", "CSI1"} <= set(split.train_subjects)
    tested = {int(both.stimuli["coco_id"][n]) for n in split.test_images}
    for store in (nsd, bold5000):
        is_test = store.stimuli["part"] == "test"
        assert not tested & set(store.stimuli["coco_id"][~is_test]) - set(
            both.stimuli["coco_id"][both.stimuli["part"] == "test"]
        )
    manifest = both.manifest
    assert (manifest.source, manifest.statistics) == ("simulated", "as-delivered")
    assert manifest.simulation["joined_with"] == [bold5000.manifest.simulation]


def refused(message, *paths, out):
    with pytest.raises(DataError, match=message):
        join_stores(paths, out)
    assert not out.exists()


def test_stores_that_cannot_be_joined_are_refused(joined, tmp_path):
    _, nsd, bold5000 = joined
    out = tmp_path / "out"
    refused("expected two or more stores, found 1", nsd.path, out=out)
    refused("expected other names of subjects .* found `subj01` in both", nsd.path, nsd.path, out=out)
    other = tmp_path / "real"
    shutil.copytree(bold5000.path, other)
    record = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(record | {"source": "bold5000", "simulation": None}))
    refused("expected real data, as in .*real, found simulated data", nsd.path, other, out=out)


def test_pictures_of_another_size_are_refused(joined, tmp_path):
    _, nsd, bold5000 = joined
    other = tmp_path / "large"
    shutil.copytree(bold5000.path, other)
    np.save(other / "pictures.npy", np.zeros((len(bold5000.stimuli), 9, 9, 3), np.uint8))
    refused(r"large: expected pictures of .* found 9 × 9", nsd.path, other, out=tmp_path / "out")


def test_questions_of_the_second_store_come_with_its_own_images(joined, tmp_path):
    _, nsd, bold5000 = joined
    other = tmp_path / "asked"
    shutil.copytree(bold5000.path, other)
    store = open_store(other)
    images = store.stimuli.index.tolist()
    table = nsd.tasks.reset_index().head(1)
    rows = table.loc[np.zeros(len(images), int)].assign(nsd_id=images, id=[f"q{n}" for n in images])
    replace_tasks(store, rows.reset_index(drop=True))
    both = join_stores([nsd.path, other], tmp_path / "both")
    new = {one.nsd_id for one in exchanges(both)} - set(nsd.stimuli.index)
    assert new == set(both.stimuli.index) - set(nsd.stimuli.index)
    ids = [one.id for one in exchanges(both)]
    assert len(ids) == len(set(ids))
