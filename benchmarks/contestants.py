"""The programs bench_2b.py compares, each in a process and an environment of its own (see peers/protocol.py).

The Pythons of other environments come from GEMSMITH_PEER_LLAMA (llama-cpp-python), GEMSMITH_PEER_OPENVINO
(openvino) and GEMSMITH_PEER_TORCH (transformers, torchao); a peer without one is left out, and said so.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
THREADS = "2"
# What gemsmith tells the C allocator itself (infer/allocator.py), for everybody: blocks are kept, not given back.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
PYTHONS = {"ours": "", "llama": "GEMSMITH_PEER_LLAMA", "vino": "GEMSMITH_PEER_OPENVINO", "hf": "GEMSMITH_PEER_TORCH"}


@dataclass(frozen=True)
class Contestant:
    """One program with one model.

    Attributes:
        script: Of peers/, without its ending; "ours" runs in this environment.
        model: A file or folder of files_2b.py.
        options: Of the script, such as "cache=int8".
        is_slow: It needs minutes before its first token, so it runs where --only names it.
    """

    name: str
    script: str
    model: str
    options: tuple[str, ...] = ()
    is_slow: bool = False

    @property
    def python(self) -> str | None:
        """The interpreter to run it with, None where its variable is not set."""
        variable = PYTHONS[self.script]
        return os.environ.get(variable) if variable else sys.executable


OURS = "gemsmith"
# 8.0 bits a weight, as OpenVINO's; the others of that size have 8.5.
ROW_SCALES = Contestant(f"{OURS} int8, a scale a row", "ours", "int8-row")
BY_BITS = {
    4: (
        Contestant(f"{OURS} int4", "ours", "int4"),
        Contestant("llama.cpp Q4_0", "llama", "q4_0.gguf"),
        Contestant("OpenVINO int4", "vino", "openvino-int4"),
        Contestant("torchao int4", "hf", "dense", ("bits=4",), is_slow=True),
    ),
    8: (
        Contestant(f"{OURS} int8", "ours", "int8"),
        ROW_SCALES,
        Contestant("llama.cpp Q8_0", "llama", "q8_0.gguf"),
        Contestant("OpenVINO int8", "vino", "openvino-int8"),
        Contestant("torchao int8", "hf", "dense", ("bits=8",), is_slow=True),
    ),
    16: (
        Contestant(f"{OURS} bf16", "ours", "dense"),
        Contestant("llama.cpp BF16", "llama", "bf16.gguf"),
        Contestant("transformers bf16", "hf", "dense"),
    ),
}
INT8_CACHE = Contestant(f"{OURS} int4, int8 caches", "ours", "int4", ("cache=int8",))


def present(contestants: Sequence[Contestant], folder: Path, *, only: str | None) -> list[Contestant]:
    """Return those that can run, and print why the others cannot.

    Args:
        only: Names to keep, parted by commas; the beginning of one will do.
    """
    found = []
    for contestant in contestants:
        is_named = bool(only) and contestant.name.startswith(tuple((only or "").split(",")))
        if not is_named and (only or contestant.is_slow):
            continue
        if contestant.python is None:
            print(f"{contestant.name}: left out, {PYTHONS[contestant.script]} names no Python")
        elif not (folder / contestant.model).exists():
            print(f"{contestant.name}: left out, {folder / contestant.model} is not there (see files_2b.py)")
        else:
            found.append(contestant)
    return found


@dataclass
class Running:
    """A contestant's process.

    Attributes:
        started: When it was started, by time.perf_counter.
        facts: Versions and settings it told.
    """

    name: str
    process: subprocess.Popen[str]
    started: float
    facts: dict[str, Any] = field(default_factory=dict)

    def ask(self, do: str, n: int = 0) -> dict[str, Any]:
        """Send a request and return the answer; between requests the process stands still, its threads too."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps({"do": do, "n": n}) + "\n")
        self.process.stdin.flush()
        answer = self.hear()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def hear(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            RuntimeError: The process has died.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died with {self.process.wait()}; what it said stands above")
        return json.loads(line)

    def rate(self, do: str, n: int) -> float:
        """Return tokens per second of one request."""
        return n / self.ask(do, n)["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running(
    contestants: Sequence[Contestant], folder: Path, *, environment: Mapping[str, str] = ALLOCATOR
) -> Iterator[dict[str, Running]]:
    """Start contestants one after the other; those that die on the way are told and left out."""
    processes: dict[str, Running] = {}
    try:
        for contestant in contestants:
            process = start(contestant, folder, environment=environment)
            try:
                process.facts = process.hear()
            except RuntimeError as error:
                print(error)
                process.close()
                continue
            processes[contestant.name] = process
            print(f"{contestant.name}: loaded in {process.facts['ready']:.1f} s, {process.facts['facts']}", flush=True)
        yield processes
    finally:
        for process in processes.values():
            process.close()


def start(contestant: Contestant, folder: Path, *, environment: Mapping[str, str]) -> Running:
    """Start a contestant without waiting for it."""
    assert contestant.python is not None
    script = PEERS / f"{contestant.script}.py"
    command = [contestant.python, "-W", "ignore", str(script), str(folder / contestant.model), *contestant.options]
    words = {**os.environ, "OMP_NUM_THREADS": THREADS, **environment}
    if contestant.script != "ours":
        words.pop("PYTHONPATH", None)
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=words)
    return Running(contestant.name, process, begun)


def first_token_of_command(model: Path) -> float:
    """Return the seconds from starting `gemsmith generate` to its first token, by its own account."""
    words = [sys.executable, "-W", "ignore", "-m", "gemsmith", "generate", "--model", str(model), "--json"]
    # An installed package has its bytecode; a source tree gets it in the first run.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # Eight tokens in the vocabulary of files_2b.py, as many as the others read.
    command = [*words, "--max-new-tokens", "1", "Once upon a."]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(said.stdout)["first_token_since_start_s"]
