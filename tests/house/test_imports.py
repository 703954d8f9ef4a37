"""Every module can be imported with no data on the machine and no network, and opens no file of data."""

import json
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import importlib, json, os, pkgutil, socket, sys

opened, connected = [], []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.fsdecode(arguments[0]))
    elif event in ("socket.connect", "socket.getaddrinfo"):
        connected.append(event)

def refuse(self, *arguments, **options):
    raise OSError("no network in this test")

socket.socket.__init__ = refuse
sys.addaudithook(watch)
import bitllm
names = [module.name for module in pkgutil.walk_packages(bitllm.__path__, "bitllm.")]
failed = {}
for name in names:
    if name.endswith("__main__"):
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
package = os.path.dirname(os.path.abspath(bitllm.__file__))
print(json.dumps({"names": names, "failed": failed, "opened": opened, "connected": connected,
                  "package": package, "here": os.listdir("."), "prefixes": [sys.prefix, sys.base_prefix]}))
"""
_DATA = (".npy", ".npz", ".parquet", ".h5", ".hdf5", ".mat", ".nii", ".nii.gz", ".mgz", ".safetensors", ".gguf",
         ".bin", ".pt", ".csv", ".tsv", ".jsonl", ".yaml")  # fmt: skip


def test_every_module_imports_without_data_and_network(tmp_path: Path, root: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    modules = list((root / "src" / "bitllm").rglob("*.py"))
    assert found["failed"] == {}
    assert len(found["names"]) >= len(modules) - 1
    assert found["connected"] == []
    assert found["here"] == [], "an import wrote into the working directory"
    ours = [path for path in found["opened"] if path.startswith(found["package"] + "/")]
    assert [path for path in ours if not path.endswith((".py", ".pyc")) and ".pyc." not in path] == []
    elsewhere = [p for p in found["opened"] if not p.startswith((*found["prefixes"], found["package"]))]
    assert [path for path in elsewhere if path.endswith(_DATA)] == []
