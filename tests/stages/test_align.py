import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bitllm.data.batch import Anatomies, TrialBetas, brain_input
from bitllm.data.dataset import select_trials
from bitllm.data.targets import Targets
from bitllm.errors import SealedTestError, SplitError
from bitllm.metrics.retrieval import retrieval
from bitllm.model.aligner import BrainAligner, load_aligner
from bitllm.stages import align
from bitllm.stages.align import AlignConfig, brain_embeddings, make_encoder, train_align
from bitllm.training.loop import OptimizerConfig

CPU = torch.device("cpu")
FEW_STEPS = AlignConfig(
    optimizer=OptimizerConfig(steps=2, batch_size=8, learning_rate=1e-3, warmup_steps=0), validate_every=1
)
SIXTY_STEPS = AlignConfig(
    optimizer=OptimizerConfig(steps=60, batch_size=64, learning_rate=2e-3, warmup_steps=5), validate_every=30
)


def validation_retrieval(easy, folder):
    """R@10 of every validation image seen by a training subject, among all of them, against the true features."""
    aligner = load_aligner(folder).eval()
    trials = select_trials(easy.store, easy.split, "validation", averaged=True)
    anatomies = Anatomies.of(easy.store, trials.subjects, easy.encoder.atlases)
    embeddings = brain_embeddings(aligner, TrialBetas(trials, anatomies, CPU))
    gallery = np.unique(trials.nsd_id)
    similarity = embeddings @ easy.targets.image[easy.targets.rows(gallery)].T
    return retrieval(similarity, np.searchsorted(gallery, trials.nsd_id), np.random.default_rng(0))


def test_align_finds_unseen_images_far_above_chance(easy):
    found = validation_retrieval(easy, easy.folder / "align")
    # .83 ± .04 when this was written, chance .10
    assert found.r_at_10 - 8 * found.r_at_10_standard_error > found.chance_r_at_10
    assert found.median_rank < found.chance_median_rank / 4


def test_align_learns_nothing_that_transfers_when_the_images_are_shuffled(easy, tmp_path):
    order = np.random.default_rng(0).permutation(len(easy.targets.nsd_id))
    shuffled = Targets(easy.targets.nsd_id, easy.targets.image[order], easy.targets.text[order])
    train_align(
        easy.store,
        easy.split,
        shuffled,
        tmp_path / "align",
        encoder_config=easy.encoder,
        config=SIXTY_STEPS,
        seed=0,
    )
    found = validation_retrieval(easy, tmp_path / "align")
    assert abs(found.r_at_10 - found.chance_r_at_10) < 4 * found.r_at_10_standard_error


def test_encoder_and_heads_overfit_one_small_batch(easy):
    trials = select_trials(easy.store, easy.split, "train", averaged=False, subjects=["subj01", "subj03"])
    indices = np.linspace(0, len(trials) - 1, 12).astype(int).tolist()
    anatomies = Anatomies.of(easy.store, trials.subjects, easy.encoder.atlases)
    rows = easy.targets.rows(trials.nsd_id[indices])
    batch = {
        **brain_input(trials, anatomies, indices)._asdict(),
        "image": torch.from_numpy(easy.targets.image[rows]),
        "text": torch.from_numpy(easy.targets.text[rows]),
        "nsd_id": torch.from_numpy(trials.nsd_id[indices]),
    }
    aligner = BrainAligner(make_encoder(easy.store, easy.split, easy.encoder, seed=0), embedding_width=16)
    aligner.eval()  # without dropout
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=3e-3)
    first = aligner(**batch)["loss"].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = aligner(**batch)["loss"]
        loss.backward()
        optimizer.step()
    assert first > 2
    assert loss.item() < 0.1


def test_the_checkpoint_names_its_split_and_its_log_holds_loss_and_validation(easy):
    card = json.loads((easy.folder / "align" / "aligner.json").read_text())
    assert card["split"] == easy.split.sha256
    assert card["atlases"] == list(easy.encoder.atlases)
    rows = [json.loads(line) for line in (easy.folder / "align" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert [row["step"] for row in rows if "validation_R@10" in row] == [30, 60]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(easy, tmp_path):
    weights = []
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        train_align(
            easy.store,
            easy.split,
            easy.targets,
            tmp_path / name,
            encoder_config=easy.encoder,
            config=FEW_STEPS,
            seed=seed,
        )
        weights.append((tmp_path / name / "aligner.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_training_split_with_a_test_image_is_refused(easy, resealed, tmp_path):
    leak = resealed(easy.split, train_images=easy.split.train_images | {min(easy.split.test_images)})
    with pytest.raises(SplitError, match=r"train_images and test_images to be disjoint, found nsd_id \d+ in"):
        train_align(
            easy.store,
            leak,
            easy.targets,
            tmp_path / "align",
            encoder_config=easy.encoder,
            config=FEW_STEPS,
            seed=0,
        )
    assert list(tmp_path.iterdir()) == []


def test_the_test_part_is_sealed_while_align_is_fitted(easy, tmp_path, monkeypatch):
    def open_the_test_part(*_, **__):
        return select_trials(easy.store, easy.split, "test", averaged=True)

    monkeypatch.setattr(align, "validate", open_the_test_part)
    with pytest.raises(SealedTestError, match="no use of the test part"):
        train_align(
            easy.store,
            easy.split,
            easy.targets,
            tmp_path / "align",
            encoder_config=easy.encoder,
            config=FEW_STEPS,
            seed=0,
        )
    assert list(tmp_path.iterdir()) == []
    assert len(select_trials(easy.store, easy.split, "test", averaged=True)) > 0


def test_queries_are_anchored_at_voxels_only_where_configured(easy):
    anatomies = Anatomies.of(easy.store, easy.split.train_subjects, easy.encoder.atlases)
    real = anatomies.voxel_mask
    for is_anchored in (True, False):
        config = easy.encoder.model_copy(update={"anchored": is_anchored})
        encoder = make_encoder(easy.store, easy.split, config, seed=0)
        keys = encoder.keys(anatomies.coords_mm[real], anatomies.atlas_labels[real])
        nearest = torch.nn.functional.normalize(encoder.queries, dim=-1) @ keys.T
        assert bool((nearest.max(dim=1).values > 1 - 1e-5).all()) == is_anchored


def test_only_training_subjects_and_images_reach_the_encoder(easy, tmp_path, monkeypatch):
    seen: set[tuple[str, int]] = set()
    original = align.collate_align

    def recorded(betas, *words, **settings):
        collate, trials = original(betas, *words, **settings), betas.trials

        def record(pairs):
            seen.update((trials.subject_of(index), int(trials.nsd_id[index])) for _, index in pairs)
            return collate(pairs)

        return record

    monkeypatch.setattr(align, "collate_align", recorded)
    train_align(
        easy.store,
        easy.split,
        easy.targets,
        Path(tmp_path / "align"),
        encoder_config=easy.encoder,
        config=SIXTY_STEPS.model_copy(update={"optimizer": FEW_STEPS.optimizer}),
        seed=0,
    )
    assert {subject for subject, _ in seen} <= set(easy.split.train_subjects)
    assert {image for _, image in seen} <= easy.split.train_images


def test_mixtures_are_of_two_trials_of_one_subject_and_a_function_of_seed_and_example(easy):
    trials = select_trials(easy.store, easy.split, "train", averaged=False)
    anatomies = Anatomies.of(easy.store, trials.subjects, easy.encoder.atlases)
    betas = TrialBetas(trials, anatomies, CPU)
    pairs = [(0, index) for index in range(0, len(trials), len(trials) // 12)]
    settings = {"mix_epochs": 1, "seed": 4}
    mixed = align.collate_align(betas, easy.targets, **settings)(pairs)
    plain = align.collate_align(betas, easy.targets)(pairs)
    for row in range(len(pairs)):
        own = (plain["subject_index"] == plain["subject_index"][row]).nonzero()[:, 0].tolist()
        other = own[(own.index(row) + 1) % len(own)]
        share = mixed["share"][row]
        expected = share * plain["betas"][row] + (1 - share) * plain["betas"][other]
        assert torch.allclose(mixed["betas"][row], expected)
        assert int(mixed["mixed_with"][row]) == int(plain["nsd_id"][other])
    again = align.collate_align(betas, easy.targets, **settings)(pairs)
    assert torch.equal(again["share"], mixed["share"])
    later = align.collate_align(betas, easy.targets, **settings)([(1, index) for _, index in pairs])
    assert "share" not in later


def test_align_with_mixtures_still_learns(easy, tmp_path):
    config = SIXTY_STEPS.model_copy(update={"mix_epochs": 100})
    train_align(
        easy.store,
        easy.split,
        easy.targets,
        tmp_path / "a",
        encoder_config=easy.encoder,
        config=config,
        seed=0,
    )
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    scores = [
        row["validation_R@10"] / row["validation_chance_R@10"] for row in rows if "validation_R@10" in row
    ]
    assert scores[-1] > 1.3  # of at most 1.41: chance is .71 among so few
