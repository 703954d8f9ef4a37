"""Names of spaces, and MNI305 against FreeSurfer's own example."""

import numpy as np
import pytest

from bitllm.data.store.spaces import converted, frame_of, require_space
from bitllm.errors import DataError


@pytest.mark.parametrize(
    ("space", "frame"),
    [
        ("MNI152NLin2009cAsym", "MNI"),
        ("space-MNI152NLin6Asym", "MNI"),
        ("func1pt8mm", "MNI"),
        ("fsLR", "MNI"),
        ("fsaverage5", "MNI305"),
        ("MNI305", "MNI305"),
        ("T1w", "own"),
        ("unknown", "unknown"),
        ("fsavrage", None),
    ],
)
def test_a_name_of_a_space_says_what_the_coordinates_refer_to(space, frame):
    assert frame_of(space) == frame


def test_a_misspelled_space_is_refused_with_the_nearest_name():
    with pytest.raises(DataError, match=r"header\.yaml: .*`fsavrage`; did you mean `fsaverage`"):
        require_space("fsavrage", "header.yaml")


def test_fsaverage_is_converted_to_mni152_as_in_the_example_of_freesurfers_wiki():
    point = np.array([[10.0, -20, 35]])
    mni = converted(point, source="MNI305", target="MNI")
    np.testing.assert_allclose(mni, [[10.695, -18.409, 36.137]], atol=0.1)
    np.testing.assert_allclose(converted(mni, source="MNI", target="MNI305"), point, atol=1e-9)
