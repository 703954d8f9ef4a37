import numpy as np
import pytest

from bitllm.errors import DataError
from bitllm.metrics.clipscore import clip_score, ref_clip_score


def test_clip_score_is_2_5_times_the_cosine_and_never_negative():
    images = np.array([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    captions = np.array([[3.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    assert clip_score(images, captions) == pytest.approx([250, 250 / np.sqrt(2), 0])


def test_ref_clip_score_is_the_harmonic_mean_written_out(rng):
    images, captions = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    references = [rng.standard_normal((n, 5)) for n in (1, 2, 3, 1, 4, 5)]
    expected = []
    for image, caption, rows in zip(images, captions, references, strict=True):
        cosine = [row @ caption / np.linalg.norm(row) / np.linalg.norm(caption) for row in rows]
        text = max(*cosine, 0)
        picture = 2.5 * max(image @ caption / np.linalg.norm(image) / np.linalg.norm(caption), 0)
        expected.append(100 * 2 * text * picture / (text + picture) if text + picture else 0)
    assert ref_clip_score(images, captions, references) == pytest.approx(expected)


def test_zero_embeddings_score_zero():
    zero = np.zeros((1, 3))
    assert clip_score(zero, zero)[0] == 0
    assert ref_clip_score(zero, zero, [zero])[0] == 0


def test_missing_reference_embeddings_are_refused():
    rows = np.ones((2, 3))
    with pytest.raises(DataError, match="expected 2 sets of at least one, found 1, 0 of them empty"):
        ref_clip_score(rows, rows, [rows])
    with pytest.raises(DataError, match="found 2, 1 of them empty"):
        ref_clip_score(rows, rows, [rows, np.zeros((0, 3))])
