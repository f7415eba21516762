"""How much memory does loading take? Physics: a mapped file costs its touched pages once, and nothing is copied.

Every row is a process of its own and its high-water mark of resident memory (VmHWM); files are in
the page cache. "Bare" rows are what a process costs that loads no model.

    python benchmarks/bench_load.py [small|gemma-2-2b]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from common import Result, finish, random_network

from gemsmith.config import ModelConfig, preset
from gemsmith.weights.folder import save_folder

TARGET = 1.15
PROMPT = "ids = torch.arange(2, 18)[None]"
OURS = "from gemsmith.weights.folder import load_network; import torch; torch.set_grad_enabled(False)"
PACK = "m.network.pack(release=m.files.release)"
PEER = "import torch, transformers; torch.set_grad_enabled(False)"
CALL = "from_pretrained(folder, dtype='bfloat16', attn_implementation='eager')"
ROWS = {
    "bare interpreter": "",
    "bare, torch and gemsmith imported": OURS,
    "gemsmith: load": f"{OURS}; load_network(folder)",
    "gemsmith: load, one pass": f"{OURS}; {PROMPT}; load_network(folder).network(ids)",
    "gemsmith: load, pack, one pass": f"{OURS}; {PROMPT}; m = load_network(folder); {PACK}; m.network(ids)",
    "gemsmith: load in float32": f"{OURS}; load_network(folder, dtype='float32')",
    "bare, torch and transformers imported": PEER,
    "transformers: load": f"{PEER}; transformers.AutoModelForCausalLM.{CALL}",
    "transformers: load, one pass": f"{PEER}; {PROMPT}; transformers.AutoModelForCausalLM.{CALL}(ids)",
}
MEASURED = """
import sys, time
folder = sys.argv[1]
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
lines = open("/proc/self/status").read().splitlines()
print(seconds, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


def shape(name: str) -> ModelConfig:
    """Return the configuration to measure: 1.2 GB in bfloat16, or one of the family's."""
    if name != "small":
        return preset(name)
    config = preset("gemma-3-1b")
    return config.replace(layers=config.layers[:11])


def measure(work: str, folder: Path) -> tuple[float, int]:
    """Return seconds and peak bytes of a process that does `work`."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED.format(work=work), str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(said[-2]), int(said[-1])


def main(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bench_load_") as parent:
        folder = save_folder(Path(parent) / "model", random_network(shape(name)))
        n_file = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(f"file {n_file / 1e9:.3f} GB")
        peaks = {}
        for row, work in ROWS.items():
            measure(work, folder)
            seconds, peaks[row] = measure(work, folder)
            print(f"{row:40s} {peaks[row] / 1e9:7.3f} GB  {peaks[row] / n_file:6.2f} x file  {seconds:6.2f} s")
    ours = (peaks["gemsmith: load, one pass"] - peaks["bare, torch and gemsmith imported"]) / n_file
    peer = (peaks["transformers: load, one pass"] - peaks["bare, torch and transformers imported"]) / n_file
    measured = "peak of load and one pass over the bare process, in file lengths"
    result = Result(f"load_memory_{name}", ours, peer, 1.0, TARGET, ours, measured, ours <= TARGET)
    finish(result, config=f"{name}, random bfloat16, file of {n_file / 1e9:.2f} GB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "small")
