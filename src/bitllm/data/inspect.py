"""Contents of a store: a dictionary for programs, tables for people."""

import io
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bitllm.data.store.read import SUBJECT_FILES, Store, sessions_of_zeros

_UNKNOWN = "–"


def inspect_store(store: Store) -> dict[str, Any]:
    """Summary of a store, as JSON values.

    Returns
    -------
    dict
        ``path``, ``source``, ``beta_version``, ``roi``, ``normalization``, ``license``, ``citation``; ``subjects``
        (sessions with names, trials, voxels, sessions with only zeros, voxels out of view in some session, images by
        part, mean noise ceiling in percent for one trial and for the mean of three (``None`` if unknown), voxels of
        each label, bytes, checksums); ``images`` by part; ``captions`` (number; minimum, mean and maximum per image);
        ``objects`` (number, number of crowd regions, categories, images with at least one; ``None`` if the store has
        no objects); ``tasks`` (number of exchanges of each task); ``bytes`` and ``sha256`` of the shared files.
    """
    manifest = store.manifest
    per_image = np.array([len(captions) for captions in store.captions.values()])
    return {
        "path": str(store.path),
        "version": manifest.version,
        "source": manifest.source,
        "simulation": manifest.simulation,
        "beta_version": manifest.beta_version,
        "space": manifest.space,
        "roi": manifest.roi,
        "statistics": manifest.statistics,
        "normalization": manifest.normalization,
        "validation_fraction": manifest.validation_fraction,
        "seed": manifest.seed,
        "license": manifest.license,
        "citation": manifest.citation,
        "subjects": {subject: _inspect_subject(store, subject) for subject in store.subjects},
        "images": _count(store.stimuli["part"].to_numpy()),
        "captions": {
            "n": int(per_image.sum()),
            "fewest": int(per_image.min()),
            "mean": float(per_image.mean()),
            "most": int(per_image.max()),
        },
        "objects": _inspect_objects(store) if store.has_objects else None,
        "tasks": store.tasks["task"].value_counts().sort_index().to_dict() if store.has_tasks else {},
        "bytes": {file: (store.path / file).stat().st_size for file in manifest.sha256},
        "sha256": dict(manifest.sha256),
    }


def render_inspection(inspection: dict[str, Any]) -> RenderableType:
    """Tables of an inspection: origin of the store, its subjects, voxels of every label."""
    return Group(_overview(inspection), _subject_table(inspection), _label_table(inspection))


def inspect_text(inspection: dict[str, Any], *, width: int = 110) -> str:
    """Tables of an inspection as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None, record=True)
    console.print(render_inspection(inspection))
    return console.export_text()


def noise_ceiling_percent(ncsnr: Float[np.ndarray, " voxels"], n_trials: int) -> Float[np.ndarray, " voxels"]:
    """Percent of variance that a perfect model explains in the mean of ``n_trials`` (NSD Data Manual)."""
    return 100 * ncsnr**2 / (ncsnr**2 + 1 / n_trials)


def _inspect_subject(store: Store, subject: str) -> dict[str, Any]:
    data = store.subject(subject)
    record = store.manifest.subjects[subject]
    ncsnr = data.voxels["ncsnr"].to_numpy(np.float64)
    folder = store.path / "subjects" / subject
    part = store.stimuli["part"].loc[data.trials["nsd_id"].unique()]
    return {
        "n_sessions": record.n_sessions,
        "session_names": _session_names(data.trials),
        "n_trials": record.n_trials,
        "n_voxels": record.n_voxels,
        "sessions_of_zeros": sessions_of_zeros(data),
        "n_voxels_out_of_view": int((data.voxels["valid"] < 1).sum()),
        "images": _count(part.to_numpy()),
        "noise_ceiling_percent": {
            str(n_trials): float(noise_ceiling_percent(ncsnr, n_trials).mean()) if ncsnr.any() else None
            for n_trials in (1, 3)
        },
        "labels": {
            atlas: {name: int((data.voxels[atlas] == number).sum()) for number, name in names.items()}
            for atlas, names in store.atlases.items()
        },
        "bytes": sum((folder / file).stat().st_size for file in SUBJECT_FILES),
        "sha256": dict(record.sha256),
    }


def _inspect_objects(store: Store) -> dict[str, int]:
    objects = store.objects
    return {
        "n": int((~objects["is_crowd"]).sum()),
        "crowds": int(objects["is_crowd"].sum()),
        "categories": objects["category"].nunique(),
        "images": objects.index.nunique(),
    }


def _objects_text(objects: dict[str, int] | None, n_images: int) -> str:
    if objects is None:
        return "none"
    crowds = f" and {objects['crowds']:,} crowds" if objects["crowds"] else ""
    found = f"{objects['n']:,}{crowds} of {objects['categories']} categories"
    return f"{found} in {objects['images']:,} of {n_images:,} images"


def _session_names(trials: pd.DataFrame) -> dict[str, str]:
    """Name of each session by its number; empty if sessions have no names."""
    if "session_name" not in trials:
        return {}
    named = trials.drop_duplicates("session")
    return dict(zip(named["session"].astype(str), named["session_name"], strict=True))


def _count(parts: np.ndarray) -> dict[str, int]:
    return {part: int((parts == part).sum()) for part in ("train", "validation", "test")}


def _overview(inspection: dict[str, Any]) -> Table:
    captions, images = inspection["captions"], inspection["images"]
    n_bytes = sum(inspection["bytes"].values()) + sum(s["bytes"] for s in inspection["subjects"].values())
    overview = Table.grid(padding=(0, 2))
    zeros = {
        name: s["sessions_of_zeros"] for name, s in inspection["subjects"].items() if s["sessions_of_zeros"]
    }
    for name, value in (
        ("store", inspection["path"]),
        (
            "data",
            f"{inspection['source']}, betas {inspection['beta_version']} in {inspection['space']}, {inspection['roi']}",
        ),
        ("betas", inspection["normalization"]),
        ("images", ", ".join(f"{n:,} {part}" for part, n in images.items())),
        (
            "captions",
            f"{captions['n']:,}, {captions['fewest']} to {captions['most']} per image, mean "
            f"{captions['mean']:.2f}",
        ),
        ("objects", _objects_text(inspection["objects"], sum(images.values()))),
        ("questions", ", ".join(f"{n:,} {task}" for task, n in inspection["tasks"].items()) or "none"),
        ("size", f"{n_bytes / 1e6:,.1f} MB"),
        *((name, text) for name in ("license", "citation") if (text := inspection[name])),
        *(
            ("sessions", f"{name}: {', '.join(f'{n} = {label}' for n, label in s['session_names'].items())}")
            for name, s in inspection["subjects"].items()
            if s["session_names"]
        ),
        *(
            (
                "warning",
                f"{name}: all betas are 0 in session {', '.join(map(str, sessions))}; prepare it again",
            )
            for name, sessions in zeros.items()
        ),
    ):
        overview.add_row(f"[bold]{name}[/]", escape(value))
    return overview


def _subject_table(inspection: dict[str, Any]) -> Table:
    table = _table("Subjects")
    table.add_column("subject", overflow="fold")
    for heading in ("sess.", "trials", "voxels", "train", "valid.", "test", "unseen", "NC1 %", "NC3 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("sha256", overflow="fold")
    for name, subject in inspection["subjects"].items():
        counts = [
            subject["n_sessions"],
            subject["n_trials"],
            subject["n_voxels"],
            *subject["images"].values(),
            subject["n_voxels_out_of_view"],
        ]
        ceilings = [_UNKNOWN if p is None else f"{p:.1f}" for p in subject["noise_ceiling_percent"].values()]
        table.add_row(name, *(f"{n:,}" for n in counts), *ceilings, subject["sha256"]["betas.npy"][:8])
    table.caption = (
        "train, valid., test: images seen; unseen: voxels out of view in some session, 0 there; "
        f"NC1, NC3: mean noise ceiling of 1 and of 3 trials, {_UNKNOWN} where it is not known"
    )
    _keep_numbers_whole(table)
    return table


def _label_table(inspection: dict[str, Any]) -> Table:
    subjects = inspection["subjects"]
    table = _table("Voxels of every label")
    table.add_column("atlas", overflow="fold")
    table.add_column("label", overflow="fold")
    for name in subjects:
        table.add_column(name.removeprefix("subj"), justify="right", overflow="fold")
    first = next(iter(subjects.values()))
    for atlas, labels in first["labels"].items():
        seen = [label for label in labels if any(s["labels"][atlas][label] for s in subjects.values())]
        for row, label in enumerate(seen):
            counts = (f"{subject['labels'][atlas][label]:,}" for subject in subjects.values())
            table.add_row("" if row else atlas, label, *counts, end_section=label == seen[-1])
    _keep_numbers_whole(table)
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)


def _keep_numbers_whole(table: Table) -> None:
    """Give columns of numbers the width of their longest number; in narrow windows only the others are folded."""
    for column in table.columns:
        if column.justify == "right":
            column.min_width = max((len(str(cell)) for cell in column.cells), default=1)
