"""The house itself: who may import whom, no module under two names, what a wheel holds."""

import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("io", "evaluate", "extract", "heads", "ensemble", "demo", "cli")
ALLOWED = {
    "io": {"io"},
    "evaluate": {"io", "evaluate"},
    "extract": {"io", "evaluate", "extract"},
    "heads": {"io", "evaluate", "heads"},
    "ensemble": {"io", "evaluate", "ensemble"},
    "demo": {"io", "demo"},
    "cli": set(ROOMS),
}


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; name the package in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_floors_import_downwards_only(room: str) -> None:
    files = sorted((ROOT / room).glob("**/*.py"))
    assert files
    for file in files:
        used = {name.split(".")[1] for name in imported_modules(file) if name.startswith("talstack.")}
        assert used <= ALLOWED[room], f"{file.relative_to(ROOT)} imports from {used - ALLOWED[room]}"


def test_no_module_is_imported_under_two_names() -> None:
    rooms = set(ROOMS) - {"io"}  # `import io` is the standard library's
    for file in [f for room in (*ROOMS, "tests", "benchmarks") for f in (ROOT / room).glob("**/*.py")]:
        roots = {name.split(".")[0] for name in imported_modules(file)}
        assert not roots & rooms, f"{file.relative_to(ROOT)}: import {roots & rooms} as talstack.<room>"


def test_torch_stays_in_stage_one() -> None:
    for room in set(ROOMS) - {"extract"}:
        for file in (ROOT / room).glob("**/*.py"):
            roots = {name.split(".")[0] for name in imported_modules(file)}
            assert not roots & {"torch", "torchvision"}, f"{file.relative_to(ROOT)} imports torch"


def test_standard_library_io_is_untouched_and_talstack_comes_from_here() -> None:
    assert Path(io.__file__).parent != ROOT / "io"
    code = "import io, talstack.io.grid as g; print(g.__file__); io.StringIO()"
    out = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    origin = Path(out.stdout.strip())
    assert origin == ROOT / "io" / "grid.py" or "site-packages" in origin.parts
    assert not (ROOT / "io" / "__init__.py").exists(), "type checkers would take io/ for the standard library's"


def test_help_and_finished_extraction_need_no_torch() -> None:
    code = "import sys, talstack.cli.main, talstack.extract.plan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")


def test_linear_heads_and_their_ensemble_start_without_lightgbm_and_what_it_brings_along() -> None:
    slow = "{'lightgbm', 'sklearn', 'scipy.stats', 'torch'}"
    rooms = "talstack.heads.run, talstack.heads.quality, talstack.ensemble.run"
    code = f"import sys, {rooms}; sys.exit(bool({slow} & set(sys.modules)))"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")


@pytest.mark.slow
def test_wheel_of_a_clean_tree_holds_exactly_the_rooms(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
    subprocess.run([sys.executable, "-P", "-m", "build", "--wheel", "-o", str(tmp_path), str(tree)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    expected = {f"talstack/{f.relative_to(tree)}" for room in ROOMS for f in (tree / room).glob("**/*.py")}
    assert set(names) == expected
    site = tmp_path / "site"
    pip = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import io, talstack.io.grid as g; print(g.__file__)"
    out = subprocess.run(
        [sys.executable, "-P", "-S", "-c", code.replace("import io", "import site; site.main(); import io")],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert Path(out.stdout.strip()) == site / "talstack" / "io" / "grid.py"
