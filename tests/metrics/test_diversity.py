from bitllm.metrics.diversity import distinct_n, mean_length, n_distinct_captions


def test_a_repeated_sentence_is_one_caption_with_few_distinct_words():
    captions = ["a dog runs"] * 4
    assert n_distinct_captions(captions) == 1
    assert distinct_n(captions, 1) == 3 / 12
    assert distinct_n(captions, 2) == 2 / 8


def test_empty_captions_count_as_captions_without_words():
    assert n_distinct_captions(["", "", "a"]) == 2
    assert distinct_n(["", "a"], 2) == 0
    assert mean_length(["", "a b"]) == 1
    assert mean_length([]) == 0
