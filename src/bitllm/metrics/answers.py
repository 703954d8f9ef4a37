"""Accuracy of answers to questions: VQA accuracy, exact match, A-OKVQA, counts, and the share of "yes".

References
----------
Antol et al. 2015 (arXiv 1505.00468) and the evaluation of visualqa.org, which defines `vqa_accuracy`. Variants of it
differ in when an answer is normalized; this one is named in `VQA_VARIANT`. Schwenk et al. 2022 (A-OKVQA, arXiv
2206.01718) for `direct_answer_accuracy`. Acharya et al. 2019 (TallyQA, arXiv 1810.12440) for the error of counts.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np

from bitllm.data.tasks.derive import CATEGORY
from bitllm.data.tasks.exchange import DERIVED, Question
from bitllm.errors import DataError

VQA_VARIANT = "leave-one-out over 10 answers; normalized only where the 10 answers differ"
"""The variant of VQA accuracy; the simple min(n / 3, 1) gives .33, .67, 1 where this one gives .3, .6, .9."""
N_VQA_ANSWERS = 10

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)


def _with_one_apostrophe_less(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_REPAIRED = {wrong: word for word in _CONTRACTIONS.split() for wrong in _with_one_apostrophe_less(word)}
_REPAIRED["somebody'd"] = "somebodyd"  # so in the official table


def normalized_answer(text: str) -> str:
    """An answer in the form in which answers are compared, by VQA's rules.

    Punctuation is removed next to a space, or where the text has a number such as 1,000, and else replaced by a space.
    A period that no digit follows is removed (at most 32, as in the official code). Then lower case, number words
    up to ten as digits, no articles, and missing apostrophes of contractions.
    """
    text = cleaned = _on_one_line(text)
    has_number = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        is_removed = has_number or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_removed else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned, count=32)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy, 0 to 1: the mean over the ten sets of nine answers of min(1, equal answers / 3).

    Prediction and answers are normalized only if the ten answers differ, as in the official code since 2021.

    Raises
    ------
    DataError
        If there are not ten answers; use `exact_match` for other numbers.
    """
    if len(answers) != N_VQA_ANSWERS:
        raise DataError(
            f"VQA accuracy: expected {N_VQA_ANSWERS} answers of a question, found {len(answers)}; use exact match"
        )
    prediction, answers = _on_one_line(prediction), [_on_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalized_answer(prediction), [normalized_answer(one) for one in answers]
    equal = np.array([answer == prediction for answer in answers])
    return float(np.minimum(1, (equal.sum() - equal) / 3).mean())


def exact_match(prediction: str, answers: Collection[str]) -> float:
    """1 if the prediction equals one of the answers, all of them normalized; else 0."""
    return float(normalized_answer(prediction) in {normalized_answer(answer) for answer in answers})


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """`vqa_accuracy` of a question with ten answers, else `exact_match`."""
    return (vqa_accuracy if len(answers) == N_VQA_ANSWERS else exact_match)(prediction, answers)


def direct_answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """A-OKVQA's accuracy of a direct answer: min(1, equal answers / 3), over all answers, without normalization."""
    return min(1.0, sum(answer == prediction for answer in answers) / 3)


def list_f1(prediction: str, answer: str) -> float:
    """F1 of two lists, 0 to 1: the harmonic mean of precision and recall of the normalized items.

    Commas or "and" separate items; their order and repetitions do not count.
    """
    predicted, expected = (
        {normalized_answer(item) for item in re.split(r",|\band\b", _on_one_line(text))} - {""}
        for text in (prediction, answer)
    )
    return 2 * len(predicted & expected) / max(1, len(predicted) + len(expected))


def score_of(question: Question, text: str) -> float:
    """Accuracy of a decoded answer, 0 to 1: VQA accuracy with ten accepted answers, else exact match.

    A-OKVQA's direct answers have a definition of their own, and a list of objects has F1.
    """
    if is_list(question):
        return list_f1(text, question.accepted[0])
    accuracy = direct_answer_accuracy if is_direct_answer(question) else answer_accuracy
    return accuracy(text, question.accepted)


def is_direct_answer(question: Question) -> bool:
    """Whether A-OKVQA's own accuracy applies."""
    return question.exchange.source == "a-okvqa" and not question.options


def is_list(question: Question) -> bool:
    """Whether the answer is a list of objects."""
    return (question.exchange.source, question.exchange.task) == (DERIVED, CATEGORY)


def most_frequent(answers: Collection[str]) -> str:
    """The most frequent answer after normalization; of several, the first in alphabetical order."""
    counts: dict[str, int] = {}
    for answer in answers:
        counts[normalized_answer(answer)] = counts.get(normalized_answer(answer), 0) + 1
    return min(counts, key=lambda answer: (-counts[answer], answer))


def count_of(answer: str) -> int | None:
    """The first number in an answer, in digits or as a word up to ten; None without one."""
    return next((int(word) for word in normalized_answer(answer).split() if word.isdecimal()), None)


def count_error(prediction: str, answers: Sequence[str]) -> float:
    """Squared difference of two counts: the predicted one (0 without a number) and the first accepted one.

    The root of its mean over questions is TallyQA's RMSE.

    Raises
    ------
    DataError
        If the accepted answer has no number.
    """
    expected = count_of(answers[0])
    if expected is None:
        raise DataError(
            f"count: expected a number as accepted answer, found `{answers[0]}`; change its answer type"
        )
    return float(((count_of(prediction) or 0) - expected) ** 2)


def is_yes(answer: str) -> bool:
    """Whether an answer is "yes" after normalization; its mean is the yes-ratio."""
    return normalized_answer(answer) == "yes"


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
