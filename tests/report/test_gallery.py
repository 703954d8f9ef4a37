"""The gallery's pictures are inside the page, small, and described in words."""

import base64
import io

import numpy as np
from PIL import Image

from bitllm.report.gallery import GalleryItem, WordBits, card_groups, picture_uri


def _decoded(uri):
    head, body = uri.split(",", 1)
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_a_small_picture_is_kept_exactly(rng):
    picture = rng.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    head, pixels = _decoded(picture_uri(picture))
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(pixels, picture)


def test_a_photograph_is_made_smaller(rng):
    picture = rng.integers(0, 255, (425, 425, 3), dtype=np.uint8)
    head, pixels = _decoded(picture_uri(picture))
    assert head == "data:image/jpeg;base64"
    assert pixels.shape == (320, 320, 3)


def test_images_drawn_at_random_come_first(gallery):
    groups = card_groups(gallery[::-1], ["rft", "sft"])
    assert [group.label for group in groups] == ["random", "best", "median", "worst"]
    assert sum(len(group.cards) for group in groups) == len(gallery)


def test_captions_from_controls_are_told_from_those_from_real_betas(gallery):
    card = card_groups(gallery, ["rft", "sft"])[0].cards[0]
    assert [one.is_control for one in card.decoded] == [False, False, True, True]
    assert card.decoded[0].cider == "131.4"


def test_an_item_may_lack_its_picture_its_references_and_its_scores():
    item = GalleryItem(7, None, (), {"rft": "a dog"}, {}, "random")
    card = card_groups([item], ["rft"])[0].cards[0]
    assert card.picture_uri == ""
    assert card.alt == "Image 7"
    assert card.decoded[0].cider == ""


def test_a_word_is_coloured_by_its_bits_up_to_six():
    strengths = [WordBits("dog", bits).strength for bits in (0.0, 0.3, 0.5, -1.0, 3.0, 6.0, -40.0)]
    assert strengths == [0, 0, 1, 1, 3, 5, 5]


def test_words_with_bits_stand_in_the_card_of_their_caption():
    item = GalleryItem(
        7, None, (), {"rft": "a dog"}, words={"rft": (WordBits("a", 0.0), WordBits("dog", 3.2))}
    )
    assert card_groups([item], ["rft"])[0].cards[0].decoded[0].words[1] == ("dog", 3.2)
