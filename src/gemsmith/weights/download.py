"""One file over HTTP into its place: continued where it broke off, checked by its hash, moved in whole."""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemsmith.errors import HubError, StorageError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_MAX_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        blob: Its SHA-256, or for files kept in git itself the SHA-1 git knows it by; the Hugging Face
            cache names its copy so.
    """

    name: str
    url: str
    n_bytes: int
    blob: str


def fetch(
    file: RemoteFile, target: Path, *, headers: Mapping[str, str], on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Download a file to `target` unless it is there.

    The part that arrived stays beside it as `*.incomplete` and is continued by the next call.

    Args:
        on_bytes: Called with the number of bytes that arrived, those of an earlier call first.

    Raises:
        HubError: The connection broke off for good, or the contents are not the announced ones.
        StorageError: The disk is full or not writable.
    """
    partial = target.with_name(f"{target.name}.incomplete")
    if target.exists():
        on_bytes(file.n_bytes)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as out:
            _lock(out, file)
            on_bytes(out.tell())
            _fill(out, file, headers, on_bytes)
            out.flush()
            os.fsync(out.fileno())
            _check(partial, file)
            partial.replace(target)
    except OSError as error:
        if isinstance(error, http_error()):
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Make room and run it again: it continues." if is_full else "Check the folder and its permissions."
        raise StorageError(
            f"download must be writable; got {error.strerror!r} for {file.name} in {str(target.parent)!r}. {advice}"
        ) from error


def _fill(out: BinaryIO, file: RemoteFile, headers: Mapping[str, str], on_bytes: Callable[[int], None]) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    n_failures = 0
    while out.tell() < file.n_bytes:
        before = out.tell()
        try:
            _stream(out, file, headers, on_bytes)
            broke: Exception | None = None
        except HfHubHTTPError:
            raise
        except http_error() as error:
            broke = error
        n_failures = 0 if out.tell() > before else n_failures + 1
        if n_failures >= _MAX_ATTEMPTS:
            raise HubError(
                f"download must arrive whole; got {out.tell()} of {file.n_bytes} bytes of {file.name} ({broke}). "
                "Run it again: it continues from there."
            ) from broke
        if out.tell() < file.n_bytes:
            time.sleep(_PAUSE_SECONDS)


def _stream(out: BinaryIO, file: RemoteFile, headers: Mapping[str, str], on_bytes: Callable[[int], None]) -> None:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    start = out.tell()
    # Compression would make lengths and places of the bytes meaningless.
    wanted = {**headers, "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    session = get_session()
    with session.stream("GET", file.url, headers=wanted, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            # The server sends all of it again.
            out.truncate(0)
            on_bytes(-start)
        # As it arrives: gathered into chunks of one size, the last part before a cut would be lost.
        for chunk in response.iter_bytes():
            out.write(chunk)
            on_bytes(len(chunk))


def _lock(out: BinaryIO, file: RemoteFile) -> None:
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HubError(
            f"download must run once at a time; got {file.name} locked by another process. Wait for the other one."
        ) from error


def _check(partial: Path, file: RemoteFile) -> None:
    n_bytes = partial.stat().st_size
    digest = hashlib.sha256() if len(file.blob) == 64 else hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    with partial.open("rb") as whole:
        while chunk := whole.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.blob:
        partial.unlink()
        raise HubError(
            f"{file.name} must have the hash {file.blob} the hub announced; got {digest.hexdigest()} in "
            f"{n_bytes} bytes. What arrived was removed: run it again."
        )


def http_error() -> type[Exception]:
    """Return the class above all errors of the hub's HTTP library, which differs between its versions."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return HTTPError
