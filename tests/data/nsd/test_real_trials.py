"""NSD's real trial table against the counts of the specification, through the project's own trial reader."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.trials import Design, read_trials
from bitllm.data.splits import load_split
from bitllm.data.store.contents import StoreContents, StoreSettings, SubjectContents
from bitllm.data.store.write import write_store

ROOT = Path(__file__).resolve().parents[3]
N_SESSIONS = dict(zip([f"subj{n:02d}" for n in range(1, 9)], (40, 40, 32, 30, 40, 32, 40, 30), strict=True))

SEEN = {40: (10000, 1000), 32: (9411, 930), 30: (9209, 907)}
ALL = {40: (27000, 9000, 3000, 1000), 32: (21629, 8481, 2371, 930), 30: (20312, 8302, 2188, 907)}
EARLY = {40: (24980, 8859, 2770, 982), 32: (19637, 8188, 2113, 894), 30: (18265, 7907, 1985, 872)}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    path = ROOT.parent / "shared" / "real" / "nsd_trial_metadata.parquet"
    if not path.is_file():
        pytest.skip("NSD's trial table is not there: no folder shared/real beside the checkout")
    return pd.read_parquet(path)


@pytest.fixture(scope="module")
def trials(table, tmp_path_factory) -> dict[str, pd.DataFrame]:
    """The trials of each subject, read from a design and responses made of the table."""
    root = tmp_path_factory.mktemp("real")
    of = {subject: part["nsd_id"].to_numpy() for subject, part in table.groupby("sub")}
    full = [subject for subject, ids in of.items() if len(ids) == 30000]
    shared = sorted(set.intersection(*[set(of[subject].tolist()) for subject in full]))
    columns = pd.Series(of["subj01"]).drop_duplicates().to_numpy()
    columns = np.concatenate([np.array(shared), columns[~np.isin(columns, shared)]])
    place = pd.Series(np.arange(len(columns)), index=columns)
    ordering = place.loc[of["subj01"]].to_numpy()
    images = np.full((8, len(columns)), -1)
    for row, subject in enumerate(N_SESSIONS):
        images[row, ordering[: len(of[subject])]] = of[subject]
    design = Design(root / "design.mat", ordering, images, np.array(shared), np.full(40, 750))
    release = NsdRelease(root)
    for subject, part in table.groupby("sub"):
        path = release.responses(str(subject))
        path.parent.mkdir(parents=True)
        responses = part.rename(columns={"ses": "SESSION", "run": "RUN", "trial_id": "TRIAL"})
        responses = responses.assign(**{"73KID": part["nsd_id"] + 1})
        responses[["SESSION", "RUN", "TRIAL", "73KID"]].to_csv(path, sep="\t", index=False)
    return {s: read_trials(release, design, s, n) for s, n in N_SESSIONS.items()}


def counts(trials: pd.DataFrame) -> tuple[int, int, int, int]:
    train, test = trials[~trials["shared"]], trials[trials["shared"]]
    return len(train), train["nsd_id"].nunique(), len(test), test["nsd_id"].nunique()


def test_the_first_trials_of_subject_1(trials):
    first = trials["subj01"]
    assert first["nsd_id"].tolist()[:3] == [46002, 61882, 828]
    shared = np.flatnonzero(first["shared"])[:10]
    assert shared.tolist() == [0, 28, 35, 44, 55, 56, 90, 120, 126, 132]
    images = [46002, 48617, 44980, 32625, 53052, 4930, 32625, 6431, 70335, 36576]
    assert first["nsd_id"].to_numpy()[shared].tolist() == images


@pytest.mark.parametrize("subject", list(N_SESSIONS))
def test_counts_of_every_subject(trials, subject):
    n, of = N_SESSIONS[subject], trials[subject]
    assert (of["nsd_id"].nunique(), of["nsd_id"][of["shared"]].nunique()) == SEEN[n]
    assert counts(of) == ALL[n]
    assert counts(of[of["session"] <= n - 3]) == EARLY[n]
    assert (of.groupby("nsd_id").size() == 3).sum() == {40: 10000, 32: 6234, 30: 5445}[n]
    assert of["repetition"].max() == 2


def test_counts_of_all_subjects_together(trials):
    shared = pd.DataFrame({s: t[t["shared"]].groupby("nsd_id").size() for s, t in trials.items()}).fillna(0)
    assert [(shared >= n).all(axis=1).sum() for n in (1, 2, 3)] == [907, 766, 515]
    assert pd.concat(trials.values())["nsd_id"].nunique() == 70566
    assert sum(map(len, trials.values())) == 213_000
    early = trials["subj01"][trials["subj01"]["session"] <= 37]
    n_test = early[early["shared"]].groupby("nsd_id").size().value_counts()
    n_train = early[~early["shared"]].groupby("nsd_id").size().value_counts()
    assert [n_test[n] for n in (3, 2, 1)] == [839, 110, 33]
    assert [n_train[n] for n in (3, 2, 1)] == [7581, 959, 319]


@pytest.fixture(scope="module")
def real_store(trials, tmp_path_factory) -> Path:
    """A store of all real trials, with one made-up voxel a subject."""
    voxel = pd.DataFrame({"x_mm": [0.0], "y_mm": [0.0], "z_mm": [0.0]})
    people = [SubjectContents(s, t, voxel, made_up_betas, s) for s, t in trials.items()]
    together = pd.concat(trials.values())[["nsd_id", "shared"]].drop_duplicates()
    captions = together[["nsd_id"]].assign(caption="a thing")
    store = tmp_path_factory.mktemp("real") / "store"
    write_store(store, StoreContents(people, together, captions, "trials"), StoreSettings(source="nsd"))
    return store


def made_up_betas(session: int) -> np.ndarray:
    return np.random.default_rng(session).normal(3, 5, (750, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ["1000", "982", "907", "766", "515"])
def test_the_command_finds_every_named_test_set(real_store, table, tmp_path, name):
    command = ["split", str(real_store), str(tmp_path / "s.json"), "--preset", "within-subject"]
    main([*command, "--test-images", name])
    split = load_split(tmp_path / "s.json")
    shared = set.intersection(*[set(t["nsd_id"]) for s, t in table.groupby("sub") if len(t) == 30000])
    counted = table[table["nsd_id"].isin(shared)].groupby(["nsd_id", "sub"]).size().unstack(fill_value=0)
    early = table[(table["sub"] == "subj01") & (table["ses"] <= 37) & table["nsd_id"].isin(shared)]
    expected = {"1000": shared, "982": set(early["nsd_id"])}
    for least, of_all in ((1, "907"), (2, "766"), (3, "515")):
        expected[of_all] = set(counted.index[(counted >= least).all(axis=1)])
    assert len(split.test_images) == int(name)
    assert split.test_images == expected[name]
    assert not split.test_images & (split.train_images | split.validation_images)
