"""The tensors of a folder: one file or shards under an index, found and checked by their headers."""

from collections.abc import Mapping
from pathlib import Path

from gemsmith.errors import CheckpointError
from gemsmith.weights.foreign import no_weights, not_a_folder
from gemsmith.weights.header import Entry, read_header
from gemsmith.weights.json_file import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def find_tensors(folder: Path) -> dict[str, Entry]:
    """Return where every tensor of a model folder lies, by its name in the files.

    Raises:
        CheckpointError: The folder holds no weights (what it holds instead is named), a shard is
            missing, a tensor is missing or stands twice, or a file is damaged.
    """
    if not folder.is_dir():
        raise not_a_folder(folder)
    has_single, has_index = (folder / SINGLE_FILE).is_file(), (folder / INDEX_FILE).is_file()
    if has_single and has_index:
        raise CheckpointError(
            f"folder must hold one set of weights; got both {SINGLE_FILE} and {INDEX_FILE} in {str(folder)!r}. "
            "Remove the one that is out of date."
        )
    if has_single:
        return read_header(folder / SINGLE_FILE)
    if has_index:
        return _sharded(folder)
    raise no_weights(folder)


def _sharded(folder: Path) -> dict[str, Entry]:
    places = _read_index(folder)
    found: dict[str, Entry] = {}
    for file_name in sorted(set(places.values())):
        path = folder / file_name
        if not path.is_file():
            held = sum((folder / place).is_file() for place in places.values())
            raise CheckpointError(
                f"folder must hold every file of its index; got no {file_name!r} in {str(folder)!r}, so only {held} of "
                f"{len(places)} tensors. Was the download interrupted? Run it again."
            )
        for name, entry in read_header(path).items():
            if name in found:
                raise CheckpointError(
                    f"each tensor must stand once in a folder; got {name!r} in {found[name].path.name!r} and "
                    f"{file_name!r} of {str(folder)!r}. Remove one."
                )
            if name not in places:
                raise CheckpointError(
                    f"{INDEX_FILE} must list every tensor; got {name!r} of {file_name!r} unlisted in {str(folder)!r}. "
                    "Fetch the index and its files from one place."
                )
            found[name] = entry
    missing = next((name for name in places if name not in found), None)
    if missing is not None:
        raise CheckpointError(
            f"{places[missing]} must hold the tensors its index lists; got no {missing!r} in {str(folder)!r}. "
            "Fetch the index and its files from one place."
        )
    return found


def _read_index(folder: Path) -> Mapping[str, str]:
    places = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"weight_map must list tensors; got {places!r:.60} in {INDEX_FILE} of {str(folder)!r}. Fetch it again."
        )
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place or not place.endswith(".safetensors"):
            raise CheckpointError(
                f"weight_map must name safetensors files of its own folder; got {place!r} for {name!r} in "
                f"{str(folder)!r}. Do not trust this index."
            )
    return places
