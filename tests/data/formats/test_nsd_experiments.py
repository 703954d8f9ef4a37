"""NSD-imagery and NSD-synthetic in a miniature release, against what was written."""

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import scipy.io

from bitllm.cli import main
from bitllm.data.store import open_store

RUNS = (
    "visA",
    "attA",
    "imgA_1",
    "visB",
    "attB",
    "imgB_1",
    "visC",
    "attC",
    "imgC_1",
    "imgA_2",
    "imgB_2",
    "imgC_2",
)
SUBJECTS = ("subj01", "subj02")
N = 6  # trials of a run
CONDITIONS = [f"{group}{n}" for group in "ABC" for n in range(1, 4)]


@pytest.fixture(name="made")
def _made(release, write_hdf5_betas):
    """Both experiments of two subjects; returns what was written: trials of each run, order, betas."""
    rng = np.random.default_rng(8)
    behavior = release.root / "nsddata/bdata/nsdimagery"
    behavior.mkdir(parents=True)
    shown, betas = {}, {}
    for subject in SUBJECTS:
        for run in RUNS:
            shown[subject, run] = [f"{run[3]}{n}" for n in rng.permutation(np.repeat([1, 2, 3], 2))]
            table = pd.DataFrame({"TRIAL": range(1, N + 1), "CONDITION": shown[subject, run]})
            table.to_csv(behavior / f"nsdimagery_{subject}_{run}.tsv", sep="\t", index=False)
    order = rng.permutation(np.repeat(np.arange(1, 13), 3))
    pattern = np.zeros((1, 4, 11), np.uint8)
    pattern[:, :, :9] = 1
    design = release.root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    design.parent.mkdir(parents=True)
    scipy.io.savemat(design, {"masterordering": order[None] * 1.0, "stimpattern": pattern})
    for subject in SUBJECTS:
        for experiment, n in (("imagery", 15 * N), ("synthetic", len(order))):
            values = rng.integers(-900, 900, (*release.mask[subject].shape, n)).astype(np.int16)
            write_hdf5_betas(file_of(release, subject, experiment), values)
            betas[subject, experiment] = values
    names = [*CONDITIONS[:-1], *map(str, range(1, 12))]  # none of C3 and 12
    (release.root / "captions.json").write_text(
        json.dumps({name: [f"a caption of {name}"] for name in names})
    )
    return shown, order, betas


def file_of(release, subject, experiment):
    name = f"nsd{experiment}betas_fithrf_GLMdenoise_RR/betas_nsd{experiment}.hdf5"
    return release.root / f"nsddata_betas/ppdata/{subject}/func1pt8mm/{name}"


def rows_of(shown, subject, start):
    """Beta and image of each trial, counted run by run."""
    rows, first = [], 0
    for run in RUNS:
        if run.startswith(start):
            rows += [(first + n, name) for n, name in enumerate(shown[subject, run])]
        first += 2 * N if run.startswith("att") else N
    return rows


@pytest.mark.parametrize("what", ["seen", "imagined", "synthetic"])
def test_a_store_holds_the_trials_of_the_experiment_at_the_voxels_of_nsd(made, release, tmp_path, what):
    shown, order, betas = made
    option = ["--synthetic"] if what == "synthetic" else ["--imagery", what]
    words = [release.root, tmp_path / "store", *option, "--captions", release.root / "captions.json"]
    main(["prepare", "nsd", *map(str, words)])
    store = open_store(tmp_path / "store")
    assert store.subjects == SUBJECTS
    assert (store.manifest.source, store.manifest.space) == (
        "nsd-synthetic" if what == "synthetic" else "nsd-imagery",
        "func1pt8mm",
    )
    name_of, parts = store.stimuli["stimulus_name"], store.stimuli["part"]
    n_images = len(store.stimuli)
    assert set(parts) == {"train", "validation", "test"}
    assert (parts == "test").sum() == n_images - round(n_images / 3)
    for subject in SUBJECTS:
        if what == "synthetic":
            volume, rows = betas[subject, "synthetic"], [(n, str(i)) for n, i in enumerate(order) if i < 12]
        else:
            volume, rows = betas[subject, "imagery"], rows_of(shown, subject, what[:3].replace("see", "vis").replace(
                "ima", "img"))  # fmt: skip
            rows = [(n, name) for n, name in rows if name != "C3"]
        data = store.subject(subject)
        assert name_of.loc[data.trials["nsd_id"]].tolist() == [name for _, name in rows]
        flat = volume[release.mask[subject]].T[[n for n, _ in rows]] / 300
        training = flat[(parts.loc[data.trials["nsd_id"]] == "train").to_numpy()]
        np.testing.assert_allclose(data.betas, (flat - training.mean(0)) / training.std(0), atol=2e-2)
        mm = (release.mni[subject][release.mask[subject]] - [91, 127, 73]) * [-1, 1, 1]
        np.testing.assert_allclose(data.voxels[["x_mm", "y_mm", "z_mm"]], mm, atol=1e-3)
    assert all(store.captions[n] == (f"a caption of {name}",) for n, name in name_of.items())


def write_design(release, **content):
    path = release.root / "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    scipy.io.savemat(path, content)


def write_run(release, run, table):
    table.to_csv(
        release.root / f"nsddata/bdata/nsdimagery/nsdimagery_subj01_{run}.tsv", sep="\t", index=False
    )


IMAGERY, SYNTHETIC = ["--imagery", "seen"], ["--synthetic"]
BROKEN = {
    "two experiments": (lambda r: None, [*IMAGERY, *SYNTHETIC], "expected one of --imagery and --synthetic"),
    "sessions": (lambda r: None, [*IMAGERY, "--sessions", "1"], "--sessions: expected it for NSD itself only"),
    "another subject": (lambda r: None, [*IMAGERY, "--subjects", "subj03"], "expected betas_nsdimagery.hdf5"),
    "another version": (lambda r: None, [*SYNTHETIC, "--beta-version", "b2"], "nsdsyntheticbetas_fithrf: expected"),
    "COCO's annotations": (
        lambda r: (r.root / "captions.json").write_text('{"annotations": [{"image_id": 1, "caption": "a"}]}'),
        SYNTHETIC, "these images are not COCO's"),
    "captions of others": (
        lambda r: (r.root / "captions.json").write_text('{"x": ["a"]}'), IMAGERY, "such as `A"),
    "captions of two images": (
        lambda r: (r.root / "captions.json").write_text('{"A1": ["a"], "A2": ["b"]}'), IMAGERY, "at least 3 images"),
    "a missing run": (
        lambda r: (r.root / "nsddata/bdata/nsdimagery/nsdimagery_subj01_attB.tsv").unlink(), IMAGERY, "attB.tsv"),
    "a run without conditions": (
        lambda r: write_run(r, "imgA_2", pd.DataFrame({"CONDITION": ["A1", "", "A2"]})), IMAGERY,
        "imgA_2.tsv: expected a CONDITION"),
    "a run too short": (
        lambda r: write_run(r, "imgC_2", pd.DataFrame({"CONDITION": ["C1"]})), IMAGERY,
        r"betas_nsdimagery.hdf5: expected the shape \(85,"),
    "numbers from 0": (
        lambda r: write_design(r, masterordering=np.arange(9.0), stimpattern=np.ones((1, 3, 3))), SYNTHETIC,
        "between 1 and 284, found 0 to 8"),
    "too few numbers": (
        lambda r: write_design(r, masterordering=np.arange(1.0, 9), stimpattern=np.ones((1, 3, 3))), SYNTHETIC,
        "expected 9 trials .* found 8"),
    "no design": (lambda r: write_design(r, masterordering=np.arange(1.0, 9)), SYNTHETIC, "variable `stimpattern`"),
    "floats": (
        lambda r: nib.save(nib.Nifti1Image(np.ones((2, 2, 2, 36)), np.eye(4)), swapped(r)), SYNTHETIC,
        r"betas_nsdsynthetic.nii.gz: expected the shape"),
}  # fmt: skip


def swapped(release):
    path = file_of(release, "subj01", "synthetic")
    path.unlink()
    return path.with_name("betas_nsdsynthetic.nii.gz")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_experiment_is_one_line(made, release, tmp_path, capsys, name):
    change, options, fragment = BROKEN[name]
    change(release)
    words = [release.root, tmp_path / "store", "--captions", release.root / "captions.json", *options]
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "nsd", *map(str, words)])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(fragment, err), err
    assert not (tmp_path / "store").exists()
