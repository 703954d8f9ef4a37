"""Captions: five people describe one scene in their own words, and none of them mentions everything."""

import numpy as np

from bitllm.simulation.parameters import stream
from bitllm.simulation.world import vocabulary as words
from bitllm.simulation.world.scenes import Scene

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
    """Five different captions of each scene, capitalised and with a full stop, as COCO's are.

    Every caption names the main object (by one of its names); colour, second object, action and place are
    each left out now and then, as people do.
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
    """The usual wording two times in three, else the other."""
    return options[0] if rng.random() < 0.67 else options[1]
