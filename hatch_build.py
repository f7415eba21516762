"""Build csrc/ into one shared object with whatever C++ compiler there is; without one, install goes on.

Hatchling calls the hook for wheels and editable installs; `python hatch_build.py` rebuilds in place,
`python hatch_build.py --program FILE [--sanitize]` compiles the kernels' test program instead.
GEMSMITH_REQUIRE_KERNELS=1 makes a build without the library fail.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
LIBRARY = Path("src/gemsmith/kernels/_gemsmith.so")
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: a NaN that comes in must come out, for training stops on it.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-Wall",
    "-Wno-uninitialized", "-Wno-ignored-attributes", "-Wno-psabi",
)  # fmt: skip
NOT_FOR_TESTS = ("-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-O3")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni")
# Each instruction set is a unit of its own, the only one compiled with its flags.
X86_UNITS = {
    "isa_avx2": AVX2,
    "isa_avx512": AVX512,
    "isa_avx512_bf16": BF16,
    "isa_amx": (*BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}


class BuildError(RuntimeError):
    """The library was asked for and cannot be built."""


class CustomBuildHook(BuildHookInterface):
    """Compile before a wheel or an editable install is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library in place and, where it is there, tag the wheel with this platform."""
        if build(Path(self.root), is_required=is_required()) and version != "editable":
            build_data["artifacts"].append(f"/{LIBRARY.as_posix()}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if not is_fresh(Path(self.root, LIBRARY), Path(self.root)):
            Path(self.root, LIBRARY).unlink(missing_ok=True)  # an outdated one would be worse than none


def is_required() -> bool:
    """Tell whether GEMSMITH_REQUIRE_KERNELS asks for the library."""
    return os.environ.get("GEMSMITH_REQUIRE_KERNELS", "0") not in ("", "0")


def build(root: Path, *, is_required: bool) -> bool:
    """Return whether the library is there and as new as its sources, after compiling it if need be.

    Raises:
        BuildError: It is required and there is no compiler, or the compiler refused.
    """
    library = root / LIBRARY
    if is_fresh(library, root):
        return True
    compiler = find_compiler()
    if compiler is None:
        said = f"no C++ compiler found ($CXX, {', '.join(COMPILERS)})"
    elif said := compile_library(compiler, root / "csrc", library):
        said = f"{' '.join(compiler)} refused the kernels:\n{said}"
    else:
        return True
    if is_required:
        raise BuildError(f"compiled kernels are required, but {said}")
    print(f"gemsmith: {said}; the plain path will be used", file=sys.stderr)
    return False


def is_fresh(library: Path, root: Path) -> bool:
    """Tell whether the library is newer than everything it is made from."""
    sources = [path for path in (root / "csrc").iterdir() if not path.name.startswith("test_")]
    return library.exists() and library.stat().st_mtime > max(
        path.stat().st_mtime for path in (*sources, root / "hatch_build.py")
    )


def find_compiler() -> list[str] | None:
    """Return the command of the C++ compiler, $CXX first."""
    if asked := os.environ.get("CXX", "").split():
        return asked if shutil.which(asked[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def compile_library(compiler: list[str], source: Path, library: Path) -> str:
    """Compile every unit and link them; return what the compiler said where it failed, "" otherwise."""
    return compile_units(compiler, source, library, flags=FLAGS, own=units(compiler), link=("-shared", *link_flags()))


def compile_program(compiler: list[str], source: Path, program: Path, *, is_sanitized: bool) -> str:
    """Compile the test program, kernels included; return what the compiler said where it failed, "" otherwise."""
    known = units(compiler)
    # test_tiles_X has the flags of isa_X.
    stems = [path.stem for path in sorted(source.glob("test_*.cpp"))]
    tests = {stem: known.get(stem.replace("test_tiles_", "isa_"), ()) for stem in stems}
    flags, link = ("-O1", *(flag for flag in FLAGS if flag not in NOT_FOR_TESTS)), ("-rdynamic", *link_flags())
    if is_sanitized:
        flags, link = (*flags, *SANITIZERS), (*link, *SANITIZERS)
    return compile_units(compiler, source, program, flags=flags, own={**known, **tests}, link=link)


def compile_units(
    compiler: list[str],
    source: Path,
    product: Path,
    *,
    flags: tuple[str, ...],
    own: dict[str, tuple[str, ...]],
    link: tuple[str, ...],
) -> str:
    """Compile units with common flags and their own, link them into `product`; return what failed."""
    with tempfile.TemporaryDirectory(dir=product.parent, prefix=".build-") as folder:
        made = Path(folder, product.name)
        objects = {name: Path(folder, f"{name}.o") for name in own}
        commands = [
            [*compiler, *flags, *own[name], "-c", str(source / f"{name}.cpp"), "-o", str(objects[name])] for name in own
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = "".join(pool.map(run, commands))
        said = said or run([*compiler, *map(str, objects.values()), *link, "-o", str(made)])
        if not said:
            made.replace(product)
        return said


def units(compiler: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the units of this processor's family that the compiler knows, with their own flags."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    probe = [*compiler, "-x", "c++", "-fsyntax-only", os.devnull]
    known = {name: flags for name, flags in X86_UNITS.items() if is_x86 and not run([*probe, *flags])}
    mentioned = tuple(f"-DGS_HAS_{name.removeprefix('isa_').upper()}" for name in known)
    return {"threads": (), "early": (), "dispatch": mentioned, "isa_portable": (), **known}


def link_flags() -> tuple[str, ...]:
    """Return flags that keep every library we do not use, OpenMP's above all, out of ours."""
    return () if sys.platform == "darwin" else ("-Wl,--as-needed", "-ldl", "-lm")


def run(command: list[str]) -> str:
    """Return what a command that failed said, "" for one that did not."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stderr or f"{command[0]} ended with {result.returncode}"


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compile csrc/.")
    parser.add_argument("--program", type=Path, help="compile the test program into this file instead")
    parser.add_argument("--sanitize", action="store_true", help="with address and undefined-behavior sanitizers")
    asked = parser.parse_args()
    if asked.program is None:
        build(ROOT, is_required=True)
        return
    asked.program.parent.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler()
    said = "no C++ compiler found"
    if compiler is not None:
        said = compile_program(compiler, ROOT / "csrc", asked.program, is_sanitized=asked.sanitize)
    if said:
        raise BuildError(said)


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(str(error))
