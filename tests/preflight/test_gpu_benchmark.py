"""The benchmark of a GPU, at toy size on the CPU: rows are measured or skipped with a reason, and nothing is judged."""

import json

import gpu
import yaml


def test_the_benchmark_of_a_gpu_runs_at_toy_size(tiny_recipe, tmp_path, capsys):
    few = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3}
    for stage in ("align", "sft", "rft"):
        tiny_recipe[stage] = tiny_recipe.get(stage, {}) | {"optimizer": few}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    out = tmp_path / "gpu.json"
    assert gpu.main([str(tmp_path / "tiny.yaml"), "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["found"]
    skipped = {"sft_compiled_ratio", "resume_error", "ddp_error", "fsdp_error"}
    assert set(found) == set(gpu.PREDICTIONS) - skipped
    assert found["align_loss_error"] == 0
    assert found["pooling_error"] < 1e-5
    said = capsys.readouterr().out
    assert (said.count("not judged"), said.count("skipped")) == (len(found), len(skipped))
