"""Building the kernels: in place, in a wheel, without a compiler, and as the test program."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hatch_build = load_hook()
needs_compiler = pytest.mark.skipif(hatch_build.find_compiler() is None, reason="no C++ compiler here")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the test program is for Linux")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of what the build reads, with a library that is up to date."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    library = tmp_path / hatch_build.LIBRARY
    library.parent.mkdir(parents=True)
    library.touch()
    return tmp_path


def age(path: Path, seconds: float) -> None:
    before = path.stat().st_mtime
    os.utime(path, (before - seconds, before - seconds))


def test_only_newer_sources_ask_for_a_new_library(tree: Path) -> None:
    library = tree / hatch_build.LIBRARY
    for path in (*(tree / "csrc").iterdir(), tree / "hatch_build.py"):
        age(path, 100)
    assert hatch_build.is_fresh(library, tree)
    (tree / "csrc/test_kernels.cpp").touch()
    assert hatch_build.is_fresh(library, tree)
    (tree / "csrc/norm.inl").touch()
    age(library, 50)
    assert not hatch_build.is_fresh(library, tree)
    library.unlink()
    assert not hatch_build.is_fresh(library, tree)


def test_without_a_compiler_the_build_goes_on_and_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / hatch_build.LIBRARY).unlink()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert not hatch_build.build(tree, is_required=False)
    assert "no C++ compiler found ($CXX, c++, g++, clang++); the plain path will be used" in capsys.readouterr().err


def test_demanded_kernels_without_a_compiler_are_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / hatch_build.LIBRARY).unlink()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(hatch_build.BuildError, match=r"kernels are required, but no C\+\+ compiler found"):
        hatch_build.build(tree, is_required=True)


@needs_compiler
def test_what_the_compiler_refuses_is_shown(tree: Path) -> None:
    (tree / hatch_build.LIBRARY).unlink()
    for path in (tree / "csrc").glob("*.cpp"):
        path.write_text("int broken(")
    with pytest.raises(hatch_build.BuildError, match=r"refused the kernels:\n(.|\n)*error"):
        hatch_build.build(tree, is_required=True)


def test_environment_demands_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("GEMSMITH_REQUIRE_KERNELS", value)
        assert hatch_build.is_required() == wanted


def test_source_distribution_holds_what_the_build_needs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.name for path in (ROOT / "csrc").iterdir()} == {path.name for path in (folder / "csrc").iterdir()}
    assert (folder / "hatch_build.py").exists()
    assert not (folder / hatch_build.LIBRARY).exists()


def build_wheel(folder: Path, **environment: str) -> zipfile.ZipFile:
    """Build a wheel from a copy of the tree without a library, so that this one's stays."""
    tree = folder / "tree"
    shutil.copytree(
        ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("_gemsmith.so", "__pycache__", ".build-*")
    )
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "out")]
    subprocess.run(command, cwd=tree, env=os.environ | environment, check=True, capture_output=True)
    return zipfile.ZipFile(next((folder / "out").glob("*.whl")))


def test_wheel_without_a_compiler_serves_every_platform(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, CXX="/nowhere/c++", GEMSMITH_REQUIRE_KERNELS="0")
    assert wheel.filename is not None
    assert wheel.filename.endswith("-py3-none-any.whl")
    assert "gemsmith/kernels/_gemsmith.so" not in wheel.namelist()


@pytest.mark.slow
@needs_compiler
def test_wheel_with_kernels_names_its_platform(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, GEMSMITH_REQUIRE_KERNELS="1")
    assert wheel.filename is not None
    assert "-py3-none-" in wheel.filename
    assert not wheel.filename.endswith("any.whl")
    assert "gemsmith/kernels/_gemsmith.so" in wheel.namelist()
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("/WHEEL"))).decode()
    assert "Root-Is-Purelib: false" in metadata


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the kernels' test program, without sanitizers."""
    path = tmp_path_factory.mktemp("program") / "test_kernels"
    said = hatch_build.compile_program(hatch_build.find_compiler(), ROOT / "csrc", path, is_sanitized=False)
    assert said == ""
    return path


@needs_linux
@needs_compiler
def test_kernels_stay_within_their_buffers(program: Path) -> None:
    """Every buffer touches a page nobody may read or write."""
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    available = result.stdout.splitlines()[0].rpartition(" of ")[2].split(",")
    assert [line.partition(":")[0] for line in result.stdout.splitlines()[1:]] == available


@needs_linux
@needs_compiler
@pytest.mark.slow
def test_kernels_run_under_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "test_kernels"
    assert hatch_build.compile_program(hatch_build.find_compiler(), ROOT / "csrc", program, is_sanitized=True) == ""
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_linux
@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-user is not installed (apt install qemu-user)")
@pytest.mark.parametrize(("cpu", "wanted"), [("Haswell", "avx2"), ("Nehalem", "portable")])
def test_older_processors_get_what_they_can_run(program: Path, cpu: str, wanted: str) -> None:
    result = subprocess.run(["qemu-x86_64", "-cpu", cpu, program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"dispatch chose {wanted} of portable")


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_no_code_is_shared_between_instruction_sets(tmp_path: Path) -> None:
    """The linker keeps one copy of an inline function, perhaps with instructions this processor lacks."""
    compiler = hatch_build.find_compiler()
    for name, flags in hatch_build.units(compiler).items():
        if not name.startswith("isa_"):
            continue
        target = tmp_path / f"{name}.o"
        source = ROOT / "csrc" / f"{name}.cpp"
        assert hatch_build.run([*compiler, *hatch_build.FLAGS, *flags, "-c", str(source), "-o", str(target)]) == ""
        listing = subprocess.run(["nm", "--defined-only", target], capture_output=True, text=True, check=True).stdout
        shared = [line for line in listing.splitlines() if line.split()[-2] in "VWuvwTD"]
        assert [line.split()[-1].lstrip("_") for line in shared] == [f"gs_table_{name.removeprefix('isa_')}"]
