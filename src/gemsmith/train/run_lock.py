"""A run folder belongs to one run, and to one owner."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gemsmith.errors import CheckpointError, TrainingError

_LOCK = ".lock"

_held: set[int] = set()  # open locks of this process


def _let_go_in_child() -> None:
    """Close inherited locks, so that a worker that outlives a killed run does not keep its folder locked."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def lock_run(out: Path) -> Iterator[None]:
    """Keep every other run out of a run folder; the system takes the lock back however the process ends.

    Raises:
        TrainingError: Another run works in the folder.
        CheckpointError: Somebody else may have prepared the folder.
    """
    import fcntl  # here, since Windows has none and imports this module too

    out.mkdir(parents=True, exist_ok=True)
    check_owner(out)
    handle = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(handle, 64).decode(errors="replace").strip()
        os.close(handle)
        raise TrainingError(
            f"run folder must be used by one run at a time; got {str(out)!r}, where process {owner or 'unknown'} "
            "trains. Wait for it, or choose another folder."
        ) from error
    _held.add(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        if handle in _held:  # not in a child that let go of it
            _held.discard(handle)
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def check_owner(path: Path) -> None:
    """Refuse a folder that somebody else may have prepared.

    What is ours is trusted, and what is another's too as long as only they can write there. Not what
    another owns if everybody may write into it or into the folder that holds it.

    Raises:
        CheckpointError: The folder is not to be trusted.
    """
    if not hasattr(os, "geteuid"):
        return
    found = path.stat()
    is_open = any(place.stat().st_mode & stat.S_IWOTH for place in (path, path.absolute().parent))
    if found.st_uid != os.geteuid() and is_open:
        raise CheckpointError(
            f"folder to resume from must be yours, or writable by its owner alone; got {str(path)!r} of user "
            f"{found.st_uid}, mode {stat.filemode(found.st_mode)}. Copy it to a folder of your own if you trust it."
        )
