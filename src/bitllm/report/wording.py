"""The words of the report: what each system and each control is called, and how its number is to be read."""

from typing import NamedTuple


class Control(NamedTuple):
    """A control's names and the one sentence that says what it rules out."""

    label: str
    short: str
    sentence: str


CONTROLS = {
    "permuted": Control(
        "another image's betas",
        "another image",
        "The betas of another image of the same subject: genuine brain activity, wrong picture. "
        "The cleanest control, because everything but the pairing is kept.",
    ),
    "other_subject": Control(
        "another subject's betas",
        "another subject",
        "What another subject's brain did for the same image, on the nearest voxels of this subject. No null: where "
        "subjects share their tuning it may do as well as the real betas, so it is a rival, not evidence against "
        "decoding.",
    ),
    "shuffle": Control(
        "betas shuffled over voxels",
        "voxels shuffled",
        "The betas of a trial change places among its voxels: their sizes stay, their pattern is gone.",
    ),
    "noise": Control(
        "noise like the betas",
        "noise",
        "Random numbers with the covariance of the betas: the statistics of a brain, seeing nothing.",
    ),
    "zero": Control(
        "all betas zero",
        "zero betas",
        "Every beta is 0: with greedy decoding that is one and the same sentence for every image, "
        "so it scores what a constant sentence can score.",
    ),
    "constant": Control(
        "one constant caption",
        "constant caption",
        "One sentence for all images, the one that fits the training references best: "
        "what can be had without looking at anything.",
    ),
    "llm_alone": Control(
        "language model alone",
        "LLM alone",
        "The language model with no brain input at all: its own habits and prejudices.",
    ),
    "nearest": Control(
        "nearest training caption",
        "nearest caption",
        "The caption of the training image whose brain embedding is nearest: it uses the betas but writes "
        "nothing new, so it is a rival to beat, not evidence against decoding.",
    ),
}

# A rival uses betas of the image: losing to it does not mean that the captions come from elsewhere.
RIVALS = frozenset({"nearest", "other_subject"})
RIVAL = "a rival, no control: it reads betas of the image too"

SYSTEMS = {
    "rft": "all three stages: aligned, supervised, then reinforced on sampled captions",
    "sft": "two stages: aligned, then supervised on the references",
    "prefix": "brain tokens put before the words by one linear projection",
    "prefix_mlp": "brain tokens put before the words by an MLP as large as the adapters",
    "no_align": "supervised with an encoder that was never aligned (stage 1 left out)",
}
FINAL_SYSTEMS = ("rft", "sft")

RETRIEVAL_INPUTS = {"real": "real betas", "single_trial": "real betas, single trials"}
RETRIEVAL_SHORT = {"real": "real betas", "single_trial": "single trials"}

GALLERY_GROUPS = {
    "random": "Drawn at random, before looking: judge by these.",
    "best": "The highest CIDEr of the final system.",
    "median": "In the middle of the final system's CIDEr.",
    "worst": "The lowest CIDEr of the final system.",
}


def control_label(name: str) -> str:
    """A control's name in plain words; an unknown control keeps its key."""
    return CONTROLS[name].label if name in CONTROLS else _spaced(name)


def control_short_label(name: str) -> str:
    """A control's name for a narrow column."""
    return CONTROLS[name].short if name in CONTROLS else _spaced(name)


def in_known_order(names: list[str], known: dict) -> list[str]:
    """The names that this report knows in its own order, then the others in theirs."""
    return [name for name in known if name in names] + [name for name in names if name not in known]


def _spaced(name: str) -> str:
    return name.replace("_", " ")
