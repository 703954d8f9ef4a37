import numpy as np

from bitllm.evaluation.diagnostics import encoder_table, nearest_rows


def test_the_nearest_row_is_that_of_a_loop():
    rng = np.random.default_rng(3)
    queries, candidates = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    expected = [max(range(9), key=lambda row, q=query: q @ candidates[row]) for query in queries]
    assert nearest_rows(queries, candidates).tolist() == expected


def test_without_an_aligner_no_image_is_retrieved_but_the_cosine_to_zero_is_known(system, held_out):
    rows, embedded, not_run = encoder_table(
        None, system.encoder, system.atlases, held_out, None, inputs=("zero",), trials="averaged", seed=0
    )
    assert set(rows["input"]) == {"real"}
    assert rows["ranks"].isna().all()
    zero = held_out.brain_tokens(system.encoder, system.atlases, np.zeros_like(held_out.betas[:1]))
    mean = zero.mean(dim=1).numpy()[0]
    assert np.allclose(rows["cosine_zero"], embedded @ (mean / np.linalg.norm(mean)), atol=1e-5)
    assert not_run == {}
