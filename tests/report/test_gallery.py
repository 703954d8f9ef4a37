"""The gallery shows the captions of the table; its pictures are inside the page and small."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bitllm.evaluation.table import Evaluation
from bitllm.report.gallery import GalleryItem, WordBits, chosen_rows, read_gallery


def pixels_of(uri):
    head, body = uri.split(",", 1)
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.fixture
def evaluation():
    """Five images; the captions say system, input, image and trials."""
    rows = [
        {"system": system, "trials": trials, "input": name, "row": row, "nsd_id": 10 + row, "cider": 9.0 - row,
         "answer": f"{system} {name} {row} {trials}", "task": "caption"}
        for system, name in (("rft", "real"), ("sft", "real"), ("rft", "permuted"), ("rft", "constant"))
        for trials in ("averaged", "single")
        for row in (4, 3, 2, 1, 0)
    ]  # fmt: skip
    words = [[["dog", row + 0.5]] for row in range(5)]
    about = {
        "references": {str(10 + row): [f"a {row}"] for row in range(5)},
        "words": {"rft": {"real": words}},
    }
    return Evaluation(pd.DataFrame(rows), about)


def test_an_image_has_its_own_captions_references_and_words(evaluation):
    items = read_gallery(evaluation, "rft", seed=0, store=None)
    assert list(dict.fromkeys(one.group for one in items)) == ["random", "best", "median", "worst"]
    for item in items:
        row = item.nsd_id - 10
        assert item.references == (f"a {row}",)
        assert [(one.name, one.caption) for one in item.decoded] == [
            ("rft", f"rft real {row} averaged"),
            ("sft", f"sft real {row} averaged"),
            ("rft, another image's betas", f"rft permuted {row} averaged"),
        ]
        assert [one.is_control for one in item.decoded] == [False, False, True]
        assert item.decoded[0].cider == 9.0 - row
        assert item.decoded[0].words == (WordBits("dog", row + 0.5),)
        assert item.decoded[1].words == ()


def test_a_system_that_is_not_in_the_table_has_no_gallery(evaluation):
    assert read_gallery(evaluation, "prefix", seed=0, store=None) == []


def test_rows_are_best_median_worst_and_random():
    cider = [5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0]
    chosen = chosen_rows(cider, seed=0, n_each=2)
    assert chosen["best"] == [2, 6]
    assert chosen["worst"] == [1, 5]
    assert set(chosen["median"]) == {3, 0}
    assert len(set(chosen["random"])) == 2
    assert chosen == chosen_rows(cider, seed=0, n_each=2)


def test_a_small_picture_is_lossless_and_a_photograph_is_made_smaller(rng):
    small, large = (rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for side in (64, 425))
    head, pixels = pixels_of(GalleryItem(1, small, (), ()).picture_uri)
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(pixels, small)
    head, pixels = pixels_of(GalleryItem(1, large, (), ()).picture_uri)
    assert (head, pixels.shape) == ("data:image/jpeg;base64", (320, 320, 3))


def test_an_item_may_lack_its_picture_and_its_references():
    item = GalleryItem(7, None, (), ())
    assert (item.picture_uri, item.alt) == ("", "Image 7")


def test_a_word_is_colored_by_its_bits_up_to_six():
    strengths = [WordBits("dog", bits).strength for bits in (0.0, 0.3, 0.5, -1.0, 3.0, 6.0, -40.0)]
    assert strengths == [0, 0, 1, 1, 3, 5, 5]
