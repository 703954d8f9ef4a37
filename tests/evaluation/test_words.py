import json

import pytest

from bitllm.errors import DataError
from bitllm.evaluation.words import read_words, simulated_words, word_categories


def test_no_word_of_the_simulation_is_in_two_categories():
    words = simulated_words().words
    assert sum(map(len, words.values())) == len(frozenset().union(*words.values()))
    assert {"dogs", "puppy"} <= words["animals"]
    assert {"red", "green"} <= words["colours"]
    assert {"two", "several"} <= words["counts"]
    assert {"beach", "kitchen"} <= words["settings"]


def test_an_image_is_of_a_category_that_half_of_its_people_name(easy):
    categories = word_categories(easy.store, None)
    references = [("A dog.", "two dogs on a bed"), ("a bed",), ("a dog", "a bed", "a bed")]
    assert categories.images_of("animals", references).tolist() == [True, False, False]
    assert categories.images_of("furniture", references).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "category"),
        ({"animals": "dog"}, "category"),
        ({"animals": ["dog"], "pets": ["Dog"]}, "found `dog` in animals and pets"),
    ],
)
def test_a_word_list_that_is_not_one_is_refused(tmp_path, content, message):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_words(path)


def test_a_word_list_of_the_user_is_read(tmp_path, easy):
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"pets": ["Dog", "cat"]}))
    found = word_categories(easy.store, path)
    assert found.words == {"pets": frozenset({"dog", "cat"})}
    assert found.source == "words.json"
