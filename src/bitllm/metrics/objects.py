"""Objects that captions mention, compared with those that the images show.

References
----------
Rohrbach et al. 2018, "Object Hallucination in Image Captioning" (CHAIR): a list of words per COCO category, and the
share of mentioned objects that the image does not show, which is 1 - precision here. Ours differs: the list is our
own, an image's objects come from the annotations alone and not from its captions too, and every category counts once
per caption.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bitllm.data.store import Store
from bitllm.metrics.tokenize import ptb_tokenize
from bitllm.simulation.vocabulary import THINGS

_COCO_WORDS: dict[str, str] = {
    "person": (
        "person/people, man/men, woman/women, boy, girl, child/children, kid, baby, toddler, infant, guy, lady, "
        "gentleman/gentlemen, teenager, teen, player, skier, snowboarder, surfer, skateboarder, skater, rider, "
        "cyclist, bicyclist, biker, motorcyclist, driver, pedestrian, passenger, officer, policeman/policemen, "
        "cop, fireman/firemen, firefighter, soldier, worker, chef, waiter, waitress, batter, pitcher, catcher, "
        "umpire, referee, spectator, athlete, jockey, cowboy, tourist, student, teacher, friend, customer, "
        "vendor, musician, swimmer, runner, hiker, shopper, farmer, businessman/businessmen, "
        "businesswoman/businesswomen, bride, groom, golfer, opponent, someone, baseball player, tennis player, "
        "soccer player, ball player"
    ),
    "bicycle": "bicycle, bike, mountain bike, tricycle",
    "car": (
        "car, automobile, van, minivan, mini van, sedan, suv, hatchback, taxi, taxi cab, cab, jeep, limousine, "
        "sports car"
    ),
    "motorcycle": "motorcycle, motorbike, motor bike, motor cycle, moped, scooter, dirt bike",
    "airplane": (
        "airplane, plane, aircraft/aircraft, aeroplane, air plane, jet, jetliner, jet liner, airliner, jumbo jet, "
        "fighter jet, biplane, seaplane, passenger jet, passenger plane, passenger airplane"
    ),
    "bus": "bus, minibus, double decker, double decker bus, school bus, passenger bus",
    "train": (
        "train, locomotive, tram, trolley car, streetcar, street car, train car, rail car, subway train, "
        "passenger train, steam engine"
    ),
    "truck": (
        "truck, pickup, pick up truck, lorry, semi, semi truck, fire truck, firetruck, fire engine, dump truck, "
        "tow truck"
    ),
    "boat": (
        "boat, ship, sailboat, sail boat, canoe, kayak, gondola, rowboat, row boat, yacht, ferry, speedboat, "
        "speed boat, motorboat, motor boat, raft, barge, dinghy"
    ),
    "traffic light": "traffic light, stop light, stoplight, traffic signal",
    "fire hydrant": "fire hydrant, hydrant",
    "stop sign": "stop sign",
    "parking meter": "parking meter",
    "bench": "bench, park bench, pew",
    "bird": (
        "bird, owl, seagull, sea gull, gull, goose/geese, duck, duckling, parrot, pigeon, dove, swan, pelican, "
        "eagle, hawk, falcon, flamingo, penguin, crow, sparrow, robin, rooster, hen, peacock, parakeet, cockatoo, "
        "woodpecker, hummingbird, heron, stork, finch, ostrich"
    ),
    "cat": "cat, kitten, kitty, feline, tabby",
    "dog": (
        "dog, puppy, pup, doggy, beagle, poodle, labrador, dachshund, terrier, hound, bulldog, pug, collie, "
        "corgi, chihuahua, retriever, golden retriever, german shepherd, sheepdog, sheep dog"
    ),
    "horse": "horse, pony, foal, mare, stallion, horseback",
    "sheep": "sheep/sheep, lamb, ewe, ram",
    "cow": "cow, cattle/cattle, ox/oxen, calf/calves, bull, heifer, longhorn",
    "elephant": "elephant",
    "bear": "bear, polar bear, grizzly, grizzly bear, brown bear, black bear, bear cub, cub",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "backpack": "backpack, back pack, knapsack, rucksack, book bag",
    "umbrella": "umbrella, parasol",
    "handbag": "handbag, hand bag, purse, shoulder bag",
    "tie": "tie, necktie, neck tie, bow tie, bowtie",
    "suitcase": "suitcase, suit case, luggage/luggage, briefcase, piece of luggage/pieces of luggage",
    "frisbee": "frisbee, flying disc, flying disk",
    "skis": "skis/ski",
    "snowboard": "snowboard, snow board",
    "sports ball": "sports ball, ball, soccer ball, tennis ball, volley ball, beach ball",
    "kite": "kite",
    "baseball bat": "baseball bat, bat",
    "baseball glove": "baseball glove, baseball mitt, mitt, catcher 's mitt",
    "skateboard": "skateboard, skate board",
    "surfboard": "surfboard, surf board, boogie board, body board, paddle board, paddleboard",
    "tennis racket": "tennis racket, racket, racquet, tennis racquet",
    "bottle": "bottle, wine bottle, water bottle, beer bottle, baby bottle",
    "wine glass": (
        "wine glass, wineglass, champagne glass, goblet, glass of wine/glasses of wine, glass of red wine/glasses "
        "of red wine, glass of white wine/glasses of white wine"
    ),
    "cup": "cup, mug, coffee cup, coffee mug, tea cup, teacup",
    "fork": "fork",
    "knife": "knife/knives, steak knife/steak knives, butter knife/butter knives",
    "spoon": "spoon",
    "bowl": "bowl, dog bowl",
    "banana": "banana",
    "apple": "apple",
    "sandwich": "sandwich, burger, hamburger, cheeseburger, panini",
    "orange": (
        "oranges/oranges, orange slice, orange half/orange halves, slice of orange/slices of orange, peeled "
        "orange, sliced orange"
    ),
    "broccoli": "broccoli/broccoli",
    "carrot": "carrot, baby carrot",
    "hot dog": "hot dog, hotdog, chili dog, corn dog",
    "pizza": "pizza",
    "donut": "donut, doughnut",
    "cake": "cake, cupcake, cup cake, cheesecake, birthday cake, wedding cake, carrot cake",
    "chair": "chair, armchair, arm chair, recliner, stool, bar stool, high chair, highchair, lawn chair, rocking chair",
    "couch": "couch, sofa, love seat, loveseat, futon, settee",
    "potted plant": (
        "potted plant, house plant, houseplant, plant in a pot/plants in pots, plant in a vase, potted flower, "
        "potted tree"
    ),
    "bed": "bed, bunk bed, mattress, bunkbed",
    "dining table": "dining table, table, dining room table, kitchen table, dinner table, picnic table, coffee table",
    "toilet": "toilet, urinal, commode, toilet bowl, toilet seat",
    "tv": (
        "tv, television, television set, tv set, tv screen, television screen, flat screen tv, flat screen "
        "television, monitor, computer monitor, computer screen"
    ),
    "laptop": "laptop, laptop computer, notebook computer, macbook, apple laptop, lap top",
    "mouse": "mouse/mice, computer mouse/computer mice",
    "remote": (
        "remote, remote control, remote controller, game controller, video game controller, wii remote, wii "
        "controller, tv remote, television remote"
    ),
    "keyboard": "keyboard, computer keyboard",
    "cell phone": "cell phone, cellphone, phone, mobile phone, smartphone, smart phone, iphone, cellular phone",
    "microwave": "microwave, microwave oven",
    "oven": "oven, stove, stovetop, stove top, stove top oven",
    "toaster": "toaster",
    "sink": "sink, wash basin, washbasin",
    "refrigerator": "refrigerator, fridge, freezer, mini fridge",
    "book": "book, novel, textbook, comic book",
    "clock": "clock, alarm clock, wall clock",
    "vase": "vase",
    "scissors": "scissors/scissor, pair of scissors/pairs of scissors, shears/shears",
    "teddy bear": "teddy bear, teddy, stuffed bear, stuffed animal, stuffed teddy bear, teddybear",
    "hair drier": "hair drier, hair dryer, hairdryer, hairdrier, blow dryer, blow drier",
    "toothbrush": "toothbrush, tooth brush",
}
"""Words for COCO's 80 categories. Irregular plurals are given (``man/men``), others follow from the singular.

Left out are words that COCO's annotators use for several categories: glass, bag, computer, desk, seat, plant."""

_AN_ORANGE = tuple(
    f"{before} orange {after}"
    for before in ("an", "one", "the")
    for after in ("<end>", "on", "in", "with", "next", "that", "is", "sitting", "and a", "and an", "and the")
)
"""Elsewhere ``orange`` is a color."""

_COCO_NO_OBJECTS = (
    "train track, train station, train platform, train yard, train depot, bus stop, bus station, bus lane, bus "
    "terminal, car park, car seat, cable car, truck bed, bike rack, bike lane, bike path, bicycle rack, bicycle "
    "lane, boat ramp, boat dock, boat house, jet ski, bird house, bird cage, bird bath, bird feeder, prairie dog, "
    "dog house, dog bed, cat bed, dog food, cat food, cat tail, rocking horse, carousel horse, flower bed, bed "
    "of/beds of, toilet paper, orange juice, apple juice, apple pie, apple tree, banana bread, pizza box, pizza "
    "cutter, cake pan, cake stand, knife block, book shelf/book shelves, bookshelf/bookshelves, book case, book "
    "store, ball game, ball park, ball field, ski lift, ski slope, ski resort, ski lodge, ski pole, ski trail, "
    "skateboard park, skateboard ramp, phone booth, remote area, remote location, mouse pad, chair lift, table "
    "cloth, table top, table tennis/table tennis, pool table, tv stand, tv show, oven mitt, toaster oven, baby "
    "carriage, baby stroller, record player, dvd player, cd player, pitcher of/pitchers of, teddy bear costume, "
    "bottle opener, cup holder, home plate"
)
"""Phrases in which a word of the list names nothing that it names alone."""

_YOUNG = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
"""Animals of which ``baby`` is no person."""


class ObjectVocabulary:
    """Which words name which category of objects.

    Parameters
    ----------
    words
        Words and phrases, in lower case, of each category. A word of several categories names the first.
    no_objects
        Phrases that name no object although they contain such words.
    """

    def __init__(self, words: Mapping[str, Iterable[str]], no_objects: Iterable[str] = ()) -> None:
        self.categories = tuple(words)
        self._category: dict[tuple[str, ...], str | None] = {}
        for category, of_category in words.items():
            for phrase in of_category:
                self._category.setdefault(tuple(phrase.split()), category)
        for phrase in no_objects:
            self._category.setdefault(tuple(phrase.split()), None)
        self._longest = max(map(len, self._category), default=0)

    def mentioned(self, caption: str) -> frozenset[str]:
        """The categories that a caption mentions.

        Words are those of the caption metrics, with hyphens read as spaces. At each word the longest phrase counts: a
        hot dog is no dog.
        """
        words = [*ptb_tokenize([caption])[0].replace("-", " ").split(), "<end>"]
        found: set[str] = set()
        place = 0
        while place < len(words):
            length, category = self._longest_phrase(words, place)
            if category is not None:
                found.add(category)
            place += length
        return frozenset(found)

    def _longest_phrase(self, words: Sequence[str], place: int) -> tuple[int, str | None]:
        for length in range(self._longest, 1, -1):
            phrase = tuple(words[place : place + length])
            if phrase in self._category:
                return length, self._category[phrase]
        return 1, self._category.get((words[place],))


def coco_vocabulary(more: Iterable[str] = ()) -> ObjectVocabulary:
    """Words for COCO's 80 categories; other categories in ``more`` are named by their name and its plural."""
    words = {category: _forms(texts) for category, texts in _COCO_WORDS.items()}
    words["orange"] += _AN_ORANGE
    for animal in _YOUNG:
        words[animal] += tuple(f"baby {name}" for name in words[animal])
    own = {name: _forms(name.lower()) for name in more if name not in words}
    return ObjectVocabulary(own | words, _forms(_COCO_NO_OBJECTS))


def simulated_vocabulary() -> ObjectVocabulary:
    """The names of the things that simulated scenes show, singular and plural."""
    return ObjectVocabulary(
        {thing: [name for pair in about.names for name in pair] for thing, about in THINGS.items()}
    )


def object_vocabulary(store: Store) -> ObjectVocabulary:
    """The words for the objects of a store: the simulation's for a simulated one, else COCO's."""
    if store.manifest.source == "simulated":
        return simulated_vocabulary()
    return coco_vocabulary(sorted(store.objects["category"].unique()) if store.has_objects else ())


def categories_by_image(store: Store) -> dict[int, frozenset[str]]:
    """Categories in each image of a store, including crowds, by ``nsd_id``."""
    shown: dict[int, frozenset[str]] = dict.fromkeys(store.stimuli.index.tolist(), frozenset())
    for nsd_id, categories in store.objects.groupby(level="nsd_id")["category"]:
        shown[int(str(nsd_id))] = frozenset(categories)
    return shown


class ObjectScores(NamedTuple):
    """How the categories that captions mention agree with those that their images show, 0 to 1."""

    precision: Float[np.ndarray, " n"]
    """Share of the mentioned categories that the image shows; NaN for a caption that mentions none."""
    recall: Float[np.ndarray, " n"]
    """Share of the categories of the image that the caption mentions; NaN for an image without objects."""
    f1: Float[np.ndarray, " n"]
    """Their harmonic mean; 0 if they have nothing in common, NaN for an image without objects."""


def object_scores(
    captions: Sequence[str], shown: Sequence[Collection[str]], vocabulary: ObjectVocabulary
) -> ObjectScores:
    """Object precision, recall and F1 of captions.

    Parameters
    ----------
    captions
        Raw text.
    shown
        Categories of each caption's image, see `categories_by_image`. An image without objects cannot be scored (COCO
        annotates 80 categories only): leave rows with NaN out of means, and such images out of rewards.
    vocabulary
        Which words name which category.
    """
    rows = []
    for caption, categories in zip(captions, map(frozenset, shown), strict=True):
        mentioned = vocabulary.mentioned(caption)
        n_common = len(mentioned & categories)
        rows.append(
            (
                n_common / len(mentioned) if mentioned else np.nan,
                n_common / len(categories) if categories else np.nan,
                2 * n_common / (len(mentioned) + len(categories)) if categories else np.nan,
            )
        )
    precision, recall, f1 = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return ObjectScores(precision, recall, f1)


def _forms(texts: str) -> tuple[str, ...]:
    """Singular and plural forms, given as words separated by commas."""
    words = (word.strip() for word in texts.split(","))
    return tuple(
        form for word in words for form in (word.split("/") if "/" in word else (word, _plural(word)))
    )


def _plural(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search(r"(s|x|z|ch|sh)$", word) else f"{word}s"
