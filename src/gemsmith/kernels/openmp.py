"""The OpenMP libraries this process has loaded; two of them fight over the cores."""

import ctypes
import os
import sys
from pathlib import Path

_NAMES = ("libgomp", "libiomp", "libomp")


def loaded_runtimes(root: Path = Path("/")) -> list[str]:
    """List the paths of OpenMP libraries in this process, read below `root` on Linux."""
    paths = _macos_images() if sys.platform == "darwin" else _mapped(root / "proc/self/maps")
    return sorted({os.path.realpath(path) for path in paths if Path(path).name.startswith(_NAMES)})


def _mapped(maps: Path) -> list[str]:
    try:
        return maps.read_text(errors="replace").split()
    except OSError:
        return []


def _macos_images() -> list[str]:
    loader = ctypes.CDLL(None)
    loader._dyld_get_image_name.restype = ctypes.c_char_p
    return [loader._dyld_get_image_name(index).decode() for index in range(loader._dyld_image_count())]
