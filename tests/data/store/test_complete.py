"""Columns that cannot be cast are named with their row; what can be cast goes through."""

import numpy as np
import pandas as pd
import pytest

from bitllm.data.store.complete import require_numbers
from bitllm.errors import DataError


@pytest.mark.parametrize(
    ("values", "dtype", "match"),
    [
        ([1, 2, "x"], "int16", r"t\.tsv: expected whole numbers .* column `a` of the voxels, found `x` in row 3"),
        ([1, 40_000, 40_001], "int16", r"found `40000` in row 2 \(2 in all, the heading not counted\); "),
        ([1.5, 2.0], "int64", r"found `1.5` in row 1"),
        ([1, np.nan], "int32", r"found nothing in row 2"),
        (["0.5", "left"], "float32", r"expected numbers in the column `a`.*found `left` in row 2"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_cast_is_named(values, dtype, match):
    with pytest.raises(DataError, match=match):
        require_numbers(pd.DataFrame({"a": values}), {"a": dtype}, "t.tsv", "the voxels")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1, 2.0], "int16"), (["1", "2"], "int32"), ([np.nan, 0.5], "float32"), ([True, False], "int16")],
)
def test_values_that_can_be_cast_go_through(values, dtype):
    require_numbers(pd.DataFrame({"a": values}), {"a": dtype}, "t.tsv", "the voxels")
