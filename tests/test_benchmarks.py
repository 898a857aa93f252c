"""Benchmarks are run by hand and seldom; here it is seen that each still loads and says what it can do."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"
SHARED = ("network", "setting", "heads_data", "heads_mhad", "peer_ours", "peer_train")  # what others import or start
LOAD_ALL = """
import importlib.util, sys
from click.testing import CliRunner
for path in sys.argv[1:]:
    name = path.rpartition("/")[2].removesuffix(".py")
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    shown = CliRunner().invoke(module.main, ["--help"])
    assert shown.exit_code == 0 and "Usage:" in shown.output, (path, shown.output)
    print(name)
"""
LIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"av", "h5py", "joblib", "onnx", "onnxruntime", "polars", "safetensors", "sklearn"}))
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_benchmark_loads_and_explains_itself() -> None:
    paths = sorted(path for path in FOLDER.glob("*.py") if path.stem not in SHARED)
    assert len(paths) > 10
    assert run(LOAD_ALL, *map(str, paths)).split() == [path.stem for path in paths]


def test_the_gpu_benchmark_needs_few_packages() -> None:
    assert run(LIGHT, str(FOLDER)) == "[]"
