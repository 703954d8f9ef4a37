import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bitllm.cli import main
from bitllm.errors import CheckpointError, ConfigError, DataError, SplitError, TrainingError
from bitllm.evaluation.grounding.system import load_system
from bitllm.model.aligner import load_aligner
from bitllm.model.checkpoint.base import load_llm, weights_hash
from bitllm.preflight.config import SystemConfig
from bitllm.preflight.parameters import count_parameters
from bitllm.runs.config import read_run_config
from bitllm.runs.train import train_stage


@pytest.fixture(scope="module")
def trained(write_run, tmp_path_factory):
    """A run whose three stages were trained by the command line."""
    config = write_run(tmp_path_factory.mktemp("trained"))
    for stage in ("align", "sft", "rft"):
        main(["train", stage, str(config)])
    return config


def train(config, stage, *changes, **more):
    return train_stage(stage, read_run_config(config, list(changes)), **more)


def test_a_run_holds_what_it_was_made_from(trained):
    run = trained.parent / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        "align",
        "sft",
        "rft",
        "align.yaml",
        "sft.yaml",
        "rft.yaml",
        "split.json",
        "brain_tokens",
    }
    for stage in ("align", "sft", "rft"):
        record = json.loads((run / stage / "run.json").read_text())
        assert record["learnt_from"]["split"] == json.loads((run / "split.json").read_text())["sha256"]
        assert record["selection"]["part"] == "validation"
        assert set(record["versions"]) == {"bitllm", "torch", "transformers", "peft", "accelerate"}
        assert yaml.safe_load((run / f"{stage}.yaml").read_text())["how"]["save_every"] == 2
        assert list((run / stage / "runs").rglob("events.out.tfevents.*"))


def test_a_finished_stage_is_not_trained_again(trained, capsys):
    before = (trained.parent / "run" / "sft" / "model.safetensors").stat().st_mtime_ns
    main(["train", "sft", str(trained)])
    assert "sft was finished before:" in capsys.readouterr().out
    main(["train", "sft", str(trained), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["was_finished"] is True
    assert "validation_loss" in said["validation"]
    assert (trained.parent / "run" / "sft" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_have_a_place_under_another_name(trained):
    kept = (trained.parent / "run" / "sft.yaml").read_text()
    with pytest.raises(
        TrainingError, match=r"sft: finished with other settings \(sft.gate_start: 1.0 → 0.5\)"
    ):
        train(trained, "sft", "sft.gate_start=0.5")
    assert (trained.parent / "run" / "sft.yaml").read_text() == kept, "what the stage was trained with"
    folder, was_done = train(trained, "sft", "sft.interface=prefix", name="prefix")
    assert (folder.name, was_done) == ("prefix", False)


def test_a_run_can_be_grounded(trained, demo_folder, tmp_path, capsys):
    run, store = trained.parent / "run", demo_folder / "store"
    words = ["--system", "rft", "--llm", str(demo_folder / "llm"), "--out", str(tmp_path / "grounding.json")]
    main(["ground", str(run), str(store), *words, "--json"])
    assert {"verdict", "captions", "bits", "encoder"} <= set(json.loads(capsys.readouterr().out))


def test_frozen_tensors_are_the_same_before_and_after_every_stage(trained, demo_folder):
    run = trained.parent / "run"
    aligned = load_aligner(run / "align").encoder.state_dict()
    after = load_file(run / "sft" / "model.safetensors")
    for name, tensor in aligned.items():
        assert torch.equal(after[f"model.encoder.{name}"], tensor), name
    assert not any("language_model.embed" in name or ".self_attn." in name for name in after)
    card = json.loads((run / "sft" / "bitllm.json").read_text())
    assert card["base_llm"]["sha256"] == weights_hash(load_llm(demo_folder / "llm").llm)


def test_what_learns_is_the_table_of_params(trained, demo_folder):
    run = trained.parent / "run"
    values = yaml.safe_load((run / "sft.yaml").read_text())
    llm = json.loads((demo_folder / "llm" / "config.json").read_text())
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    )
    sizes = {name: llm[name] for name in [*names.split(), "tie_word_embeddings"]}
    encoder = json.loads((run / "align" / "aligner.json").read_text())
    system = SystemConfig.parse(
        {
            "llm": {"name": "llm", "sizes": sizes},
            "voxels": {"subj01": 1},
            "atlas_labels": dict(zip(encoder["atlases"], encoder["encoder"]["n_labels"], strict=True)),
            "embedding_width": encoder["embedding_width"],
            **{part: values[part] for part in ("encoder", "align", "sft", "rft")},
        }
    )
    table = count_parameters(system).to_json()
    aligner = load_aligner(run / "align")
    assert table["trainable"]["align"] == sum(parameter.numel() for parameter in aligner.parameters())
    assert table["trainable"]["sft"] == json.loads((run / "sft" / "bitllm.json").read_text())["n_trainable"]
    assert table["trainable"]["rft"] == json.loads((run / "rft" / "rft.json").read_text())["n_trainable"]


def test_sft_can_train_the_encoder_and_rft_goes_on_from_it(trained, demo_folder, tmp_path):
    kept = tmp_path / "brain_tokens"
    sft, _ = train(
        trained, "sft", "sft.encoder=trained", "encoder_from=random", f"how.brain_tokens={kept}", name="joint"
    )
    assert not kept.exists()
    rft, _ = train(trained, "rft", f"how.brain_tokens={kept}", name="joint-rft", start_from="joint")
    assert len(list(kept.iterdir())) == 1
    saved = load_file(sft / "model.safetensors")
    system = load_system("rft", rft, load_llm(demo_folder / "llm"))
    assert all(torch.equal(saved[f"model.encoder.{n}"], p) for n, p in system.encoder.named_parameters())
    assert json.loads((rft / "rft.json").read_text())["sft"] == "joint"
    with pytest.raises(
        TrainingError, match=r'sft: finished with other settings \(sft.encoder: null → "trained"'
    ):
        train(trained, "sft", "sft.encoder=trained")


def test_sft_goes_on_from_a_finished_one_on_few_trials_of_one_subject(trained, demo_folder, tmp_path, caplog):
    sft = trained.parent / "run" / "sft"
    few = tmp_path / "few.json"
    words = ["--preset", "within-subject", "--held-out", "subj08", "--trials", "20"]
    main(["split", str(demo_folder / "store"), str(few), *words])
    changes = [f"run={tmp_path / 'adapted'}", f"split={few}", "sft.optimizer.steps=2"]
    folder, was_done = train(trained, "sft", *changes, start_from=str(sft))
    assert (folder, was_done) == (tmp_path / "adapted" / "sft", False)
    assert train(trained, "sft", *changes, start_from=str(sft)) == (folder, True)
    assert not caplog.records, "the same store: no split of it trains on test images"
    before, now = (load_file(at / "model.safetensors") for at in (sft, folder))
    encoder = [name for name in before if name.startswith("model.encoder.")]
    assert all(torch.equal(before[name], now[name]) for name in encoder)
    with pytest.raises(ConfigError, match="give the stage a --name of its own"):
        train(trained, "sft", start_from="sft")
    with pytest.raises(CheckpointError, match="expected a finished sft to start from, found none"):
        train(trained, "sft", start_from="smt", name="other")


def test_brain_tokens_are_kept_and_read_by_the_next_stage(trained):
    kept = sorted((trained.parent / "run" / "brain_tokens").iterdir())
    assert len(kept) == 2  # training and validation trials; rft reads those of sft
    assert all(path.suffix == ".npy" for path in kept)


def test_a_stage_without_the_one_before_is_refused_and_nothing_is_written(write_run, tmp_path):
    config = write_run(tmp_path)
    with pytest.raises(CheckpointError, match="expected the encoder of the align stage, found no folder"):
        train(config, "sft")
    with pytest.raises(CheckpointError, match="expected a finished sft to start from, found none"):
        train(config, "rft")
    assert not (tmp_path / "run").exists()


def test_an_untrained_encoder_needs_no_align(write_run, tmp_path):
    folder, _ = train(write_run(tmp_path, encoder_from="random"), "sft", name="no_align")
    assert (folder / "model.safetensors").is_file()


def test_an_encoder_of_other_sizes_or_atlases_is_refused(trained):
    with pytest.raises(CheckpointError, match="expected the encoder of this configuration"):
        train(trained, "sft", "encoder.n_queries=64", name="wide")
    with pytest.raises(CheckpointError, match="its sizes or atlases are others: train align again"):
        train(trained, "sft", "encoder.atlases=[streams]", name="few")


def test_a_run_keeps_its_split(trained):
    with pytest.raises(SplitError, match="the run has another split"):
        train(trained, "align", "split=develop", name="again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sft.optimiser.steps=3"], "unknown key `sft.optimiser`; did you mean `optimizer`?"),
        (["sft.optimizer.step=3"], "unknown key `sft.optimizer.step`; did you mean `steps`?"),
        (["rft.n_captions=1"], "`rft.n_captions`: input should be greater than or equal to 2, found 1"),
        (["sft.encoder=learned"], "`sft.encoder`: input should be 'frozen' or 'trained', found 'learned'"),
        (["sft.encoder_learning_rate=0.1"], "expected none beside a frozen encoder; set encoder to trained"),
        (["seed"], "expected KEY=VALUE, found no `=`"),
        (["rft.n_captions.x=1"], "expected the key of one value"),
        (["split=poster8"], "expected one of poster, .* or the file of a split, found `poster8`"),
    ],
)
def test_a_wrong_setting_is_answered_with_the_nearest_valid_one(trained, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(trained, "align", *changes)


def test_a_configuration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: expected a YAML configuration, found no file"):
        read_run_config(tmp_path / "none.yaml", ["seed=1"])


def test_bertscore_needs_a_model_or_no_weight(write_run, trained, tmp_path):
    with pytest.raises(ConfigError, match="bertscore: expected a folder or hub id of an encoder"):
        train(trained, "rft", "bertscore=null", name="no-bert")
    folder, _ = train(trained, "rft", "bertscore=null", "rft.rewards.bertscore=0", name="two-rewards")
    assert (folder / "rft.json").is_file()


def test_a_batch_of_one_image_cannot_be_told_apart(write_run, tmp_path):
    with pytest.raises(TrainingError, match=r"expected several images in a batch, found image .* alone in 1"):
        train(write_run(tmp_path), "align", "align.optimizer.batch_size=1")


def test_captions_longer_than_the_context_are_named(write_run, tmp_path, demo_folder):
    short = tmp_path / "short"
    short.mkdir()
    for file in (demo_folder / "llm").iterdir():
        if file.is_file():
            (short / file.name).write_bytes(file.read_bytes())
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 14}))
    with pytest.raises(
        DataError, match=r"captions: expected at most \d+ tokens beside the prompt, found \d+ in"
    ):
        train(write_run(tmp_path, encoder_from="random", llm=str(short)), "sft")


def test_betas_that_are_not_numbers_are_traced_to_their_image(write_run, tmp_path, monkeypatch):
    from bitllm.stages import align

    original = align.brain_input

    def poisoned(trials, anatomies, indices):
        batch = original(trials, anatomies, indices)
        batch.betas[2, 0] = float("nan")
        return batch

    config = write_run(tmp_path)
    monkeypatch.setattr(align, "brain_input", poisoned)
    with pytest.raises((TrainingError, DataError), match=r"nan|NaN|not numbers"):
        train(config, "align")


def test_embed_writes_targets(trained, demo_folder, tmp_path, capsys):
    out = tmp_path / "targets.safetensors"
    main(["embed", str(demo_folder / "store"), "--clip", str(demo_folder / "clip"), "--out", str(out)])
    assert "images, width 16" in capsys.readouterr().out
    made, known = load_file(out), load_file(demo_folder / "targets.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in known.items())
