import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bitllm.cli import main
from bitllm.errors import OutputError
from bitllm.pipeline.steps import Steps
from bitllm.stages.sft import SftConfig
from bitllm.training.loop import OptimizerConfig

SYSTEMS = ["sft", "rft", "prefix", "prefix_mlp", "no_align"]
CAPTIONS = ["captions/sft.jsonl", "captions/rft.jsonl"]


@pytest.fixture
def copied(demo_folder, tmp_path):
    """A finished demo that a test may change."""
    return shutil.copytree(demo_folder, tmp_path / "demo")


def run(folder, capsys, config="smoke"):
    """Run the demo; return the steps that were made and those that were kept."""
    main(["demo", "--recipe", str(config), "--out", str(folder)])
    said = capsys.readouterr().out
    kept = re.findall(r"^(\S.*?) +kept from an earlier run$", said, flags=re.MULTILINE)
    made = re.findall(r"^(\S.*?) +\d+\.\d s$", said, flags=re.MULTILINE)
    return made, kept


def start(folder, config="smoke"):
    return subprocess.Popen(
        [sys.executable, "-m", "bitllm", "demo", "--recipe", str(config), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
        # a shell that runs the tests in the background has them ignore Ctrl-C, which a child inherits
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def stop_when(process, has_come, how):
    """Send a signal as soon as ``has_come()``; fail if the run ends before."""
    deadline = time.monotonic() + 120
    while not has_come():
        assert process.poll() is None, "the demo ended before the moment came"
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.002)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def holds(path):
    return path.is_file() and path.stat().st_size > 0


def test_a_second_run_keeps_every_step(copied, capsys):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    made, kept = run(copied, capsys)
    assert made == []
    assert len(kept) == 18
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")} == before


def test_a_step_without_its_mark_is_made_again_and_alone(copied, capsys):
    (copied / "evaluation" / "steps" / "evaluate rft.json").unlink()
    (copied / "evaluation" / "rft" / "part.json").write_text("half a li")
    made, kept = run(copied, capsys)
    assert made == ["evaluate rft"]
    assert len(kept) == 17


def test_a_changed_setting_makes_exactly_what_depends_on_it_again(copied, capsys, tmp_path):
    (tmp_path / "other.yaml").write_text("base: smoke\nrft: {n_captions: 3}")
    made, _ = run(copied, capsys, config=tmp_path / "other.yaml")
    assert made == ["rft", "evaluate rft"]


def test_a_changed_interface_setting_makes_all_of_sft_again_but_not_the_encoder(copied, capsys, tmp_path):
    (tmp_path / "other.yaml").write_text("base: smoke\nsft: {adapter_layers: [1]}")
    made, kept = run(copied, capsys, config=tmp_path / "other.yaml")
    # the linear prefix has no adapters: trained again, it has the same weights, and its evaluation stays valid
    assert made == [*SYSTEMS, *(f"evaluate {name}" for name in SYSTEMS if name != "prefix")]
    reused = ["simulate", "prepare", "split", "clip", "llm", "targets", "align", "evaluate encoder"]
    assert sorted(kept) == sorted([*reused, "evaluate prefix"])


def test_a_run_killed_three_times_goes_on_and_ends_with_the_same_captions(demo_folder, tmp_path, capsys):
    """SIGKILL while the simulation is written, in the middle of sft and of rft; then one run to the end."""
    out, config = tmp_path / "demo", tmp_path / "short.yaml"
    config.write_text("base: smoke\nvariants: {}")
    moments = [
        (out / "nsd.unfinished" / "nsddata" / "ppdata" / "subj03").is_dir,
        lambda: holds(out / "sft.training" / "log.jsonl"),
        lambda: holds(out / "rft.training" / "log.jsonl"),
    ]
    for moment, step in zip(moments, ["simulate", "sft", "rft"], strict=True):
        code, _, _ = stop_when(start(out, config), moment, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (out / "steps" / f"{step}.json").exists()
        assert not (out / "results.json").exists()
    made, kept = run(out, capsys, config=config)
    assert kept == ["simulate", "prepare", "split", "clip", "llm", "targets", "align", "sft"]
    assert made == ["rft", "evaluate encoder", "evaluate sft", "evaluate rft"]
    for file in ("sft/model.safetensors", "rft/adapter_model.safetensors", *CAPTIONS):
        assert (out / file).read_bytes() == (demo_folder / file).read_bytes(), file


def test_what_a_killed_run_began_is_not_mixed_into_the_checkpoint(easy, easy_sft, tmp_path):
    """The log of steps that were thrown away would show as a second curve in TensorBoard."""
    log = tmp_path / "sft.training"
    (log / "runs" / "killed").mkdir(parents=True)
    (log / "runs" / "killed" / "events.out.tfevents.1").write_bytes(b"of a run that was killed")
    short = OptimizerConfig(steps=1, batch_size=2, learning_rate=1e-3, warmup_steps=0)
    easy_sft(easy, tmp_path / "sft", SftConfig(adapter_layers=(0,), optimizer=short))
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]
    assert not (tmp_path / "sft" / "runs" / "killed").exists()


def test_ctrl_c_exits_130_with_one_line_and_leaves_nothing_half_written(tmp_path):
    out = tmp_path / "demo"
    code, _, err = stop_when(start(out), lambda: holds(out / "steps" / "prepare.json"), signal.SIGINT)
    assert code == 130
    lines = [line for line in err.splitlines() if line.strip()]
    assert lines[-1].startswith("bitllm: interrupted; ")
    assert "Traceback" not in err
    assert list(out.glob("*.unfinished")) == []


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="expected a new folder or that of an earlier demo, found other"):
        Steps(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(OutputError, match="demo: expected"):
        Steps(tmp_path / "demo", print)


def test_a_step_that_fails_has_no_mark_and_is_made_by_the_next_run(tmp_path):
    def fail():
        raise RuntimeError("in the middle")

    steps = Steps(tmp_path / "demo", lambda line: None)
    with pytest.raises(RuntimeError, match="in the middle"):
        steps.run("one", fail, settings=1)
    assert list((tmp_path / "demo" / "steps").glob("*.json")) == []
    made = []
    for _ in range(2):
        steps = Steps(tmp_path / "demo", lambda line: None)
        steps.run("one", lambda: made.append("one"), settings=1)
    assert made == ["one"]
    assert steps.kept == ["one"]


def test_a_step_is_made_again_when_its_settings_or_a_step_before_it_change(tmp_path):
    made = []

    def road(first, second):
        steps = Steps(tmp_path / "demo", lambda line: None)
        steps.run("first", lambda: made.append("first"), settings=first)
        steps.run("second", lambda: made.append("second"), settings=second, after=("first",))
        steps.run("alone", lambda: made.append("alone"), settings=0)
        return steps

    road(1, 1)
    road(1, 2)
    road(2, 2)
    assert made == ["first", "second", "alone", "second", "first", "second"]
    assert road(2, 2).kept == ["first", "second", "alone"]
    assert json.loads((tmp_path / "demo" / "steps" / "first.json").read_text())["seconds"] == 0.0
