"""The models of this machine: a name -> its folder, and the list of all of them. Opens no connection."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gemsmith
from gemsmith.config import PUBLISHED, canonical_name, nearest_names
from gemsmith.errors import CheckpointError, GemsmithError, ModelNotFoundError
from gemsmith.weights.foreign import is_gguf, not_a_folder
from gemsmith.weights.json_file import read_json
from gemsmith.weights.keys import QUANTIZATION
from gemsmith.weights.memory import WORKSPACE_BYTES, available_bytes, check_plausible, in_gb
from gemsmith.weights.tensors import find_tensors
from gemsmith.weights.wire import MODEL_TYPES, parse_config

BOX = "pebble"
KAGGLE = "kaggle:"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelEntry:
    """One model of the list.

    Attributes:
        place: Where it was found: "box", "folder", "file", "hub" or "kaggle".
        n_bytes: Length of its weight files.
        n_params: Of the text model, None if its configuration cannot be read.
        needed_bytes: Memory to run it in the dtype of its files.
        note: "fits", "needs 12.3 GB here", or what is wrong with it.
    """

    name: str
    path: Path
    place: str
    n_bytes: int
    n_params: int | None
    needed_bytes: int
    note: str


def find_model(name: str) -> Path:
    """Return the folder of a model, or the GGUF file it is.

    Args:
        name: "pebble", a folder, a GGUF file, a hub name or another name of a published model that has been
            pulled or lies in the Hugging Face cache, or "kaggle:" and a handle that has been pulled.

    Raises:
        ModelNotFoundError: Nothing of that name is here; the nearest names and the command that
            fetches it are offered.
        CheckpointError: It is a file of another kind, a folder without weights, or half-written.
    """
    if name == BOX:
        return _complete(_box(), name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _complete(path, name)
    if name and is_gguf(path):
        return path
    if name and path.exists():
        raise not_a_folder(path)
    if name.startswith(KAGGLE):
        found, hub_name = _kaggle_folder(name.removeprefix(KAGGLE)), name
    else:
        hub_name = canonical_name(name)
        found = _hub_folder(hub_name)
    if found is not None:
        return _complete(found, hub_name, is_pulled=True)
    raise _not_found(name, hub_name)


def list_models(*, around: Path | None = None) -> list[ModelEntry]:
    """Return every model of this machine: the box, folders, GGUF files, the Hugging Face cache, kagglehub's.

    Args:
        around: The folder whose folders and GGUF files are looked at, the working directory by default.
    """
    around = Path.cwd() if around is None else around
    places = [(BOX, _box(), "box")]
    places += [(f"./{path.name}", path, "folder") for path in _subfolders(around)]
    pulled = [(name, path, "hub") for name, path in _hub_models()]
    pulled += [(KAGGLE + name, path, "kaggle") for name, path in _kaggle_models()]
    entries = [_entry(*place) for place in places if (place[1] / "config.json").is_file()]
    entries += [_file_entry(path) for path in _gguf_files(around)]
    entries += [_entry(*place) for place in pulled if (place[1] / "config.json").is_file()]
    return [entry for entry in entries if entry is not None]


def hub_cache() -> Path:
    """Return the Hugging Face cache, where its variables HF_HUB_CACHE, HF_HOME or XDG_CACHE_HOME put it."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(home) if home else cache / "huggingface").expanduser() / "hub"


def _complete(folder: Path, name: str, *, is_pulled: bool = False) -> Path:
    try:
        find_tensors(folder)
    except CheckpointError as error:
        if not is_pulled:
            raise
        raise CheckpointError(f"{error} To complete the download: gemsmith pull {name}") from error
    return folder


def _not_found(name: str, hub_name: str) -> ModelNotFoundError:
    if name.startswith(KAGGLE) or hub_name in PUBLISHED:
        return ModelNotFoundError(
            f"model must be on this machine; got {name!r}, which is not here yet. Fetch it: gemsmith pull {hub_name}"
        )
    here = tuple(entry.name for entry in list_models())
    start = f"model must be a folder, a model on this machine or a known name; got {name!r}."
    advice = f"Did you mean {', '.join(nearest_names(name, here))}?"
    if _HUB_NAME.fullmatch(name):
        advice += f" If it is on the hub: gemsmith pull {name}"
    return ModelNotFoundError(f"{start} {advice}")


def _box() -> Path:
    return Path(gemsmith.__file__).parent / BOX


def _subfolders(around: Path) -> list[Path]:
    try:
        return sorted(path for path in around.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _gguf_files(around: Path) -> list[Path]:
    try:
        return sorted(path for path in around.glob("*.gguf") if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _hub_folder(hub_name: str) -> Path | None:
    """Return the snapshot that "main" points to, or the newest one where no reference is kept."""
    repository = hub_cache() / f"models--{hub_name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    if not snapshots.is_dir():
        return None
    reference = repository / "refs" / "main"
    if reference.is_file():
        main = snapshots / reference.read_text().strip()
        if main.is_dir():
            return main
    newest = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime)
    return newest[-1] if newest else None


def _hub_models() -> Iterator[tuple[str, Path]]:
    for repository in sorted(hub_cache().glob("models--*--*")):
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        folder = _hub_folder(name)
        if folder is not None:
            yield name, folder


def _kaggle_root() -> Path:
    return Path(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser() / "models"


def _kaggle_folder(handle: str) -> Path | None:
    """Return the folder of a handle owner/model/framework/variation, its newest version where none is named."""
    folder = _kaggle_root() / handle
    if folder.name.isdigit():
        return folder if folder.is_dir() else None
    versions = [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return max(versions, key=lambda path: int(path.name), default=None)


def _kaggle_models() -> Iterator[tuple[str, Path]]:
    for variation in sorted(_kaggle_root().glob("*/*/*/*")):
        handle = "/".join(variation.parts[-4:])
        folder = _kaggle_folder(handle)
        if folder is not None:
            yield handle, folder


def _entry(name: str, path: Path, place: str) -> ModelEntry | None:
    """Return the line of a folder, or None if it is no model of this family."""
    weights = {file.resolve() for file in path.glob("*.safetensors")}
    n_bytes = sum(file.stat().st_size for file in weights if file.is_file())
    needed = n_bytes + WORKSPACE_BYTES
    note = _fit(needed)
    n_params = None
    try:
        raw = read_json(path / "config.json")
        if raw.get("model_type") not in MODEL_TYPES:
            return None
        if QUANTIZATION in raw:
            _check_quantization(raw[QUANTIZATION], path)
        # How matrices are stored changes no count.
        text = {key: value for key, value in raw.items() if key != QUANTIZATION}
        config = parse_config(text, source=str(path / "config.json"))
        n_params = config.n_params
        check_plausible(config, sum(entry.n_bytes for entry in find_tensors(path).values()), source=str(path))
    except GemsmithError as error:
        note = str(error)
    return ModelEntry(name, path, place, n_bytes, n_params, needed, note)


def _check_quantization(raw: object, path: Path) -> None:
    """Refuse a folder whose matrices are stored in a way that is not read."""
    from gemsmith.weights.compressed import parse_quantization  # brings torch, which dense folders do not need

    parse_quantization(raw, source=str(path / "config.json"))


def _file_entry(path: Path) -> ModelEntry | None:
    """Return the line of a GGUF file, or None if it is no model of this family, such as an image tower."""
    from gemsmith.weights.gguf_header import read_gguf
    from gemsmith.weights.gguf_load import GgufModel  # brings torch, which a list without such files does not need
    from gemsmith.weights.gguf_metadata import ARCHITECTURE, ARCHITECTURES

    n_bytes = path.stat().st_size
    n_params, needed = None, n_bytes + WORKSPACE_BYTES
    try:
        if read_gguf(path).metadata.get(ARCHITECTURE) not in ARCHITECTURES:
            return None
        model = GgufModel(path)
        n_params, needed = model.config.n_params, model.memory_bytes + WORKSPACE_BYTES
        note = _fit(needed)
    except GemsmithError as error:
        note = str(error)
    return ModelEntry(f"./{path.name}", path, "file", n_bytes, n_params, needed, note)


def _fit(needed: int) -> str:
    return "fits" if needed <= available_bytes() else f"needs {in_gb(needed)} here"
