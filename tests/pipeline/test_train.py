import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from bitllm.cli import main
from bitllm.data.batch import Anatomies, TrialBetas
from bitllm.data.dataset import select_trials
from bitllm.errors import BitLlmError, CheckpointError, ConfigError, DataError, TrainingError
from bitllm.model.aligner import load_aligner
from bitllm.model.captioner import load_captioner
from bitllm.model.checkpoint.base import load_llm, weights_hash
from bitllm.model.embed import brain_tokens_of
from bitllm.pipeline.recipe import Recipe, read_recipe
from bitllm.pipeline.run import Run
from bitllm.preflight.cost import count_parameters
from bitllm.stages.cross_fit import load_trial_embeddings, without_fold
from bitllm.training.logging import read_log


@pytest.fixture(scope="module")
def trained(write_recipe, tmp_path_factory):
    """A recipe, with a run beside it whose stages were trained by the command line."""
    recipe = write_recipe(tmp_path_factory.mktemp("trained"))
    for step in ("align", "all"):
        main(["train", str(recipe), step, "--out", str(recipe.parent / "run")])
    return recipe


def test_a_run_holds_what_it_was_made_from(trained):
    folder = trained.parent / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {*("align", "sft", "rft", "recipe.yaml", "split.json", "steps", "bitllm-run.json")}
    assert Run.open(folder).recipe == read_recipe(str(trained))
    for stage in ("align", "sft", "rft"):
        record = json.loads((folder / stage / "run.json").read_text())
        assert record["learnt_from"]["split"] == json.loads((folder / "split.json").read_text())["sha256"]
        assert record["selection"]["part"] == "validation"
        assert set(record["versions"]) == {"bitllm", "torch", "transformers", "peft", "accelerate"}
        assert list((folder / stage / "runs").rglob("events.out.tfevents.*"))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        Run.open(tmp_path)


def test_a_finished_stage_is_not_trained_again(trained, capsys):
    words = ["train", str(trained), "sft", "--out", str(trained.parent / "run")]
    before = (trained.parent / "run" / "sft" / "model.safetensors").stat().st_mtime_ns
    main(words)
    assert "sft was finished before:" in capsys.readouterr().out
    main([*words, "--json"])
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["step"], said["was_finished"]) == ("sft", True)
    assert "validation_loss" in said["validation"]
    assert (trained.parent / "run" / "sft" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_have_a_place_as_a_variant(trained, train):
    written = (trained.parent / "run" / "recipe.yaml").read_text()
    with pytest.raises(TrainingError, match=r"sft\.gate_start: 1\.0 → 0\.5"):
        train(trained, "sft", **{"sft.gate_start": 0.5})
    assert (trained.parent / "run" / "recipe.yaml").read_text() == written
    folder, was_done = train(trained, "prefix", variants={"prefix": {"sft": {"interface": "prefix"}}})
    assert (folder.name, was_done) == ("prefix", False)
    assert json.loads((folder / "config.json").read_text())["interface"] == "prefix"


def test_a_run_can_be_evaluated(trained, demo_folder, tmp_path, capsys):
    run, store = trained.parent / "run", demo_folder / "store"
    words = ["--systems", "rft", "--llm", str(demo_folder / "llm"), "--out", str(tmp_path / "evaluated")]
    main(["evaluate", str(run), str(store), *words, "--json"])
    assert {"about", "systems", "encoder"} <= set(json.loads(capsys.readouterr().out))


def test_frozen_tensors_are_the_same_before_and_after_every_stage(trained, demo_folder):
    run = trained.parent / "run"
    aligned = load_aligner(run / "align").encoder.state_dict()
    after = load_file(run / "sft" / "model.safetensors")
    for name, tensor in aligned.items():
        assert torch.equal(after[f"model.encoder.{name}"], tensor), name
    assert not any("language_model.embed" in name or ".self_attn." in name for name in after)
    card = json.loads((run / "sft" / "bitllm.json").read_text())
    assert card["base_llm"]["sha256"] == weights_hash(load_llm(demo_folder / "llm").llm)


def test_trained_parameters_are_those_of_params(trained):
    run = trained.parent / "run"
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    encoder = json.loads((run / "align" / "aligner.json").read_text())
    values["data"]["atlas_labels"] = dict(
        zip(encoder["atlases"], encoder["encoder"]["n_labels"], strict=True)
    )
    values["clip"]["embedding_width"] = encoder["embedding_width"]
    table = count_parameters(Recipe.parse(values)).to_json()
    aligner = load_aligner(run / "align")
    assert table["trainable"]["align"] == sum(parameter.numel() for parameter in aligner.parameters())
    assert table["trainable"]["sft"] == json.loads((run / "sft" / "bitllm.json").read_text())["n_trainable"]
    assert table["trainable"]["rft"] == json.loads((run / "rft" / "rft.json").read_text())["n_trainable"]


def test_sft_can_train_the_encoder_and_rft_starts_from_it(trained, train, demo_folder):
    variants = {
        "joint": {"start": "random", "sft": {"encoder": "trained"}},
        "joint-rft": {"start": "joint", "rft": {}},
    }
    sft, _ = train(trained, "joint", variants=variants)
    rft, _ = train(trained, "joint-rft", variants=variants)
    saved = load_file(sft / "model.safetensors")
    system = load_captioner(rft, load_llm(demo_folder / "llm"))
    assert all(torch.equal(saved[f"model.encoder.{n}"], p) for n, p in system.encoder.named_parameters())
    assert json.loads((rft / "rft.json").read_text())["sft"] == "joint"


def test_sft_continues_a_finished_one_on_few_trials_of_one_subject(
    trained, train, demo_folder, tmp_path, caplog
):
    sft = trained.parent / "run" / "sft"
    few = tmp_path / "few.json"
    words = ["--preset", "within-subject", "--held-out", "subj08", "--trials", "20"]
    main(["split", str(demo_folder / "store"), str(few), *words])
    changes = {"data.split": str(few), "sft.optimizer.steps": 2, "variants": {"adapted": {"start": str(sft)}}}
    out = tmp_path / "adapted"
    folder, was_done = train(trained, "adapted", out=out, **changes)
    assert (folder, was_done) == (out / "adapted", False)
    assert train(trained, "adapted", out=out, **changes) == (folder, True)
    before, now = (load_file(at / "model.safetensors") for at in (sft, folder))
    encoder = [name for name in before if name.startswith("model.encoder.")]
    assert all(torch.equal(before[name], now[name]) for name in encoder)
    with pytest.raises(CheckpointError, match="`smt`"):
        train(trained, "other", out=tmp_path / "new", variants={"other": {"start": "smt"}})
    assert not (tmp_path / "new").exists()


def test_what_a_system_starts_from_is_trained_before_it(write_recipe, train, tmp_path):
    recipe = write_recipe(tmp_path)
    folder, was_finished = train(recipe, "sft")
    assert (folder / "model.safetensors").is_file() and not was_finished
    assert (tmp_path / "run" / "align" / "aligner.safetensors").is_file()
    assert train(recipe, "align") == (tmp_path / "run" / "align", True)


def test_a_random_encoder_needs_no_align(write_recipe, train, tmp_path):
    folder, _ = train(write_recipe(tmp_path), "no_align", variants={"no_align": {"start": "random"}})
    assert (folder / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "align").exists()


def test_an_encoder_of_other_sizes_or_atlases_is_refused(trained, train):
    with pytest.raises(TrainingError, match=r"align: .*encoder\.n_queries: 32 → 64"):
        train(trained, "sft", **{"encoder.n_queries": 64})
    with pytest.raises(TrainingError, match=r"align: .*encoder\.atlases"):
        train(trained, "sft", **{"encoder.atlases": ["streams"]})


def test_a_run_refuses_another_split(trained, train):
    with pytest.raises(TrainingError, match="`split`"):
        train(trained, "align", **{"data.split": "develop"})


def test_a_split_that_is_neither_a_preset_nor_a_file_is_named(trained, train, tmp_path):
    with pytest.raises(ConfigError, match="`poster8`"):
        train(trained, "align", out=tmp_path / "run", **{"data.split": "poster8"})


def test_a_changed_setting_trains_again_what_depends_on_it_where_asked_for(write_recipe, train, tmp_path):
    recipe = write_recipe(tmp_path)
    train(recipe, "sft")
    restart = {"trainer.if_changed": "restart"}
    _, was_finished = train(recipe, "sft", **restart, **{"sft.optimizer.steps": 3})
    assert not was_finished
    assert train(recipe, "align", **restart)[1], "it depends on nothing that was changed"


def test_bertscore_needs_a_model_or_no_weight(trained, train):
    variants = {"other": {"rft": {"kl_weight": 0.5}}}
    with pytest.raises(ConfigError, match=r"rft\.rewards\.bertscore"):
        train(trained, "other", bertscore=None, variants=variants)
    variants["other"]["rft"]["rewards"] = {"bertscore": 0}
    folder, _ = train(trained, "other", bertscore=None, variants=variants, **{"rft.rewards.bertscore": 0})
    assert (folder / "rft.json").is_file()


def test_retrieval_is_that_of_align_where_sft_trained_the_encoder_further(
    trained, train, demo_folder, capsys
):
    folder, _ = train(trained, "further", variants={"further": {"sft": {"encoder": "trained"}}})
    words = [str(folder.parent), str(demo_folder / "store"), "--llm", str(demo_folder / "llm")]
    words += ["--inputs", "real", "permuted", "--likelihood", "none", "--targets"]
    words += [str(demo_folder / "targets.safetensors"), "--json"]
    found = []
    for name in ("further", "sft"):
        main(["evaluate", *words, "--systems", name, "--out", str(folder.parent / f"evaluated {name}")])
        found.append(json.loads(capsys.readouterr().out)["encoder"])
    assert found[0]["retrieval"] == found[1]["retrieval"] != {}
    assert [one["embedding"].count("before sft") for one in found] == [1, 0]


def test_the_brain_of_an_image_judges_captions_by_an_encoder_that_never_saw_it(trained, train):
    rewards = {
        "cider": 0,
        "bertscore": 0,
        "ip": 0,
        "neural_rank": 1,
        "contrast": 0.5,
        "objects": 1,
        "scale": "group",
    }
    folder, _ = train(trained, "verified", variants={"verified": {"rft": {"rewards": rewards}}})
    run = Run.open(folder.parent)
    trials = select_trials(run.store, run.split, "train", averaged=False)
    found = load_trial_embeddings(run.folder)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(trials)), abs=1e-5)
    folds = [without_fold(run.split, fold, seed=run.recipe.seed) for fold in (0, 1)]
    assert folds[0].train_images | folds[1].train_images == run.split.train_images
    assert not folds[0].train_images & folds[1].train_images
    for fold, split in enumerate(folds):
        record = json.loads((run.folder / f"fold-{fold + 1}" / "run.json").read_text())
        assert record["learnt_from"]["split"] == split.sha256
        own = trials[[image not in split.train_images for image in trials.nsd_id.tolist()]]
        aligner = load_aligner(run.folder / f"fold-{fold + 1}").eval()
        anatomies = Anatomies.of(run.store, own.subjects, run.recipe.encoder.atlases)
        with torch.no_grad():
            expected = aligner.embed(brain_tokens_of(aligner.encoder, own[:9], anatomies))[1].numpy()
        rows = np.flatnonzero([image not in split.train_images for image in trials.nsd_id.tolist()])[:9]
        assert found[rows] == pytest.approx(expected, abs=1e-5)
    row = read_log(folder / "log.jsonl")[0]
    spreads = [row[f"spread_{name}"] for name in ("cider", "objects", "contrast", "neural_rank")]
    assert spreads[0] == 0
    assert min(spreads[2:]) > 0
    assert row["reward_neural_rank"] < 0


def test_a_batch_of_one_image_cannot_be_told_apart(write_recipe, train, tmp_path):
    with pytest.raises(TrainingError, match="batches of 1 "):
        train(write_recipe(tmp_path), "align", **{"align.optimizer.batch_size": 1})


def test_captions_longer_than_the_context_are_named(write_recipe, train, tmp_path, demo_folder):
    short = tmp_path / "short"
    short.mkdir()
    for file in (demo_folder / "llm").iterdir():
        if file.is_file():
            (short / file.name).write_bytes(file.read_bytes())
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 14}))
    changes = {"llm.source": str(short), "variants": {"mine": {"start": "random"}}}
    with pytest.raises(DataError, match=r"at most \d+ tokens"):
        train(write_recipe(tmp_path), "mine", **changes)


def test_betas_that_are_not_numbers_are_traced_to_their_image(write_recipe, train, tmp_path, monkeypatch):
    original = TrialBetas.batch

    def poisoned(betas, indices):
        batch = original(betas, indices)
        batch["betas"][2, 0] = float("nan")
        return batch

    monkeypatch.setattr(TrialBetas, "batch", poisoned)
    with pytest.raises(BitLlmError, match=r"nan|NaN|not numbers"):
        train(write_recipe(tmp_path), "align")


def test_embed_writes_targets(demo_folder, tmp_path, capsys):
    out = tmp_path / "targets.safetensors"
    main(["embed", str(demo_folder / "store"), "--clip", str(demo_folder / "clip"), "--out", str(out)])
    assert "images, width 16" in capsys.readouterr().out
    made, known = load_file(out), load_file(demo_folder / "targets.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in known.items())
