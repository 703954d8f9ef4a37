import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitllm.errors import CheckpointError
from bitllm.losses.contrastive import info_nce, same_image
from bitllm.model.aligner import BrainAligner, load_aligner, save_aligner
from bitllm.model.encoder import Anatomy, BrainEncoder
from tiny_model import ENCODER


@pytest.fixture
def aligner():
    """An untrained aligner into a space of 6."""
    torch.manual_seed(0)
    encoder = BrainEncoder(**{**ENCODER, "n_labels": (3, 4)})
    return BrainAligner(encoder, embedding_width=6).eval()


@pytest.fixture
def batch(brain):
    """The random brains with targets; two trials saw one image."""
    unit = torch.nn.functional.normalize(torch.randn(3, 6), dim=-1)
    return {**brain, "image": unit, "text": unit.flip(0), "nsd_id": torch.tensor([4, 9, 4])}


def test_embeddings_are_unit_vectors_of_the_mean_brain_token(aligner):
    brain_tokens = torch.randn(4, 5, 12)
    for embedding, head in zip(
        aligner.embed(brain_tokens), (aligner.image_head, aligner.text_head), strict=True
    ):
        expected = head(aligner.norm(brain_tokens.sum(1) / 5))
        assert torch.allclose(embedding, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(aligner.embed(brain_tokens)[0], aligner.embed(brain_tokens[:, order])[0], atol=1e-6)


def test_the_loss_is_the_mean_of_the_two_contrasts_at_the_learned_temperature(aligner, batch):
    out = aligner(**batch)
    anatomy = Anatomy(batch["coords_mm"], batch["atlas_labels"], batch["voxel_mask"])
    image, text = aligner.embed(aligner.encoder(batch["betas"], batch["subject_index"], anatomy))
    shared = {"scale": torch.tensor(1 / 0.07), "positives": same_image(batch["nsd_id"])}
    expected = info_nce(image, batch["image"], **shared), info_nce(text, batch["text"], **shared)
    assert out["image_loss"].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert out["text_loss"].item() == pytest.approx(expected[1].item(), rel=1e-5)
    assert out["loss"].item() == pytest.approx((expected[0] + expected[1]).item() / 2, rel=1e-5)


def test_the_temperature_is_clamped_as_in_clip(aligner, batch):
    with torch.no_grad():
        aligner.log_scale.fill_(50.0)
    clamped = aligner(**batch)["loss"]
    with torch.no_grad():
        aligner.log_scale.copy_(torch.tensor(100.0).log())
    assert torch.allclose(clamped, aligner(**batch)["loss"], rtol=1e-5)


def test_every_parameter_fingerprint_the_loss(aligner, batch):
    aligner(**batch)["loss"].backward()
    still = [name for name, p in aligner.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.fixture
def folder(aligner, tmp_path):
    """A saved aligner."""
    save_aligner(aligner, tmp_path, encoder=ENCODER, about={"seed": 1})
    return tmp_path


def test_an_aligner_comes_back_as_it_was_saved(aligner, folder):
    again = load_aligner(folder)
    assert set(again.state_dict()) == set(load_file(folder / "aligner.safetensors"))
    for name, tensor in aligner.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert json.loads((folder / "aligner.json").read_text())["seed"] == 1


def test_an_aligner_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"with aligner\.safetensors, found none; train the align stage"
    ):
        load_aligner(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_their_own_settings_are_refused(folder, damage):
    tensors = load_file(folder / "aligner.safetensors")
    if damage == "missing":
        del tensors["log_scale"]
    elif damage == "unexpected":
        tensors["gate"] = torch.zeros(1)
    else:
        tensors["image_head.weight"] = torch.zeros(7, 12)
    save_file(tensors, folder / "aligner.safetensors")
    with pytest.raises(CheckpointError, match=r"aligner\.safetensors: .*aligner\.json"):
        load_aligner(folder)


def test_a_truncated_aligner_is_one_named_error(folder):
    path = folder / "aligner.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"aligner.safetensors"):
        load_aligner(folder)
