"""The objects of simulated scenes, the words for them, and how often they occur together."""

from typing import NamedTuple


class Thing(NamedTuple):
    """A kind of object."""

    category: str
    """One of ``CATEGORIES``."""
    names: tuple[tuple[str, str], ...]
    """Its names, singular and plural; the first is the usual one."""


def _things(category: str, lines: str) -> dict[str, Thing]:
    table = {}
    for line in lines.split(","):
        names = tuple((name.split("/")[0].strip(), name.split("/")[1].strip()) for name in line.split("|"))
        table[names[0][0]] = Thing(category, names)
    return table


THINGS: dict[str, Thing] = {
    **_things("people", "man/men|guy/guys, woman/women|lady/ladies, boy/boys|kid/kids, "
                        "girl/girls|child/children, baby/babies|toddler/toddlers"),
    **_things("animals", "dog/dogs|puppy/puppies, cat/cats|kitten/kittens, horse/horses, "
                         "cow/cows|cattle/cattle, sheep/sheep, elephant/elephants, "
                         "giraffe/giraffes, zebra/zebras, bird/birds"),
    **_things("vehicles", "car/cars, bus/buses, train/trains, truck/trucks,"
                          "bicycle/bicycles|bike/bikes, motorcycle/motorcycles,"
                          "boat/boats, airplane/airplanes|plane/planes"),
    **_things("food", "pizza/pizzas, sandwich/sandwiches, cake/cakes, banana/bananas, "
                      "apple/apples, donut/donuts"),
    **_things("furniture", "chair/chairs, couch/couches|sofa/sofas, bed/beds, table/tables, bench/benches"),
    **_things("sports", "skateboard/skateboards, surfboard/surfboards, kite/kites, "
                        "ball/balls, racket/rackets"),
    **_things("kitchenware", "cup/cups|mug/mugs, bottle/bottles, bowl/bowls, plate/plates"),
    **_things("electronics", "laptop/laptops|computer/computers, phone/phones, television/televisions,"
                             "clock/clocks"),
    **_things("belongings", "umbrella/umbrellas, suitcase/suitcases|bag/bags, vase/vases, hydrant/hydrants"),
    **_things("reading", "book/books, newspaper/newspapers, sign/signs, poster/posters"),
}  # fmt: skip

OBJECTS = tuple(THINGS)
CATEGORIES = tuple(dict.fromkeys(thing.category for thing in THINGS.values()))

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 38, 42), "blue": (38, 84, 190), "green": (44, 140, 62), "yellow": (240, 205, 40),
    "white": (244, 244, 240), "black": (36, 36, 40), "brown": (126, 78, 42), "orange": (240, 130, 30),
}  # fmt: skip

SETTINGS: dict[str, tuple[str, str]] = {
    "street": ("on a street", "on a city road"),
    "park": ("in a park", "on the green grass"),
    "beach": ("on a beach", "near the ocean"),
    "field": ("in a field", "in a large meadow"),
    "snow": ("in the snow", "on a snowy hill"),
    "station": ("at a station", "on a platform"),
    "harbor": ("in a harbor", "by the water"),
    "kitchen": ("in a kitchen", "beside a stove"),
    "lounge": ("in a living room", "on a rug"),
    "bedroom": ("in a bedroom", "by a window"),
    "restaurant": ("in a restaurant", "at a cafe"),
    "office": ("in an office", "inside a modern building"),
}
"""Settings, each with two phrasings."""

INDOOR = frozenset({"kitchen", "lounge", "bedroom", "restaurant", "office"})

ACTIONS: dict[str, tuple[str, str]] = {
    "standing": ("standing", "posing"), "sitting": ("sitting", "resting"),
    "walking": ("walking", "strolling"),
    "running": ("running", "racing"), "eating": ("eating", "having a meal"),
    "sleeping": ("sleeping", "asleep"),
    "jumping": ("jumping", "leaping"), "parked": ("parked", "stopped"), "moving": ("moving", "traveling"),
    "flying": ("flying", "in the air"), "placed": ("placed", "lying"), "displayed": ("displayed", "shown"),
}  # fmt: skip

RELATIONS: dict[str, tuple[str, str]] = {
    "next to": ("next to", "beside"), "on": ("on top of", "on"), "under": ("under", "below"),
    "behind": ("behind", "in back of"), "in front of": ("in front of", "before"),
}  # fmt: skip

INVERSE = {
    "next to": "next to",
    "on": "under",
    "under": "on",
    "behind": "in front of",
    "in front of": "behind",
}
"""Relation of the second object to the first."""

COUNTS: dict[int, tuple[str, str]] = {
    1: ("a", "a"),
    2: ("two", "a pair of"),
    3: ("three", "three"),
    4: ("several", "many"),
}


class Habits(NamedTuple):
    """Usual combinations of a category, which a language model can learn as a prior."""

    weight: float
    settings: str
    actions: str
    colours: str
    partners: str


HABITS: dict[str, Habits] = {
    "people": Habits(
        2.6,
        "street park beach snow lounge restaurant office kitchen",
        "standing sitting walking running eating jumping sleeping",
        "red blue green yellow white black orange",
        "sports belongings food electronics animals furniture reading vehicles kitchenware",
    ),
    "animals": Habits(
        2.0,
        "field park beach street snow lounge bedroom",
        "standing walking running eating sleeping sitting",
        "white black brown",
        "people furniture animals belongings sports vehicles",
    ),
    "vehicles": Habits(
        1.7,
        "street station harbor snow field beach",
        "parked moving",
        "red blue green yellow white black orange",
        "people vehicles reading belongings animals",
    ),
    "food": Habits(
        1.5,
        "restaurant kitchen lounge office park",
        "placed displayed",
        "red yellow green brown white orange",
        "kitchenware food furniture reading electronics",
    ),
    "furniture": Habits(
        1.1,
        "lounge bedroom office restaurant park kitchen",
        "placed displayed",
        "red blue green white black brown",
        "animals electronics belongings reading people kitchenware",
    ),
    "sports": Habits(
        1.0,
        "beach park snow street field",
        "placed displayed",
        "red blue green yellow white orange",
        "people animals sports furniture",
    ),
    "kitchenware": Habits(
        0.9,
        "kitchen restaurant lounge office bedroom",
        "placed displayed",
        "red blue green white black orange",
        "food furniture electronics reading",
    ),
    "electronics": Habits(
        0.9,
        "office lounge bedroom kitchen station",
        "placed displayed",
        "white black red blue",
        "furniture animals kitchenware reading people",
    ),
    "belongings": Habits(
        0.9,
        "street station park beach harbor bedroom",
        "placed displayed",
        "red blue green yellow black orange",
        "people vehicles furniture animals",
    ),
    "reading": Habits(
        0.9,
        "office station street lounge bedroom restaurant",
        "placed displayed",
        "red blue green yellow white orange",
        "furniture kitchenware electronics people vehicles",
    ),
}

OWN_ACTIONS: dict[str, str] = {
    "airplane": "flying parked",
    "bird": "flying standing sitting eating",
    "kite": "flying placed",
    "baby": "sitting sleeping eating",
}
"""Objects with other actions than the rest of their category."""

OWN_SETTINGS: dict[str, str] = {
    "boat": "harbor beach",
    "train": "station field snow",
    "airplane": "field harbor snow",
    "kite": "beach park field snow",
}
"""Objects with other settings than the rest of their category."""
