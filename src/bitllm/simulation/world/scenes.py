"""Scenes: what is on a simulated picture, drawn from priors that make some things likelier than others."""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from bitllm.simulation.parameters import stream
from bitllm.simulation.world import vocabulary as words


@dataclass(frozen=True)
class Scene:
    """One scene, in words."""

    object: str
    count: int
    """1, 2, 3 or 4 (which stands for several)."""
    colour: str
    """Colour of the object, or ``""`` when it has its usual one and nobody would mention it."""
    action: str
    partner: str
    """The second object, or ``""``."""
    relation: str
    """How the object stands to its partner, or ``""``."""
    setting: str
    jitter: tuple[float, float]
    """Where the object is, left to right and near to far, each in -1 to 1."""

    @property
    def category(self) -> str:
        """Category of the main object."""
        return words.THINGS[self.object].category


def make_scenes(n_scenes: int, *, seed: int) -> list[Scene]:
    """Draw scenes; the same number and seed give the same scenes."""
    rng = stream(seed, "scenes")
    weights = np.array([words.HABITS[category].weight for category in words.CATEGORIES])
    categories = rng.choice(words.CATEGORIES, n_scenes, p=weights / weights.sum())
    return [_make_scene(str(category), rng) for category in categories]


def _make_scene(category: str, rng: np.random.Generator) -> Scene:
    habits = words.HABITS[category]
    thing = _object_of(category, rng)
    partner = relation = ""
    if rng.random() < 0.7:
        partner_category = _ranked(habits.partners.split(), rng)
        partner = _object_of(partner_category, rng, other_than=thing)
        relation = _relation(category, partner_category, rng)
    return Scene(
        object=thing,
        count=int(rng.choice([1, 2, 3, 4], p=[0.6, 0.18, 0.11, 0.11])),
        colour=str(rng.choice(habits.colours.split())) if rng.random() < 0.7 else "",
        action=_ranked(words.OWN_ACTIONS.get(thing, habits.actions).split(), rng),
        partner=partner,
        relation=relation,
        setting=_ranked(_settings(thing, habits, rng), rng),
        jitter=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
    )


def _object_of(category: str, rng: np.random.Generator, other_than: str = "") -> str:
    return str(rng.choice([name for name in words.OBJECTS
                           if words.THINGS[name].category == category and name != other_than]))  # fmt: skip


def _settings(thing: str, habits: words.Habits, rng: np.random.Generator) -> list[str]:
    """Usual settings; one scene in twelve is anywhere, so that the object does not give the place away."""
    if rng.random() < 1 / 12:
        return [str(rng.choice(list(words.SETTINGS)))]
    return words.OWN_SETTINGS.get(thing, habits.settings).split()


def _relation(category: str, partner_category: str, rng: np.random.Generator) -> str:
    if partner_category == "furniture":
        return _ranked(["on", "next to", "under", "in front of"], rng)
    if category in {"food", "kitchenware", "reading", "electronics"}:
        return _ranked(["next to", "on", "in front of", "behind"], rng)
    return _ranked(["next to", "in front of", "behind", "on", "under"], rng)


def _ranked(options: list[str], rng: np.random.Generator) -> str:
    """One of the options; the first is the likeliest, the last about a third as likely."""
    weights = np.linspace(1.5, 0.5, len(options))
    return str(rng.choice(options, p=weights / weights.sum()))


FEATURE_GROUPS: dict[str, tuple[str, ...]] = {
    "category": words.CATEGORIES,
    "object": words.OBJECTS,
    "partner_category": words.CATEGORIES,
    "partner": words.OBJECTS,
    "setting": tuple(words.SETTINGS),
    "indoor": ("indoor",),
    "action": tuple(words.ACTIONS),
    "colour": tuple(words.COLOURS),
    "count": ("1", "2", "3", "4"),
    "relation": tuple(words.RELATIONS),
    "face": ("face",),
    "body": ("body",),
    "words": ("words",),
    "food": ("food",),
}
"""What higher areas can be tuned to: groups of features, each feature 0 to 1 before it is centred."""

FEATURES: tuple[tuple[str, str], ...] = tuple(
    (group, value) for group, values in FEATURE_GROUPS.items() for value in values
)


def scene_features(scenes: list[Scene]) -> Float[np.ndarray, "scenes features"]:
    """What each scene holds, feature by feature in the order of ``FEATURES``, before centring.

    A second object counts for half in the features that both objects share (face, body, words, food).
    """
    column = {feature: index for index, feature in enumerate(FEATURES)}
    values = np.zeros((len(scenes), len(FEATURES)))
    for row, scene in enumerate(scenes):
        for feature, value in _present(scene).items():
            values[row, column[feature]] = value
    return values


def _present(scene: Scene) -> dict[tuple[str, str], float]:
    present: dict[tuple[str, str], float] = {
        ("category", scene.category): 1.0,
        ("object", scene.object): 1.0,
        ("setting", scene.setting): 1.0,
        ("indoor", "indoor"): float(scene.setting in words.INDOOR),
        ("action", scene.action): 1.0,
        ("count", str(scene.count)): 1.0,
    }
    if scene.colour:
        present["colour", scene.colour] = 1.0
    if scene.partner:
        present["partner", scene.partner] = 1.0
        present["partner_category", words.THINGS[scene.partner].category] = 1.0
        present["relation", scene.relation] = 1.0
    special = {"face": {"people": 1.0, "animals": 0.3}, "body": {"people": 1.0, "animals": 0.6},
               "words": {"reading": 1.0}, "food": {"food": 1.0}}  # fmt: skip
    for name, by_category in special.items():
        own = by_category.get(scene.category, 0.0)
        other = by_category.get(words.THINGS[scene.partner].category, 0.0) if scene.partner else 0.0
        present[name, name] = max(own, other / 2)
    return present


def scene_table(scenes: list[Scene]) -> pd.DataFrame:
    """The scenes as a table, one row per image, indexed by ``nsd_id`` (0-based)."""
    table = pd.DataFrame([asdict(scene) | {"category": scene.category} for scene in scenes])
    table[["x", "depth"]] = table.pop("jitter").tolist()
    table.index.name = "nsd_id"
    return table
