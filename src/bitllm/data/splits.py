"""Which subjects and images a result may learn from, choose by and be tested on."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitllm.config import nearest
from bitllm.data.spaces import is_subjects_own
from bitllm.data.store import Store
from bitllm.errors import SplitError
from bitllm.files import read_json, sha256_of_json, write_json

PRESETS = ("poster", "develop")

WITHIN_SUBJECT = "within-subject"
"""The name with which a split may test the subjects that it trains on, with images that nobody trains on."""

_SUBJECTS = ("train_subjects", "test_subjects")
_IMAGES = ("train_images", "validation_images", "test_images")
_PARTS_ALLOWED = {
    "train_images": ("train",),
    "validation_images": ("validation",),
    "test_images": ("test", "validation"),  # `develop` is tested on validation images
}
_PARTS_UNSEEN = {
    "training": ("validation", "test"),
    "across-sessions": ("validation", "test"),
    "not-shared": ("test",),
    "session": (),
}
"""Parts whose trials the z-scores' statistics did not see, by the store's ``statistics``."""


@dataclass(frozen=True)
class Split:
    """Subjects and images (``nsd_id``) by their use, and the checksum of all of it."""

    name: str
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]
    train_images: frozenset[int]
    validation_images: frozenset[int]
    test_images: frozenset[int]
    sha256: str


def make_split(store: Store, preset: str) -> Split:
    """A split of a store by subject and by image at once.

    Parameters
    ----------
    store
        An open store.
    preset
        ``poster``: all subjects but the last are for training, the last is the test subject, and NSD's shared
        images are the test images. ``develop``: all but the last two are for training, the last but one is
        tested, on its validation images; the last subject and the shared images stay sealed.

    References
    ----------
    The poster's section on data: subjects 1 to 7 for training, subject 8 for testing.
    """
    if preset not in PRESETS:
        raise SplitError(f"split: expected a preset, found `{preset}`; {nearest(preset, list(PRESETS))}")
    n_held_out = PRESETS.index(preset) + 1
    if len(store.subjects) <= n_held_out:
        raise SplitError(
            f"{store.path}: expected at least {n_held_out + 1} subjects for the split `{preset}`, found "
            f"{len(store.subjects)}; prepare more subjects"
        )
    train_subjects = store.subjects[:-n_held_out]
    test_subjects = (store.subjects[-n_held_out],)
    test_part = "test" if preset == "poster" else "validation"
    return _new_split(
        name=preset,
        train_subjects=train_subjects,
        test_subjects=test_subjects,
        train_images=images_seen(store, train_subjects, "train"),
        validation_images=images_seen(store, train_subjects, "validation"),
        test_images=images_seen(store, test_subjects, test_part),
    )


def save_split(split: Split, path: Path) -> None:
    """Write a split as JSON, with its checksum."""
    write_json(path, {**_content(split), "sha256": split.sha256})


def load_split(path: Path) -> Split:
    """Read a split that `save_split` wrote."""
    content = read_json(path)
    keys = ("name", *_SUBJECTS, *_IMAGES, "sha256")
    if not isinstance(content, dict) or set(content) != set(keys):
        raise SplitError(
            f"{path}: expected a split with the keys {', '.join(keys)}, found others; make it again"
        )
    written = content.pop("sha256")
    if written != sha256_of_json(content):
        raise SplitError(
            f"{path}: expected the content whose checksum is {str(written)[:12]}, found another "
            f"({sha256_of_json(content)[:12]}); the file was changed by hand or damaged, make the split again"
        )
    subjects = {key: tuple(content[key]) for key in _SUBJECTS}
    images = {key: frozenset(content[key]) for key in _IMAGES}
    return _new_split(name=content["name"], **subjects, **images)


def check_split(store: Store, split: Split) -> None:
    """Refuse a split that leaks, or that is not of this store."""
    _check_subjects(store, split)
    for one, other in (("train_images", "test_images"), ("train_images", "validation_images")):
        both = getattr(split, one) & getattr(split, other)
        if both:
            raise SplitError(
                f"split `{split.name}`: expected {one} and {other} to be disjoint, found nsd_id {min(both)} "
                f"in both ({len(both)} images); make the split again with `make_split`"
            )
    for use in _IMAGES:
        _check_parts(store, split, use)
    if split.sha256 != sha256_of_json(_content(split)):
        raise SplitError(
            f"split `{split.name}`: expected the checksum {sha256_of_json(_content(split))[:12]} of its "
            f"content, found {split.sha256[:12]}; make the split again with `make_split`"
        )


def _check_subjects(store: Store, split: Split) -> None:
    unknown = {*split.train_subjects, *split.test_subjects} - set(store.subjects)
    if unknown:
        raise SplitError(
            f"split `{split.name}`: expected subjects of {store.path}, found {min(unknown)}; make the split "
            "again for this store"
        )
    everyone = {*split.train_subjects, *split.test_subjects}
    if len(everyone) > 1 and is_subjects_own(store.manifest.space):
        raise SplitError(
            f"{store.path}: expected coordinates in a space common to {', '.join(sorted(everyone))}, found each "
            f"subject's own (`{store.manifest.space}`): one encoder reads the places of all; prepare the store with "
            "coordinates in MNI, or train and test on one subject (`--preset within-subject`)"
        )
    both = set(split.train_subjects) & set(split.test_subjects)
    if both and not split.name.startswith(WITHIN_SUBJECT):
        raise SplitError(
            f"split `{split.name}`: expected train and test subjects to be disjoint, found {min(both)} in "
            "both; make the split again with `make_split`"
        )


def _check_parts(store: Store, split: Split, use: str) -> None:
    images = np.array(sorted(getattr(split, use)), dtype=np.int64)
    part = store.stimuli["part"].reindex(images).to_numpy(dtype=object, na_value="unknown")
    for nsd_id, found in zip(images.tolist(), part.tolist(), strict=True):
        if found == "unknown":
            raise SplitError(
                f"split `{split.name}`: expected images of {store.path}, found nsd_id {nsd_id} in {use}; "
                "make the split again for this store"
            )
        if found not in _PARTS_ALLOWED[use]:
            raise SplitError(
                f"split `{split.name}`: expected {use} of the part {' or '.join(_PARTS_ALLOWED[use])}, found "
                f"nsd_id {nsd_id} of the part {found} of {store.path}; make the split again with `make_split`"
            )


def images_seen(store: Store, subjects: tuple[str, ...], part: str) -> frozenset[int]:
    """The images of a part of the store that at least one of these subjects saw."""
    of_part = store.stimuli.index[store.stimuli["part"] == part]
    seen = np.concatenate([store.subject(subject).trials["nsd_id"].to_numpy() for subject in subjects])
    return frozenset(np.intersect1d(of_part, seen).tolist())


def images_in_statistics(store: Store, split: Split) -> frozenset[int]:
    """The test images of a split whose trials the statistics of the store's z-scores saw.

    None where the betas were not z-scored, or as they were delivered, when nobody can say.
    """
    unseen = _PARTS_UNSEEN.get(store.manifest.statistics)
    if unseen is None:
        return frozenset()
    part = store.stimuli["part"].to_dict()
    return frozenset(image for image in split.test_images if image in part and part[image] not in unseen)


def with_checksum(split: Split) -> Split:
    """The same split with the checksum of its content."""
    return replace(split, sha256=sha256_of_json(_content(split)))


def _new_split(**fields: Any) -> Split:
    return with_checksum(Split(**fields, sha256=""))


def _content(split: Split) -> dict[str, Any]:
    content = {key: value for key, value in asdict(split).items() if key != "sha256"}
    return {key: value if isinstance(value, str) else sorted(value) for key, value in content.items()}
