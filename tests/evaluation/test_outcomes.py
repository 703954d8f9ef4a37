def test_real_and_every_control_are_decoded_and_scored(found):
    names = ["real", "permuted", "zero", "shuffle", "noise", "other_subject", "llm_alone"]
    assert list(found.captions) == names
    assert list(found.log2_probs) == names
    assert [len(set(found.captions[name])) for name in ("zero", "llm_alone")] == [1, 1]
    assert found.captions["permuted"] == [found.captions["real"][row] for row in found.order]
