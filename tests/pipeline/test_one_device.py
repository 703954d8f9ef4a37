"""Every command on a pretend GPU: models run there, and no operation takes tensors of both devices."""

import shutil

from bitllm.cli import main
from bitllm.explore.jobs import Job
from bitllm.explore.schemas import Ask
from bitllm.explore.work import Decoder, open_session
from pretend_cuda import pretend_gpu

STAGES = ("align", "sft", "prefix", "prefix_mlp", "rft")
ONE_STEP = [
    word for part in ("clip.small", "align", "sft", "rft") for word in (f"--{part}.optimizer.steps", "1")
]


def test_every_command_runs_its_models_on_the_device_and_mixes_nothing(demo_folder, tmp_path):
    run, store, clip = tmp_path / "run", tmp_path / "run" / "store", tmp_path / "run" / "clip"
    shutil.copytree(demo_folder, run)
    rft, captions = ["--systems", "rft", "--likelihood", "all"], run / "captions" / "rft.jsonl"
    with pretend_gpu() as counts:
        for command in (
            ["train", run / "recipe.yaml", *STAGES, "--out", run, *ONE_STEP],
            ["evaluate", run, *rft, "--rois", "floc-faces:FFA-1", "--maps", tmp_path / "maps"],
            ["score", captions, "--bertscore", clip, "--no-meteor", "--no-spice"],
            ["score", captions, "--clip", clip, "--images", store, "--no-meteor", "--no-spice"],
            ["embed", store, "--clip", clip, "--out", tmp_path / "targets.safetensors"],
            ["split", store, tmp_path / "split.json", "--max-cosine", "0.999", "--embeddings", clip],
        ):
            before = counts.kernels
            main([str(word) for word in command])
            assert counts.kernels > before, command
        main(["export", str(run), str(tmp_path / "exported")])
        session = open_session(run, store)
        image = session.images("subj08", "test", offset=0, limit=1).images[0].nsd_id
        ask = {"subject": "subj08", "nsd_id": image, "perturbation": "silence", "roi": "floc-faces"}
        for system in ("rft", "prefix_mlp"):
            Decoder(session, max_new_tokens=4)(Job(Ask(system=system, **ask)))
    assert not counts.mixtures, counts.describe()
