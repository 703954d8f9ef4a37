"""What every test starts from: shapes checked while the tests run, no network, one seed."""

import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes test side by side: each has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

# While the hook runs a module, Python looks for cached bytecode of everything that the module imports under another
# name, and compiles it: so these come first.
for library in ("accelerate", "beartype.roar", "h5py", "nibabel", "peft", "scipy.stats", "sympy",
                "transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama"):  # fmt: skip
    importlib.import_module(library)

# Where tensors have shapes. Metrics and tables call small functions on text so often that checks double their time.
_CHECKED = ("model", "losses", "stages", "training", "data", "simulation")
install_import_hook([f"bitllm.{name}" for name in _CHECKED], "beartype.beartype")

import io
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from filelock import FileLock

from bitllm.cli import main
from bitllm.data.prepare import prepare_nsd
from bitllm.data.splits import Split, make_split, save_split
from bitllm.data.store import Store, open_store
from bitllm.data.targets import ClipEmbedder, Targets, load_clip
from bitllm.files import sha256_of_json
from bitllm.model.aligner import load_aligner
from bitllm.simulation.parameters import SimulationConfig, preset
from bitllm.simulation.release import simulate_release
from bitllm.stages.align import AlignConfig, EncoderConfig, train_align
from bitllm.stages.sft import SftConfig, train_sft
from bitllm.toy_models import SmallClipConfig, SmallLlmConfig, train_small_clip, train_small_llm
from bitllm.training.loop import OptimizerConfig


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator of random numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a shell script the only ``java`` on the path: ``fake_java("exit 1")``."""

    def make(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        java = folder / "java"
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(java.stat().st_mode | stat.S_IXUSR)
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return java

    return make


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Java."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


_FIRST = ("tests/demo/test_resume.py", "tests/model/test_smollm2.py", "tests/pipeline/test_processes.py",
          "tests/experiments/test_page.py", "tests/experiments/test_reproduce.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no process has one left at the end."""
    place = {name: number for number, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


MadeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A folder that several tests read, made by the first process that needs it: ``made_once("name", make)``."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, mark = root / f"made-{name}", root / f"made-{name}.whole"
        with FileLock(root / f"made-{name}.lock"):
            if not mark.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failure left
                folder.mkdir()
                make(folder)
                mark.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def demo_folder(made_once: MadeOnce) -> Path:
    """The whole road once, by the real command on the smallest configuration; for tests that only read."""

    def make(folder: Path) -> None:
        said = io.StringIO()
        with redirect_stdout(said):
            main(["demo", "--recipe", "smoke", "--out", str(folder / "out")])
        (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")

    return made_once("demo", make) / "out"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, where the machine has one; for one module, since it keeps an event loop running."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


class Visit:
    """A page in a browser of its own, with what it complained of and where it went."""

    def __init__(self, browser: Any, *, width: int = 1200, dark: bool = False, offline: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=offline,
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # for busy machines; nothing waits longer than it must
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))

    def overflow_px(self) -> int:
        """By how much the page is wider than the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def violations(self) -> list[str]:
        """Serious and critical violations that axe-core finds."""
        axe = pytest.importorskip(
            "axe_playwright_python.sync_playwright", reason="axe is not installed"
        ).Axe()
        found = axe.run(self.page).response["violations"]
        return [
            f"{one['id']}: {one['nodes'][0]['html'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Open a page: ``visit(address, width=360)``."""
    made: list[Visit] = []

    def open_page(address: str, **how: Any) -> Visit:
        made.append(Visit(browser, **how))
        made[-1].page.goto(address)
        return made[-1]

    yield open_page
    for one in made:
        one.context.close()


class EasyBrain(NamedTuple):
    """A simulated brain that is easy to decode, with what the stages need of it; for tests that only read."""

    folder: Path
    """Holds ``align``, ``llm`` and ``sft``, made by the stages themselves."""
    store: Store
    split: Split
    targets: Targets
    """The true features of each image's scene, in the place of a CLIP's embeddings."""
    encoder: EncoderConfig


@pytest.fixture(scope="session")
def easy_release(made_once: MadeOnce) -> Path:
    """The tiny preset with little noise and one tuning for all subjects, and its store."""
    changes = {"ncsnr_median": 3.0, "shared_tuning": 0.95, "voxel_tuning": 0.05, "misalignment_mm": 0.0}
    config = SimulationConfig.parse(preset("tiny").model_dump() | changes | {"voxel_mm": 12.0})

    def make(folder: Path) -> None:
        simulate_release(folder / "nsd", config, seed=1)
        prepare_nsd(folder / "nsd", folder / "store", seed=1, validation_fraction=0.3)

    return made_once("easy-release", make)


@pytest.fixture(scope="session")
def easy(easy_release: Path, made_once: MadeOnce) -> EasyBrain:
    """The easy brain with the small models trained on it."""
    store = open_store(easy_release / "store")
    split = make_split(store, "poster")
    targets = _true_targets(easy_release, store)

    def make(folder: Path) -> None:
        save_split(split, folder / "split.json")
        where, how = folder / "align", {"encoder_config": EASY_ENCODER, "config": EASY_ALIGN, "seed": 0}
        train_align(store, split, targets, where, **how)
        train_small_llm(store, folder / "llm", EASY_LLM, seed=0)
        train_easy_sft(EasyBrain(folder, store, split, targets, EASY_ENCODER), folder / "sft", EASY_SFT)

    return EasyBrain(made_once("easy", make), store, split, targets, EASY_ENCODER)


EASY_ENCODER = EncoderConfig(
    n_queries=64, rank=32, n_brain_tokens=4, token_width=32, n_blocks=1, n_frequencies=48
)
EASY_ALIGN = AlignConfig(
    optimizer=OptimizerConfig(steps=60, batch_size=64, learning_rate=2e-3, warmup_steps=5), validate_every=30
)
EASY_LLM = SmallLlmConfig(
    width=64,
    layers=2,
    heads=2,
    optimizer=OptimizerConfig(steps=150, batch_size=32, learning_rate=5e-3, warmup_steps=5),
)
EASY_SFT = SftConfig(
    adapter_layers=(0, 1),
    optimizer=OptimizerConfig(steps=60, batch_size=32, learning_rate=5e-3, warmup_steps=5),
    validate_every=30,
)


@pytest.fixture(scope="session")
def small_clip_folder(easy_release: Path, made_once: MadeOnce) -> Path:
    """A small CLIP, trained for a few steps on the easy brain's training images."""

    def make(folder: Path) -> None:
        train_small_clip(open_store(easy_release / "store"), folder / "clip", SMALL_CLIP, seed=0)

    return made_once("small-clip", make) / "clip"


@pytest.fixture(scope="session")
def small_clip(small_clip_folder: Path) -> ClipEmbedder:
    """The same, loaded."""
    return load_clip(small_clip_folder)


SMALL_CLIP = SmallClipConfig(
    image_px=32,
    patch_px=8,
    width=32,
    layers=1,
    embedding_width=16,
    optimizer=OptimizerConfig(steps=10, batch_size=16, learning_rate=1e-3, warmup_steps=2),
)


@pytest.fixture(scope="session")
def easy_sft():
    """Train sft on an easy brain: ``easy_sft(easy, folder, config)``."""
    return train_easy_sft


def train_easy_sft(brain: EasyBrain, folder: Path, config: SftConfig, *, seed: int = 0) -> None:
    train_sft(
        brain.store,
        brain.split,
        folder,
        start=load_aligner(brain.folder / "align").eval().encoder,
        encoder_arguments=brain.encoder.arguments(brain.store),
        atlases=brain.encoder.atlases,
        llm_path=brain.folder / "llm",
        config=config,
        seed=seed,
    )


def _true_targets(release: Path, store: Store) -> Targets:
    """The first principal components of the scenes' features, as unit vectors."""
    nsd_id = np.sort(store.stimuli.index.to_numpy())
    features = np.load(release / "nsd" / "simulation_truth" / "features.npy")[nsd_id].astype(np.float64)
    left, sizes, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    rows = (left * sizes)[:, :16]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Targets(nsd_id, rows, rows.copy())


@pytest.fixture(scope="session")
def resealed():
    """Change fields of a split, and give it the checksum of its new content."""

    def change(split: Split, **fields) -> Split:
        split = replace(split, **fields)
        content = {key: value for key, value in vars(split).items() if key != "sha256" and value is not None}
        listed = {
            key: value if isinstance(value, str | int) else sorted(value) for key, value in content.items()
        }
        return replace(split, sha256=sha256_of_json(listed))

    return change
