"""Downloads, from a stand-in hub over HTTP on this machine."""

import builtins
import errno
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemsmith.errors import CheckpointError, ConfigError, HubError, ModelNotFoundError, StorageError
from gemsmith.weights import download
from gemsmith.weights.catalog import find_model
from gemsmith.weights.folder import load_network, save_folder
from gemsmith.weights.hub import pull
from gemsmith.weights.manifest import verify_hashes
from tiny import tiny_network
from weights.stand_in_hub import COMMIT, TOKEN, StandInHub

NAME = "google/gemma-2-2b-it"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def published(tmp_path: Path) -> dict[str, bytes]:
    """What a repository of the hub holds: the model, and files nobody should fetch."""
    folder = save_folder(tmp_path / "source", tiny_network("gemma2"))
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "MANIFEST.json"}
    files |= {"tokenizer.model": b"pieces", "tokenizer.json": b"[]", "tokenizer_config.json": b"{}"}
    strangers = ("pytorch_model.bin", "modeling.py", "README.md", ".gitattributes", "onnx/model.safetensors", "x.gguf")
    return files | dict.fromkeys(strangers, b"no")


@pytest.fixture
def hub(published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    with StandInHub(published) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.mark.parametrize("name", [NAME, "gemma-2-2b-it", "gemma2_instruct_2b_en"])
def test_a_model_is_pulled_under_any_of_its_names(name: str, hub: StandInHub, tmp_path: Path) -> None:
    folder = pull(name)
    assert folder == tmp_path / "hf" / "hub" / "models--google--gemma-2-2b-it" / "snapshots" / COMMIT
    assert find_model(name) == folder
    assert load_network(folder).config.family == "gemma2"
    assert verify_hashes(folder).keys() == {WEIGHTS, "tokenizer.model"}


def test_only_the_needed_files_are_fetched(hub: StandInHub) -> None:
    folder = pull(NAME)
    wanted = {
        WEIGHTS,
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in folder.iterdir()} == wanted
    fetched = {path.rpartition("/")[2] for _, path, _, _ in hub.requests if "/resolve/" in path}
    assert fetched == wanted


def test_hugging_faces_own_library_finds_what_was_pulled(hub: StandInHub, tmp_path: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    folder = pull(NAME)
    assert try_to_load_from_cache(NAME, WEIGHTS, cache_dir=tmp_path / "hf" / "hub") == str(folder / WEIGHTS)


def test_a_second_pull_fetches_nothing_again(hub: StandInHub) -> None:
    pull(NAME)
    n_requests = len(hub.requests)
    pull(NAME)
    assert [path for _, path, _, _ in hub.requests[n_requests:]] == [f"/api/models/{NAME}/revision/main?blobs=true"]


def test_a_cut_connection_is_taken_up_again(hub: StandInHub) -> None:
    hub.cut_after, hub.n_cuts = 60_000, 3
    pull(NAME)
    assert hub.ranges(WEIGHTS) == ["bytes=0-", "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_a_pull_that_broke_off_for_good_continues_in_the_next(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = len(hub.files[WEIGHTS])
    stream, n_streams = download._stream, 0

    def gone_after_the_first(*args: Any) -> None:
        nonlocal n_streams
        n_streams += args[1].name == WEIGHTS
        if n_streams > 1:
            hub.cut_after, hub.n_cuts = 0, 99
        stream(*args)

    hub.cut_after, hub.n_cuts = 60_000, 1
    monkeypatch.setattr(download, "_stream", gone_after_the_first)
    with pytest.raises(HubError, match=rf"got 60000 of {n_bytes} bytes of {WEIGHTS} .* it continues from there"):
        pull(NAME)
    with pytest.raises(CheckpointError, match=rf"To complete the download: gemsmith pull {NAME}"):
        find_model(NAME)
    monkeypatch.setattr(download, "_stream", stream)
    hub.n_cuts = 0
    hub.requests.clear()
    assert load_network(pull(NAME)).config.family == "gemma2"
    assert hub.ranges(WEIGHTS) == ["bytes=60000-"]


def test_a_server_without_ranges_sends_all_of_it_again(hub: StandInHub) -> None:
    hub.cut_after, hub.n_cuts, hub.ignores_ranges = 60_000, 1, True
    assert verify_hashes(pull(NAME))


def test_contents_other_than_announced_are_thrown_away(hub: StandInHub, tmp_path: Path) -> None:
    hub.lies_about = WEIGHTS
    with pytest.raises(
        HubError, match=rf"{WEIGHTS} must have the hash [0-9a-f]{{64}} the hub announced; got [0-9a-f]{{64}}"
    ):
        pull(NAME)
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def test_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.is_gated = True
    with StandInHub(hub.files) as store:
        hub.redirects_to = store.endpoint
        pull(NAME)
        assert {authorization for *_, authorization in hub.requests} == {f"Bearer {TOKEN}"}
        assert {authorization for *_, authorization in store.requests} == {None}
        assert len(store.requests) == 6


@pytest.mark.parametrize(
    ("token", "reason"), [(None, "401: no token was sent"), ("hf_x", "403: the account of your token")]
)
def test_a_licence_to_accept_is_explained(
    token: str | None, reason: str, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.is_gated = True
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        HubError, match=rf"licence must be accepted before '{NAME}' .* status {reason}.*/{NAME}, then log in"
    ):
        pull(NAME)


def test_a_model_the_hub_does_not_have_is_named(hub: StandInHub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"must exist on the hub; got 'google/gemma-2-3b'.*google/gemma-2-2b"):
        pull("google/gemma-2-3b")


@pytest.mark.parametrize("name", ["gemma", "a/b/c", "../etc/passwd", "google/gemma 2"])
def test_a_name_that_is_none_is_refused_without_a_request(name: str, hub: StandInHub) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"must be a name on the hub.*got '{name}'"):
        pull(name)
    assert hub.requests == []


def test_a_revision_the_hub_does_not_have_is_named(hub: StandInHub) -> None:
    with pytest.raises(HubError, match="revision must exist on the hub; got none such"):
        pull(NAME, revision="v9")


@pytest.mark.parametrize(("status", "advice"), [(500, "Try again later"), (429, "Try again later")])
def test_a_hub_that_cannot_answer_is_quoted(status: int, advice: str, hub: StandInHub) -> None:
    hub.status = status
    with pytest.raises(HubError, match=rf"status {status} for '{NAME}' from {hub.endpoint}. {advice}"):
        pull(NAME)


def test_a_token_that_is_no_longer_valid_is_to_be_renewed(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    hub.status, hub.message = 401, "Invalid credentials in Authorization header"
    with pytest.raises(HubError, match=rf"status 401 for '{NAME}'.*Your token was refused: renew it"):
        pull(NAME)


def test_without_a_network_it_says_so(hub: StandInHub) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(HubError, match=rf"must be reachable; got .*{hub.endpoint}.*{NAME}.*Is there a network"):
        pull(NAME)


def test_offline_by_choice_opens_no_connection(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=rf"HF_HUB_OFFLINE set while asked for '{NAME}'"):
        pull(NAME)
    assert hub.requests == []


def test_an_answer_of_something_else_is_named(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandInHub, "info", lambda self: "sign in to the hotel's network")
    with pytest.raises(HubError, match="hub must answer in its own format"):
        pull(NAME)


def test_a_repository_without_safetensors_is_refused(hub: StandInHub) -> None:
    del hub.files[WEIGHTS]
    with pytest.raises(HubError, match=r"must have config.json and model.safetensors on the hub; got .*config.json"):
        pull(NAME)


def test_a_model_of_another_kind_is_refused_by_its_first_file(hub: StandInHub) -> None:
    hub.files["config.json"] = json.dumps({"model_type": "llama"}).encode()
    with pytest.raises(ConfigError, match=rf"got 'llama' in config.json of {NAME}"):
        pull(NAME)
    assert hub.ranges(WEIGHTS) == []


def test_a_disk_without_room_is_refused_before_fetching(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(StorageError, match=r"got 0.0 MB free for 0.3 MB at '.*'. Make room, or set HF_HOME"):
        pull(NAME)
    assert hub.ranges("config.json") == []


def test_a_disk_that_fills_up_keeps_what_arrived(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stream = download._stream
    monkeypatch.setattr(download, "_stream", full)
    with pytest.raises(
        StorageError, match=r"got 'No space left on device' for config.json .* Make room and run it again"
    ):
        pull(NAME)
    monkeypatch.setattr(download, "_stream", stream)
    pull(NAME)


def test_two_downloads_of_one_file_do_not_mix(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = download._stream

    def again(*args: Any) -> None:
        with pytest.raises(HubError, match=r"must run once at a time; got config.json locked by another process"):
            pull(NAME)
        monkeypatch.setattr(download, "_stream", stream)
        stream(*args)

    monkeypatch.setattr(download, "_stream", again)
    pull(NAME)


def test_progress_goes_to_stderr(hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    pull(NAME)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert NAME in shown.err
    pull(NAME, show_progress=False)
    assert capsys.readouterr().err == ""


HANDLE = "google/gemma-2/transformers/gemma-2-2b-it"


class KaggleError(Exception):
    def __init__(self, status: int | None) -> None:
        super().__init__("kaggle said no")
        self.response = None if status is None else types.SimpleNamespace(status_code=status)


def stand_in_kagglehub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, fails_with: Exception | None = None) -> None:
    module = types.ModuleType("kagglehub")

    def model_download(handle: str) -> str:
        if fails_with is not None:
            raise fails_with
        return str(save_folder(tmp_path / "kagglehub" / "models" / handle / "2", tiny_network("gemma2")))

    module.model_download = model_download  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "kagglehub", module)


@pytest.mark.filterwarnings("ignore")
def test_kaggle_names_go_through_kagglehub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_kagglehub(monkeypatch, tmp_path)
    folder = pull(f"kaggle:{HANDLE}")
    assert folder == find_model(f"kaggle:{HANDLE}") == find_model(f"kaggle:{HANDLE}/2")
    assert load_network(folder).config.family == "gemma2"


@pytest.mark.parametrize(
    ("status", "advice"),
    [(403, "Accept the licence on kaggle.com"), (404, "Check the name"), (None, "Is there a network")],
)
def test_what_kaggle_refuses_is_explained(
    status: int | None, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_kagglehub(monkeypatch, tmp_path, fails_with=KaggleError(status))
    with pytest.raises(HubError, match=rf"got status {status} for 'kaggle:{HANDLE}' \(kaggle said no\)\. {advice}"):
        pull(f"kaggle:{HANDLE}")


def test_without_kagglehub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "kagglehub":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(HubError, match=rf"got 'kaggle:{HANDLE}' without it\. Run pip install 'gemsmith\[hub\]'"):
        pull(f"kaggle:{HANDLE}")


@pytest.mark.parametrize("handle", ["gemma", "keras/gemma/keras/gemma_2b_en", "a/b/transformers/../c"])
def test_a_kaggle_name_of_another_format_is_refused(handle: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"must be owner/model/transformers/variation; got '{handle}'"):
        pull(f"kaggle:{handle}")
