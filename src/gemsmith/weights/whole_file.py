"""A file that is written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemsmith.errors import StorageError
from gemsmith.weights.memory import in_gb


@contextmanager
def replacing_file(path: Path, *, is_ours: Callable[[Path], bool], n_bytes: int) -> Iterator[Path]:
    """Give a temporary file that takes the place of `path` at the end, or disappears on an error.

    Args:
        is_ours: Whether a file that stands there already is one that may be replaced.
        n_bytes: About how long it will be.

    Raises:
        StorageError: The disk is full or not writable, or the place holds something else.
    """
    partial = path.with_name(f".{path.name}.saving-{uuid.uuid4().hex[:8]}")
    try:
        if path.is_dir() or (path.exists() and not is_ours(path)):
            raise StorageError(
                f"file must be new or one of its kind; got {str(path)!r}, which is something else. Choose another name."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if n_bytes > free:
            raise StorageError(
                f"disk must have room for the whole file; got {in_gb(free)} for {in_gb(n_bytes)} at {str(path)!r}. "
                "Make room or choose another disk."
            )
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"file must be writable; got {error.strerror!r} while saving {str(path)!r}. What was there before is "
            "unchanged. Make room or choose another place."
        ) from error
    finally:
        with suppress(OSError):  # the error that led here says more
            partial.unlink(missing_ok=True)
