"""Downloads: the only part of gemsmith that opens a connection, and only when asked to."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemsmith.config import canonical_name, nearest_names
from gemsmith.errors import GemsmithError, HubError, ModelNotFoundError, StorageError
from gemsmith.weights.catalog import KAGGLE, find_model, hub_cache
from gemsmith.weights.download import RemoteFile, fetch, http_error
from gemsmith.weights.json_file import read_json
from gemsmith.weights.memory import in_gb
from gemsmith.weights.tensors import find_tensors
from gemsmith.weights.wire import parse_config

DEFAULT_ENDPOINT = "https://huggingface.co"
# All that is ever fetched; in this order, so that a model of another kind is refused by its first kilobyte.
_NEEDED = re.compile(
    r"config\.json|generation_config\.json|tokenizer_config\.json|tokenizer\.(model|json)"
    r"|model\.safetensors\.index\.json|model(-\d+-of-\d+)?\.safetensors"
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_KAGGLE_HANDLE = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+(/\d+)?")


def pull(name: str, *, revision: str = "main", show_progress: bool = True) -> Path:
    """Download a model into the Hugging Face cache and return its folder.

    HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_CACHE are honored. A download that broke off continues;
    files that are there already are not fetched again. Weights in other formats and code are never
    fetched.

    Args:
        name: A hub name, another name of a published model, or "kaggle:" and a handle such as
            google/gemma-2/transformers/gemma-2-2b-it.
        show_progress: Draw a bar on stderr.

    Raises:
        ModelNotFoundError: The name is none, or the hub has no such model.
        HubError: No network, the licence is not accepted, the token is refused, or it broke off.
        StorageError: The disk is full.
        ConfigError: It is no model of this family.
    """
    if name.startswith(KAGGLE):
        return _pull_kaggle(name.removeprefix(KAGGLE))
    hub_name = canonical_name(name)
    if not _HUB_NAME.fullmatch(hub_name):
        raise ModelNotFoundError(
            f"model must be a name on the hub, such as google/gemma-2-2b-it; got {name!r}. "
            f"Did you mean {', '.join(nearest_names(name))}?"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise HubError(f"pull must have a network; got HF_HUB_OFFLINE set while asked for {name!r}. Unset it.")
    with _explaining(hub_name):
        return _pull(hub_name, revision, show_progress=show_progress)


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def _pull(hub_name: str, revision: str, *, show_progress: bool) -> Path:
    from huggingface_hub.utils import build_hf_headers

    info = _repository(hub_name, revision)
    files = _needed(info, hub_name)
    repository = hub_cache() / f"models--{hub_name.replace('/', '--')}"
    snapshot = repository / "snapshots" / str(info.sha)
    _check_room(files, repository)
    headers = build_hf_headers()
    with _progress(sum(file.n_bytes for file in files), hub_name, show_progress=show_progress) as on_bytes:
        for file in files:
            fetch(file, repository / "blobs" / file.blob, headers=headers, on_bytes=on_bytes)
            _link(snapshot / file.name, repository / "blobs" / file.blob)
            if file.name == "config.json":
                parse_config(read_json(snapshot / file.name), source=f"config.json of {hub_name}")
    find_tensors(snapshot)
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(str(info.sha))
    return snapshot


def _repository(hub_name: str, revision: str) -> Any:
    """Return what the hub says about a model and its files."""
    from huggingface_hub import HfApi

    try:
        return HfApi(endpoint=_endpoint()).model_info(hub_name, revision=revision, files_metadata=True, timeout=30)
    except (TypeError, KeyError, ValueError) as error:
        raise HubError(
            f"hub must answer in its own format; got {error} from {_endpoint()} for {hub_name!r}. "
            "Check the name, and HF_ENDPOINT if it is set."
        ) from error


def _needed(info: Any, hub_name: str) -> list[RemoteFile]:
    names = [sibling.rfilename for sibling in info.siblings or ()]
    files = [
        RemoteFile(
            name=sibling.rfilename,
            url=f"{_endpoint()}/{hub_name}/resolve/{info.sha}/{sibling.rfilename}",
            n_bytes=sibling.size,
            blob=sibling.blob_id if sibling.lfs is None else sibling.lfs.sha256,
        )
        for sibling in info.siblings or ()
        if _NEEDED.fullmatch(sibling.rfilename)
    ]
    kinds = {Path(file.name).suffix for file in files}
    if ".safetensors" not in kinds or "config.json" not in names:
        held = ", ".join(sorted(names)[:6]) or "nothing"
        raise HubError(
            f"model must have config.json and model.safetensors on the hub; got {held} in {hub_name!r}. "
            "Choose the repository of the original weights."
        )
    return sorted(files, key=lambda file: (file.name != "config.json", file.n_bytes))


def _check_room(files: Sequence[RemoteFile], repository: Path) -> None:
    missing = [file for file in files if not (repository / "blobs" / file.blob).exists()]
    partial = [repository / "blobs" / f"{file.blob}.incomplete" for file in missing]
    n_bytes = sum(file.n_bytes for file in missing) - sum(path.stat().st_size for path in partial if path.exists())
    place = next(path for path in repository.parents if path.exists())
    free = shutil.disk_usage(place).free
    if n_bytes > free:
        raise StorageError(
            f"disk must have room for the model; got {in_gb(free)} free for {in_gb(n_bytes)} at {str(place)!r}. "
            "Make room, or set HF_HOME to another disk."
        )


def _link(link: Path, blob: Path) -> None:
    """Make the snapshot's file point to its blob, as the Hugging Face cache has it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)


@contextmanager
def _progress(n_bytes: int, name: str, *, show_progress: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show_progress) as progress:
        task = progress.add_task(name, total=n_bytes)
        yield lambda n_arrived: progress.advance(task, n_arrived)


@contextmanager
def _explaining(hub_name: str) -> Iterator[None]:
    """Say the hub's refusals in words."""
    from huggingface_hub import errors, get_token

    try:
        yield
    except GemsmithError:
        raise
    except errors.GatedRepoError as error:
        reason = "the account of your token has not accepted it" if get_token() else "no token was sent"
        raise HubError(
            f"licence must be accepted before {hub_name!r} can be downloaded; got status {_status(error)}: {reason}. "
            f"Accept it on {_endpoint()}/{hub_name}, then log in with hf auth login or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"revision must exist on the hub; got none such for {hub_name!r}. Leave it out.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"model must exist on the hub; got {hub_name!r}, which {_endpoint()} does not show. Did you mean "
            f"{', '.join(nearest_names(hub_name))}? If it is private, log in with hf auth login or set HF_TOKEN."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"pull must have a network; got offline mode while asked for {hub_name!r}. Leave it.") from error
    except errors.HfHubHTTPError as error:
        status = _status(error)
        advice = "Your token was refused: renew it with hf auth login." if status == 401 else "Try again later."
        raise HubError(f"hub must answer; got status {status} for {hub_name!r} from {_endpoint()}. {advice}") from error
    except http_error() as error:
        raise HubError(
            f"hub must be reachable; got {error} from {_endpoint()} while asked for {hub_name!r}. Is there a network? "
            "Models that are here already: gemsmith models"
        ) from error


def _status(error: Any) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _pull_kaggle(handle: str) -> Path:
    """Download through kagglehub, which keeps its own cache and credentials."""
    name = f"{KAGGLE}{handle}"
    parts = handle.split("/")
    if not _KAGGLE_HANDLE.fullmatch(handle) or parts[2].lower() != "transformers":
        raise ModelNotFoundError(
            f"kaggle name must be owner/model/transformers/variation; got {handle!r}. "
            "For instance kaggle:google/gemma-2/transformers/gemma-2-2b-it. Other formats are not read by this version."
        )
    try:
        import kagglehub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise HubError(
            f"kaggle: names must have kagglehub installed; got {name!r} without it. Run pip install 'gemsmith[hub]'."
        ) from error
    try:
        kagglehub.model_download(handle)
    except Exception as error:  # kagglehub raises its own, requests' and plain exceptions.
        raise _kaggle_error(name, error) from error
    return find_model(name)


def _kaggle_error(name: str, error: Exception) -> HubError:
    status = _status(error)
    if status in (401, 403):
        advice = "Accept the licence on kaggle.com and log in with kagglehub.login()."
    elif status == 404:
        advice = "Check the name on kaggle.com: owner/model/transformers/variation."
    else:
        advice = "Is there a network? Run it again: it continues."
    said = " ".join(str(error).split())
    return HubError(f"download from kaggle must succeed; got status {status} for {name!r} ({said:.200}). {advice}")
