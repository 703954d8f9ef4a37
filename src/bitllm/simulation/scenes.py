"""Scenes: the content of simulated images, drawn from priors with typical combinations, and their captions.

Five people describe each scene in their own words; none mentions everything.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from bitllm.simulation import vocabulary as words
from bitllm.simulation.parameters import stream


@dataclass(frozen=True)
class Scene:
    """One scene, in words."""

    object: str
    count: int
    """1, 2, 3 or 4 (which means several)."""
    colour: str
    """Color of the object, or ``""`` for its usual color, which nobody would mention."""
    action: str
    partner: str
    """The second object, or ``""``."""
    relation: str
    """Relation of the object to its partner, or ``""``."""
    setting: str
    jitter: tuple[float, float]
    """Position of the object, left to right and near to far, each in -1 to 1."""

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
    """Usual settings; in one of twelve scenes any setting, so that the object does not determine the place."""
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
    """One of the options; the first is the most likely, the last about a third as likely."""
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
"""Groups of features to which higher areas can be tuned; each feature is 0 to 1 before centering."""

FEATURES: tuple[tuple[str, str], ...] = tuple(
    (group, value) for group, values in FEATURE_GROUPS.items() for value in values
)


def scene_features(scenes: list[Scene]) -> Float[np.ndarray, "scenes features"]:
    """Features of each scene, in the order of ``FEATURES``, before centering.

    In features that both objects have (face, body, words, food) the second object has weight 0.5.
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
    table = pd.DataFrame([vars(scene) | {"category": scene.category} for scene in scenes])
    table[["x", "depth"]] = table.pop("jitter").tolist()
    table.index.name = "nsd_id"
    return table


CAPTIONS_PER_IMAGE = 5

_WITH_PARTNER = (
    "{np} {action} {rel} {partner} {setting}",
    "{np} {action} {rel} {partner}",
    "{np} {rel} {partner} {setting}",
    "there {be} {np} {rel} {partner} {setting}",
    "{partner} {inverse} {np} {action} {setting}",
    "a photo of {np} and {partner} {setting}",
    "{np} {be} {action} {rel} {partner}",
    "{np} with {partner} {setting}",
)
_ALONE = (
    "{np} {action} {setting}",
    "{np} that {be} {action} {setting}",
    "there {be} {np} {action} {setting}",
    "a picture of {np} {setting}",
    "{np} {be} {action} {setting}",
    "a close view of {np} {action} {setting}",
)


def captions_of(scenes: list[Scene], *, seed: int) -> list[tuple[str, ...]]:
    """Five different captions of each scene, capitalized and with a period, like COCO's.

    Every caption names the main object (with one of its names). Color, second object, action and setting are each
    sometimes omitted, as people do.
    """
    return [_captions_of_one(scene, stream(seed, "captions", index)) for index, scene in enumerate(scenes)]


def _captions_of_one(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    captions: dict[str, None] = {}
    while len(captions) < CAPTIONS_PER_IMAGE:
        text = " ".join(_describe(scene, rng).split())
        captions[text[0].upper() + text[1:] + "."] = None
    return tuple(captions)


def _describe(scene: Scene, rng: np.random.Generator) -> str:
    with_partner = bool(scene.partner) and rng.random() < 0.75
    templates = _WITH_PARTNER if with_partner else _ALONE
    template = templates[rng.integers(len(templates))]
    keep_setting = rng.random() < (0.7 if with_partner else 0.9)
    values = {
        "np": _noun_phrase(scene, rng),
        "be": "is" if scene.count == 1 else "are",
        "action": _wording(words.ACTIONS[scene.action], rng)
        if "that" in template or rng.random() < 0.8
        else "",
        "setting": _wording(words.SETTINGS[scene.setting], rng) if keep_setting else "",
    }
    if with_partner:
        values["partner"] = _with_article(_name(scene.partner, 1, rng))
        values["rel"] = _wording(words.RELATIONS[scene.relation], rng)
        values["inverse"] = _wording(words.RELATIONS[words.INVERSE[scene.relation]], rng)
    return template.format(**values)


def _noun_phrase(scene: Scene, rng: np.random.Generator) -> str:
    colour = scene.colour if scene.colour and rng.random() < 0.75 else ""
    name = _name(scene.object, scene.count, rng)
    worn = scene.category == "people"
    noun = f"{name} in {colour}" if worn and colour else f"{colour} {name}".strip()
    if scene.count == 1:
        return _with_article(noun)
    return f"{_wording(words.COUNTS[scene.count], rng)} {noun}"


def _name(thing: str, count: int, rng: np.random.Generator) -> str:
    names = words.THINGS[thing].names
    singular, plural = names[0] if len(names) == 1 or rng.random() < 0.7 else names[1]
    return singular if count == 1 else plural


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _wording(options: tuple[str, str], rng: np.random.Generator) -> str:
    """The usual wording in two of three cases, else the other."""
    return options[0] if rng.random() < 0.67 else options[1]
