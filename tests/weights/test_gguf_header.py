"""The reader of a GGUF file's head: what is there is found, and every lie is named before it costs anything."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemsmith.errors import CheckpointError
from gemsmith.weights import gguf_header
from gemsmith.weights.foreign import is_gguf
from gemsmith.weights.gguf_header import read_gguf
from gguf_files import ARRAY, BOOL, FLOAT32, STRING, UINT32, UINT64, array, gguf, key, small_gguf, tensor, text


def write(folder: Path, data: bytes) -> Path:
    path = folder / "some.gguf"
    path.write_bytes(data)
    return path


def test_metadata_and_tensors_are_found_where_they_are(tmp_path: Path) -> None:
    keys = (
        key("a.text", STRING, text("grüße")),
        key("a.count", UINT32, struct.pack("<I", 7)),
        key("a.number", FLOAT32, struct.pack("<f", 0.5)),
        key("a.flag", BOOL, b"\1"),
        key("a.words", ARRAY, array(STRING, 2, text("one") + text(b"\xff"))),
        key("a.numbers", ARRAY, array(5, 3, struct.pack("<3i", -1, 2, 3))),
        key("general.alignment", UINT32, struct.pack("<I", 64)),
    )
    rows = (tensor("one", (3, 2), 0, 0), tensor("two", (32, 4), 8, 64))
    head = gguf(keys, rows)
    data = head + b"\0" * (-len(head) % 64) + bytes(range(64)) + bytes(4 * 34)
    file = read_gguf(write(tmp_path, data))
    numbers = file.metadata.pop("a.numbers")
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == [-1, 2, 3]
    assert file.metadata == {
        "a.text": "grüße", "a.count": 7, "a.number": 0.5, "a.flag": True, "a.words": [b"one", b"\xff"],
        "general.alignment": 64,
    }  # fmt: skip
    one, two = file.tensors.values()
    assert (one.block.name, one.shape, one.n_bytes) == ("F32", (2, 3), 24)
    assert (two.block.name, two.shape, two.n_bytes) == ("Q8_0", (4, 32), 136)
    assert data[one.start : one.start + 4] == bytes(range(4))
    assert two.start == one.start + 64


def test_version_2_is_read(tmp_path: Path) -> None:
    assert read_gguf(write(tmp_path, gguf(version=2) + bytes(32))).tensors == {}


def test_a_gguf_file_is_known_by_name_or_first_bytes(tmp_path: Path) -> None:
    assert is_gguf(write(tmp_path, b""))
    (tmp_path / "blob").write_bytes(b"GGUF\3")
    assert is_gguf(tmp_path / "blob")
    assert not is_gguf(tmp_path)
    (tmp_path / "other").write_bytes(b"GGML")
    assert not is_gguf(tmp_path / "other")


HUGE = 2**62
ONE = struct.pack("<I", 1)
# Lie -> what is said about it.
LIES = [
    (b"", r"got 0 bytes, too few for a head"),
    (b"GGUF\3\0\0\0", r"got 8 bytes, too few"),
    (b"GGML" + bytes(40), r"must begin with b'GGUF'; got b'GGML'"),
    (gguf(version=1) + bytes(32), r"version of a GGUF file must be 2 or 3; got 1 "),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), r"got 3 of a machine of the other byte order"),
    (gguf(n_keys=HUGE) + bytes(32), rf"got {HUGE} as number of keys where"),
    (gguf(n_tensors=HUGE) + bytes(32), rf"got {HUGE} as number of tensors where"),
    (gguf(n_keys=3), r"got 3 as number of keys where 8 bytes"),
    (gguf((struct.pack("<Q", HUGE),)) + bytes(64), rf"got a key of {HUGE} bytes"),
    (gguf((struct.pack("<Q", 5000),)) + bytes(64), r"got a key of 5000 bytes where \d+ are left"),
    (gguf((key(b"\xff\xfe", UINT32, ONE),)) + bytes(32), r"got a key with b'\\xff', which is no UTF-8"),
    (gguf((key("a", UINT32, ONE), key("a", UINT32, ONE))), r"got the key 'a' twice"),
    (gguf((key("a", 13, ONE),)) + bytes(32), r"got the type 13 for 'a'"),
    (gguf((key("a", STRING, struct.pack("<Q", 2**40)),)) + bytes(32), rf"got the text of 'a' of {2**40} bytes"),
    (gguf((key("a", STRING, text(b"\xc3")),)) + bytes(32), r"got the text of 'a' with b'\\xc3', which is no UTF-8"),
    (gguf((key("a", ARRAY, array(UINT32, 2**40)),)) + bytes(32), rf"got {2**40} as length of 'a' where"),
    (gguf((key("a", ARRAY, array(STRING, 2**40)),)) + bytes(32), rf"got {2**40} as length of 'a' where"),
    (gguf((key("a", ARRAY, array(UINT64, 2**61)),)) + bytes(32), rf"got {2**61} as length of 'a' where"),
    (gguf((key("a", ARRAY, array(ARRAY, 1) + array(UINT32, 1, ONE)),)) + bytes(32), r"got an array of arrays for 'a'"),
    (gguf((key("a", ARRAY, array(99, 1)),)) + bytes(32), r"got the type 99 for 'a'"),
    (gguf((key("a", ARRAY, array(STRING, 2, text("x" * 40))),))[:80], r"text 0 of 'a' of 40 bytes where"),
    (gguf((key("a", ARRAY, array(STRING, 4, text("x" * 40))),))[:97], r"got the array 'a' cut off at its text 1"),
    (gguf((key("a", ARRAY, array(STRING, 2, text("x") + struct.pack("<Q", HUGE))),)) + bytes(32), r"text 1 of 'a' of"),
    (gguf((key("general.alignment", UINT32, bytes(4)),)) + bytes(32), r"got 0 as general.alignment, which is no power"),
    (gguf((key("general.alignment", UINT32, struct.pack("<I", 48)),)), r"got 48 as general.alignment"),
    (gguf((key("general.alignment", STRING, text("x")),)), r"got 'x' as general.alignment"),
    (gguf((), (tensor("t", (4,)), tensor("t", (4,))), data=bytes(64)), r"got the tensor 't' twice"),
    (gguf((), (tensor("t", (1, 1, 1, 1, 1)),), data=bytes(64)), r"got 5 dimensions for tensor 't'"),
    (gguf((), (text("t") + struct.pack("<IQQQ", 0, 0, 0, 0),)) + bytes(32), r"got 0 dimensions for tensor 't'"),
    (gguf((), (tensor("t", (HUGE, HUGE, HUGE)),), data=bytes(64)), r"file must hold \d{50,} bytes for tensor 't'; got"),
    (gguf((), (tensor("t", (0, 4)),), data=bytes(64)), r"got the shape \[4, 0\] for tensor 't' in F32"),
    (gguf((), (tensor("t", (33,), 8),), data=bytes(64)), r"got the shape \[33\] for tensor 't' in Q8_0"),
    (gguf((), (tensor("t", (4,), 0, 8),), data=bytes(64)), r"got offset 8 of tensor 't', no multiple of 32"),
    (gguf((), (tensor("t", (4,), 0, HUGE),), data=bytes(64)), r"must hold \d+ bytes for tensor 't'; got"),
    (gguf((), (tensor("t", (4,), 0, 64),), data=bytes(64)), r"must hold \d+ bytes for tensor 't'; got"),
    (gguf((), (tensor("t", (9,)), tensor("u", (4,), 0, 32)), data=bytes(64)), r"got tensors 't' and 'u' on the same"),
    (gguf((), (tensor("t", (256,), 23),), data=bytes(999)), r"'t' must be in one of F32, .*; got IQ4_XS"),
    (gguf((), (tensor("t", (256,), 999),), data=bytes(999)), r"'t' must be in one of F32, .*; got format 999"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), LIES, ids=[str(place) for place in range(len(LIES))])
def test_every_lie_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_gguf(write(tmp_path, data))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model must be a folder or a GGUF file; got"):
        read_gguf(tmp_path)


def test_a_head_beyond_the_limit_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_HEAD_BYTES", 64)
    path = write(tmp_path, gguf((key("a", STRING, text("x" * 60)),)) + bytes(32))
    with pytest.raises(CheckpointError, match=r"got more than 64 bytes before the tensors, at the text of 'a' of 60"):
        read_gguf(path)


def test_texts_of_all_arrays_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_STRINGS", 3)
    words = key("a", ARRAY, array(STRING, 2, text("x") * 2)), key("b", ARRAY, array(STRING, 2, text("x") * 2))
    with pytest.raises(CheckpointError, match=r"got 2 as length of 'b' where \d+ bytes and at most 1 can be"):
        read_gguf(write(tmp_path, gguf(words) + bytes(32)))


# Runs in a process of its own, so that the limit binds nobody else.
_FUZZ = """
import random, resource, sys, time
from pathlib import Path
import torch
from gemsmith.errors import GemsmithError
from gemsmith.weights.gguf_load import GgufModel

source, scratch, seed, n_files = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
good, rng = source.read_bytes(), random.Random(seed)

def open_all():
    model = GgufModel(scratch)
    model.network(dtype="float32", is_native=False)
    model.tokenizer()

def mutate(data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(rng.choice((24, 600, 8000, len(data) - 8)))
        way = rng.randrange(5)
        if way == 0:
            data[at] = rng.randrange(256)
        elif way == 1:
            data[at:at + 8] = rng.choice((2**62, 2**63, 2**64 - 1, 2**40, 0, 1, len(data))).to_bytes(8, "little")
        elif way == 2:
            data[at:at + 4] = rng.choice((2**31, 2**32 - 1, 0, 9, 8, 1)).to_bytes(4, "little")
        elif way == 3:
            del data[at:at + rng.choice((1, 8, 100))]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 8, 100))))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)

scratch.write_bytes(good)
open_all()
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (200 << 20),) * 2)
slowest, n_refused = 0.0, 0
for _ in range(n_files):
    data = mutate(good)
    scratch.write_bytes(data)
    began = time.process_time()
    try:
        open_all()
    except GemsmithError:
        n_refused += 1
    except Exception:
        Path(str(scratch) + ".bad").write_bytes(data)
        raise
    slowest = max(slowest, time.process_time() - began)
print(n_refused, slowest)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_hostile_files_fail_by_name_in_little_memory_and_time(tmp_path: Path) -> None:
    n_files = 300
    words = [str(small_gguf(tmp_path, "gemma3")), str(tmp_path / "hostile.gguf"), "0", str(n_files)]
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, *words], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    n_refused, slowest = done.stdout.split()
    assert n_files / 4 < int(n_refused) < n_files  # some changes are harmless, such as that of a weight
    assert float(slowest) < 1.0
