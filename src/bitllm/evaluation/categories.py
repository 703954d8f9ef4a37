"""Images of one category each: whether captions name it, and how far a classifier without an LLM gets.

References
----------
Haxby et al. (2001) classify patterns by their correlation with the mean pattern of each category.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bitllm.data.dataset import select_trials
from bitllm.data.splits import Split
from bitllm.data.store import Store
from bitllm.errors import DataError
from bitllm.evaluation.held_out import betas_of
from bitllm.evaluation.results import CategoryTask
from bitllm.evaluation.scoring.caption_scorer import ExtraMetric, ExtraNumbers
from bitllm.metrics.intervals import bootstrap_mean
from bitllm.metrics.objects import categories_by_image, coco_vocabulary

CATEGORY = "Category"
"""Name of the metric: percent of captions that name the category of the image and no other one."""


def one_category_each(store: Store, nsd_ids: Sequence[int]) -> dict[str, str]:
    """Category of each image, by nsd_id; empty unless each image has exactly one and there are at least two.

    Simulated scenes show several objects and have their own scores.
    """
    if not store.has_objects or store.manifest.source == "simulated":
        return {}
    shown = categories_by_image(store)
    found = {str(nsd_id): min(shown[nsd_id], default="") for nsd_id in nsd_ids}
    is_task = all(len(shown[nsd_id]) == 1 for nsd_id in nsd_ids) and len(set(found.values())) > 1
    return found if is_task else {}


def names_category(captions: Sequence[str], categories: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Whether each caption names its category and no other one of ``categories``."""
    known = frozenset(categories)
    vocabulary = coco_vocabulary(sorted(known))
    return np.array(
        [
            vocabulary.mentioned(text) & known == {category}
            for text, category in zip(captions, categories, strict=True)
        ]
    )


def category_numbers(captions: Sequence[str], categories: Sequence[str]) -> ExtraNumbers:
    """`names_category` as a metric."""
    metric = ExtraMetric(CATEGORY, _not_from_captions, lambda sums, n: 100 * float(sums[0]) / n)
    return ExtraNumbers(metric, names_category(captions, categories)[:, None].astype(np.float64))


def _not_from_captions(_: object) -> np.ndarray:
    raise AssertionError("the numbers are made by category_numbers")


@dataclass(frozen=True)
class Fold:
    """Patterns of one split with their images: training and validation trials together, and test trials."""

    train: Float[np.ndarray, "t voxels"]
    train_images: Int[np.ndarray, " t"]
    test: Float[np.ndarray, "n voxels"]
    test_images: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, store: Store, split: Split) -> "Fold":
        """Read the patterns of a split."""
        train, validation, test = (
            select_trials(store, split, part, averaged=True) for part in ("train", "validation", "test")
        )
        return cls(
            np.concatenate([betas_of(train), betas_of(validation)]),
            np.concatenate([train.nsd_id, validation.nsd_id]),
            betas_of(test),
            test.nsd_id,
        )

    def is_right(self, categories: Mapping[int, str]) -> Bool[np.ndarray, " n"]:
        """Whether the class mean with the largest correlation has the category of the test pattern."""
        labels, test_labels = (
            np.array([categories[int(image)] for image in images])
            for images in (self.train_images, self.test_images)
        )
        return nearest_class_mean(self.train, labels, self.test) == test_labels


def nearest_class_mean(
    train: Float[np.ndarray, "t voxels"],
    labels: Shaped[np.ndarray, " t"],
    test: Float[np.ndarray, "n voxels"],
) -> Shaped[np.ndarray, " n"]:
    """The class whose mean training pattern has the largest Pearson correlation with each test pattern."""
    classes = np.unique(labels)
    means = np.stack([train[labels == one].mean(axis=0) for one in classes])
    if not (means.std(axis=1) > 0).all() or not (test.std(axis=1) > 0).all():
        raise DataError(
            "classifier: expected patterns that vary over voxels, found a constant one; check the betas"
        )
    centered = [values - values.mean(axis=1, keepdims=True) for values in (test, means)]
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in centered]
    return classes[np.argmax(unit[0] @ unit[1].T, axis=1)]


def category_task(
    store: Store,
    splits: Sequence[Split],
    categories: Mapping[str, str],
    *,
    seed: int,
    n_permutations: int = 200,
) -> CategoryTask:
    """Chance, and the classifier on the trials of the splits, also with permuted categories.

    Parameters
    ----------
    splits
        Folds: each image is a test image of one of them.
    categories
        Category of each image, by nsd_id as text.
    """
    folds = [Fold.of(store, split) for split in splits]
    true = {int(image): name for image, name in categories.items()}

    def share(of_image: Mapping[int, str]) -> Float[np.ndarray, " n"]:
        return 100.0 * np.concatenate([fold.is_right(of_image) for fold in folds])

    rng = np.random.default_rng([seed, n_permutations])
    shares = []
    for _ in range(n_permutations):
        permuted = dict(true)
        for fold in folds:
            images = fold.test_images.tolist()
            permuted |= zip(
                images, [true[images[place]] for place in rng.permutation(len(images))], strict=True
            )
        shares.append(float(share(permuted).mean()))
    n = len(set(categories.values()))
    return CategoryTask(
        n_categories=n,
        chance=100 / n,
        classifier=bootstrap_mean(share(true), seed=seed),
        n_permutations=n_permutations,
        permuted_mean=float(np.mean(shares)),
        permuted_best=max(shares),
    )
