"""Places of the voxels out of an NSD root, for formats that hold none."""

import numpy as np
import pandas as pd
import pytest

from bitllm.data.formats.processed import read_processed
from bitllm.data.formats.sidecar import Sidecar
from bitllm.data.store import open_store
from bitllm.errors import DataError


def test_places_are_those_of_nsds_own_store(mindeye, make, easy_release, prepared):
    # `valid` is of the betas, which are others here, and not of the places
    expected = open_store(easy_release / "store").subject("subj01").voxels.drop(columns="valid")
    for part, ids in (("train", range(8)), ("val", (8, 9)), ("test", (10, 11))):
        for path in (mindeye.root / part).glob("*.tar"):
            path.unlink()
        rows = np.ones((1, len(expected)), np.float16)
        samples = [make.mindeye_sample(n, rows, mindeye.pictures[n]) for n in ids]
        make.write_tar(mindeye.root / f"{part}/{part}_subj01_0.tar", samples)
    sidecar = Sidecar(captions=(mindeye.captions_file,), nsd=easy_release / "nsd")
    found = (
        prepared(read_processed("mindeye", mindeye.root, sidecar))
        .subject("subj01")
        .voxels.drop(columns="valid")
    )
    pd.testing.assert_frame_equal(found, expected)


def test_tars_of_another_region_than_nsds_are_refused(mindeye, easy_release):
    sidecar = Sidecar(captions=(mindeye.captions_file,), nsd=easy_release / "nsd")
    with pytest.raises(DataError, match=r"nsdgeneral.*voxels, as in .*found"):
        read_processed("mindeye", mindeye.root, sidecar)
