"""Vertices of fsaverage, from files that the tests write with nibabel alone."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bitllm.cli import main
from bitllm.data.nsd.layout import NsdRelease
from bitllm.data.nsd.surface import read_surface_betas, read_vertex_masks, read_vertices
from bitllm.data.prepare import prepare_nsd
from bitllm.data.store import open_store
from bitllm.errors import DataError

BETAS = "fsaverage/betas_fithrf_GLMdenoise_RR"
SIDES = {"lh": 9, "rh": 7}
N_NATIVE, N_TRIALS = 5, 12


def write_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.MGHImage(values.reshape(len(values), 1, 1, *values.shape[1:]), np.eye(4)), path)


@dataclass
class Surface:
    """The release with fsaverage beside the volumes, and what was written."""

    root: Path
    places: dict[str, np.ndarray]
    roi: dict[str, np.ndarray]
    native: dict[str, np.ndarray]
    vertex: dict[str, np.ndarray]
    betas: dict[tuple[str, int, str], np.ndarray]

    def session(self, side: str, session: int = 1, subject: str = "subj01") -> Path:
        return self.root / f"nsddata_betas/ppdata/{subject}/{BETAS}/{side}.betas_session{session:02d}.mgh"

    def label(self, owner: str, side: str, atlas: str) -> Path:
        return self.root / f"nsddata/freesurfer/{owner}/label/{side}.{atlas}.mgz"

    def transform(self, side: str) -> Path:
        return self.root / f"nsddata/ppdata/subj01/transforms/{side}.white-to-fsaverage.mgz"

    def white(self, side: str) -> Path:
        return self.root / f"nsddata/freesurfer/fsaverage/surf/{side}.white"


@pytest.fixture
def surface(release) -> Surface:
    rng = np.random.default_rng(3)
    made = Surface(release.root, {}, {}, {}, {}, {})
    for side, n in SIDES.items():
        made.places[side] = rng.normal(0, 40, (n, 3)).astype(np.float32)
        made.places[side][:, 0] = np.abs(made.places[side][:, 0]) * (-1 if side == "lh" else 1)
        made.white(side).parent.mkdir(parents=True, exist_ok=True)
        nib.freesurfer.write_geometry(made.white(side), made.places[side], np.array([[0, 1, 2]]))
        made.roi[side] = (np.arange(n) % 3 > 0).astype(np.int32)
        write_map(made.label("fsaverage", side, "nsdgeneral"), made.roi[side])
        write_map(made.label("fsaverage", side, "streams"), np.arange(n, dtype=np.int32) % 3)
        write_map(made.label("fsaverage", side, "prfangle"), rng.random(n).astype(np.float32))
        made.native[side] = np.array([0, 2, -1, 1, 3], np.int32)
        made.vertex[side] = rng.integers(1, N_NATIVE + 1, n).astype(np.int32)
        for subject in ("subj01", "subj02"):
            _write_subject(made, subject, side, rng)
    return made


def _write_subject(made: Surface, subject: str, side: str, rng: np.random.Generator) -> None:
    n = SIDES[side]
    write_map(made.label(subject, side, "prf-visualrois"), made.native[side])
    write_map(
        made.root / f"nsddata/ppdata/{subject}/transforms/{side}.white-to-fsaverage.mgz", made.vertex[side]
    )
    ncsnr = np.where(np.arange(n) == 1, np.nan, 0.5).astype(np.float32)
    write_map(made.session(side, 1, subject).with_name(f"{side}.ncsnr.mgh"), ncsnr)
    for session in (1, 2, 3):
        betas = rng.normal(1, 2, (n, N_TRIALS)).astype(np.float32)
        betas[1] = np.nan if session == 1 else betas[1]  # out of view in the first session
        betas[2] = np.nan  # and in all
        made.betas[subject, session, side] = betas
        write_map(made.session(side, session, subject), betas)


def released(made: Surface) -> NsdRelease:
    return NsdRelease(made.root, space="fsaverage")


def test_files_of_both_hemispheres_are_found_and_atlases_are_those_with_names(surface):
    release = released(surface)
    assert release.subjects() == ("subj01", "subj02")
    names = [[path.name for path in both] for both in release.surface_session_files("subj01")]
    assert names == [[f"{side}.betas_session0{n}.mgh" for side in SIDES] for n in (1, 2, 3)]
    assert release.surface_atlases("subj01", besides="nsdgeneral") == ("prf-visualrois", "streams")


def test_vertices_come_left_first_with_places_labels_and_ceilings(surface):
    release = released(surface)
    masks = read_vertex_masks(release, "subj01", "nsdgeneral")
    vertices, names = read_vertices(release, "subj01", masks, ("prf-visualrois", "streams"))
    expected = [(n, side) for side in (0, 1) for n in range((9, 7)[side]) if n % 3]
    assert list(zip(vertices["i"], vertices["j"], strict=True)) == expected
    for row, (n, number) in zip(vertices.to_dict("records"), expected, strict=True):
        side = ("lh", "rh")[number]
        assert [row[c] for c in ("x_mm", "y_mm", "z_mm")] == pytest.approx(surface.places[side][n].tolist())
        assert row["streams"] == n % 3
        assert row["prf-visualrois"] == max(0, surface.native[side][surface.vertex[side][n] - 1])
        assert row["ncsnr"] == (0 if n == 1 else 0.5)
    assert names["streams"] == {1: "early", 2: "ventral"}


def test_a_union_of_regions_joins_common_and_own_labels(surface):
    masks = read_vertex_masks(released(surface), "subj01", "nsdgeneral+prf-visualrois")
    for side, mask in zip(SIDES, masks, strict=True):
        own = surface.native[side][surface.vertex[side] - 1] > 0
        np.testing.assert_array_equal(mask, own | (surface.roi[side] > 0))


def test_betas_are_the_files_percent_and_nan_stays(surface):
    masks = tuple(surface.roi[side] > 0 for side in SIDES)
    files = tuple(surface.session(side) for side in SIDES)
    found = read_surface_betas(files, masks, N_TRIALS)
    both = [surface.betas["subj01", 1, side][mask] for side, mask in zip(SIDES, masks, strict=True)]
    np.testing.assert_array_equal(found, np.concatenate(both).T)


def test_the_store_has_z_scores_of_a_loop_zeros_for_nan_and_the_share_in_view(surface, tmp_path):
    settings = {"space": "fsaverage", "validation_fraction": 0.3, "seed": 2}
    prepare_nsd(surface.root, tmp_path / "store", workers=2, **settings)
    store = open_store(tmp_path / "store")
    assert (store.manifest.space, store.manifest.roi) == ("fsaverage", "nsdgeneral")
    for subject in store.subjects:
        data = store.subject(subject)
        part = store.stimuli["part"].loc[data.trials["nsd_id"]].to_numpy()
        for column, (n, number) in enumerate(zip(data.voxels["i"], data.voxels["j"], strict=True)):
            for session in (1, 2, 3):
                rows = np.flatnonzero(data.trials["session"] == session)
                values = surface.betas[subject, session, ("lh", "rh")[number]][n].astype(float)
                train = values[part[rows] == "train"]
                expected = (values - train.mean()) / train.std() if np.isfinite(train).all() else 0 * rows
                np.testing.assert_allclose(data.betas[rows, column], expected, rtol=2**-10, atol=1e-3)
        share = np.where(data.voxels["i"] == 1, 2 / 3, np.where(data.voxels["i"] == 2, 0, 1))
        np.testing.assert_allclose(data.voxels["valid"], share)
    prepare_nsd(surface.root, tmp_path / "two", n_sessions=2, subjects=["subj02"], **settings)
    data, two = store.subject("subj02"), open_store(tmp_path / "two").subject("subj02")
    np.testing.assert_array_equal(two.betas, data.betas[: 2 * N_TRIALS])


def test_labels_and_vertices_saved_again_as_floats_are_rounded_and_others_refused(surface):
    release = released(surface)
    masks = read_vertex_masks(release, "subj01", "nsdgeneral")
    expected, _ = read_vertices(release, "subj01", masks, ("prf-visualrois", "streams"))
    labels = np.arange(9) % 3
    write_map(surface.label("fsaverage", "lh", "streams"), (labels - 1e-4).astype(np.float32))
    write_map(surface.transform("lh"), (surface.vertex["lh"] - 1e-4).astype(np.float32))
    found, _ = read_vertices(release, "subj01", masks, ("prf-visualrois", "streams"))
    assert found.equals(expected)
    write_map(surface.transform("lh"), (surface.vertex["lh"] - 0.5).astype(np.float32))
    with pytest.raises(DataError, match=r"lh.white-to-fsaverage.mgz: expected .*\.5 "):
        read_vertices(release, "subj01", masks, ("prf-visualrois",))


def cut(path: Path, kept: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


BROKEN = {
    "a hemisphere's session": (lambda s: s.session("rh", 3).unlink(), "found 3 of lh and 2 of rh"),
    "session in the middle": (
        lambda s: s.session("lh", 2).unlink(),
        "no file of session 2; download lh.betas_session02.mgh",
    ),
    "truncated": (
        lambda s: cut(s.session("lh")),
        "lh.betas_session01.mgh: expected a session of betas as MGH",
    ),
    "truncated header": (lambda s: cut(s.session("lh"), 0.05), "expected a session of betas as MGH"),
    "other hemisphere": (
        lambda s: s.session("rh").write_bytes(s.session("lh").read_bytes()),
        "rh.betas_session01.mgh: expected the shape (7, 1, 1, 12)",
    ),
    "integers": (
        lambda s: write_map(s.session("lh"), np.ones((9, N_TRIALS), np.int16)),
        "expected floats in percent signal change, found >i2",
    ),
    "NaN in some trials": (
        lambda s: write_map(s.session("lh"), np.where(np.eye(9, N_TRIALS) > 0, np.nan, 1).astype(np.float32)),
        "found NaN or infinity in some trials",
    ),
    "swapped surfaces": (
        lambda s: [s.white("lh").rename(s.white("x")), s.white("rh").rename(s.white("lh"))],
        "lh.white: expected fsaverage's white surface",
    ),
    "no surface": (lambda s: s.white("lh").unlink(), "lh.white: expected fsaverage's white surface"),
    "surface cut off": (lambda s: cut(s.white("rh")), "rh.white: expected fsaverage's white surface"),
    "no region": (
        lambda s: s.label("fsaverage", "rh", "nsdgeneral").unlink(),
        "rh.nsdgeneral.mgz: expected the labels `nsdgeneral`",
    ),
    "empty region": (
        lambda s: [
            write_map(s.label("fsaverage", h, "nsdgeneral"), np.zeros(n, "i4")) for h, n in SIDES.items()
        ],
        "expected vertices with a label above 0",
    ),
    "region of a native surface": (
        lambda s: write_map(s.label("fsaverage", "lh", "nsdgeneral"), np.ones(5, np.int32)),
        "lh.nsdgeneral.mgz: expected 9 vertices",
    ),
    "no way to fsaverage": (
        lambda s: s.transform("lh").unlink(),
        "lh.white-to-fsaverage.mgz: expected the map",
    ),
    "0-based way": (
        lambda s: write_map(s.transform("lh"), np.arange(9, dtype=np.int32) % 5),
        "expected vertices between 1 and 5",
    ),
    "label without a name": (
        lambda s: write_map(s.label("fsaverage", "lh", "streams"), np.full(9, 7, np.int32)),
        "streams.mgz.ctab: expected a name for the label 7",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_surface_is_named_in_one_line(surface, tmp_path, capsys, name):
    damage, message = BROKEN[name]
    damage(surface)
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "nsd", str(surface.root), str(tmp_path / "out/store"), "--space", "fsaverage"])
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and "; " in said
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_unknown_space_names_the_valid_ones(tmp_path):
    with pytest.raises(DataError, match="expected a space of NSD's betas, found `fsaverage5`; did you mean"):
        NsdRelease(tmp_path, space="fsaverage5")
