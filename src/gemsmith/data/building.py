"""A folder that is written beside another one and takes its place when it is whole."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemsmith.data.index import INDEX_FILE
from gemsmith.data.shard_writer import stored
from gemsmith.errors import DataError


@contextmanager
def building_beside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that no other build has, and remove what is left of it.

    Raises:
        DataError: Another process is building there, or `folder` holds something that is no dataset.
    """
    if folder.exists() and not (folder / INDEX_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"folder must be empty or hold a dataset; got {str(folder)!r}, which holds something else. "
            "Choose another folder or remove what is in it."
        )
    building = folder.with_name(f".{folder.name}.building")
    with stored(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"a dataset must be built by one process at a time; got a second one for {str(folder)!r}. Wait for it."
            ) from error
        try:
            shutil.rmtree(building, ignore_errors=True)
            with stored(folder):
                building.mkdir()
            yield building
        finally:
            shutil.rmtree(building, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


def put_in_place(folder: Path, building: Path) -> None:
    """Put a whole dataset in the place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    building.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
