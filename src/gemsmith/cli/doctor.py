"""`gemsmith doctor`: what this machine has, and what would make it faster."""

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version

from gemsmith.cli.console import table, write, write_json
from gemsmith.cli.flags import AsJson
from gemsmith.cli.machine import Cpu, memory_limit, read_cpu, total_memory
from gemsmith.config import ARCHITECTURES, preset
from gemsmith.weights.memory import available_bytes, in_gb, needed_bytes


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes; `limit` is what a container grants, None without one."""

    total: int
    available: int
    limit: int | None


@dataclass(frozen=True)
class Accelerator:
    """A GPU torch can use."""

    device: str
    name: str
    memory_bytes: int | None


@dataclass(frozen=True)
class Machine:
    """All that doctor looks at.

    Attributes:
        torch: Version with its build, such as "2.13.0+cpu".
        n_threads: Threads torch computes with.
        has_nvidia_driver: An NVIDIA driver is installed, whether or not torch can use it.
        kernels: Instruction set the compiled kernels use, "none" without them.
        kernel_choices: Those this processor can run.
        openmp: Paths of the OpenMP libraries loaded beside each other.
        disk_free: Bytes free where pulled models are kept.
        has_hub_token: A Hugging Face token is set or stored; the token itself is never shown.
    """

    system: str
    python: str
    torch: str
    cpu: Cpu
    memory: Memory
    n_threads: int
    accelerators: tuple[Accelerator, ...]
    has_nvidia_driver: bool
    kernels: str
    kernel_choices: tuple[str, ...]
    openmp: tuple[str, ...]
    disk_free: int
    model_folder: str
    has_hub_token: bool


def doctor(*, as_json: AsJson = False) -> int:
    """Show what this machine has and what would make it faster."""
    machine = examine()
    advice = advise(machine)
    if as_json:
        write_json({**asdict(machine), "fits": fitting_models(machine), "advice": advice})
        return 0
    write(table(describe(machine)))
    write("")
    write("What would make it faster:" if advice else "Nothing stands in the way of speed here.")
    for line in advice:
        write(f"  - {line}")
    return 0


def examine() -> Machine:
    """Look at this machine; this imports torch but opens no connection."""
    import torch
    from huggingface_hub import get_token

    from gemsmith.kernels import native
    from gemsmith.kernels.openmp import loaded_runtimes
    from gemsmith.weights.catalog import hub_cache

    folder = hub_cache().absolute()
    return Machine(
        system=_system(),
        python=platform.python_version(),
        torch=version("torch"),
        cpu=read_cpu(),
        memory=Memory(total_memory(), available_bytes(), memory_limit()),
        n_threads=torch.get_num_threads(),
        accelerators=_accelerators(),
        has_nvidia_driver=shutil.which("nvidia-smi") is not None,
        kernels=native.isa(),
        kernel_choices=tuple(native.available()),
        openmp=tuple(loaded_runtimes()),
        disk_free=shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free,
        model_folder=str(folder),
        has_hub_token=get_token() is not None,
    )


def describe(machine: Machine) -> list[tuple[str, str]]:
    """Return the machine as rows of name and words."""
    cpu, memory = machine.cpu, machine.memory
    present = [name for name, has in cpu.features.items() if has]
    limit = f", a container grants {in_gb(memory.limit)}" if memory.limit else ""
    quota = f", a container grants {cpu.quota:g}" if cpu.quota else ""
    gpus = [f"{gpu.name} ({gpu.device})" + _memory_words(gpu.memory_bytes) for gpu in machine.accelerators]
    return [
        ("system", machine.system),
        ("python, torch", f"{machine.python}, {machine.torch}"),
        ("processor", cpu.model),
        ("features", ", ".join(present) or "none of those we look for"),
        ("cores", f"{cpu.n_cores}{quota}; torch computes with {machine.n_threads} threads"),
        ("memory", f"{in_gb(memory.total)}, {in_gb(memory.available)} available{limit}"),
        ("GPU", "; ".join(gpus) or "none that torch can use"),
        ("disk", f"{in_gb(machine.disk_free)} free in {machine.model_folder}"),
        ("hub token", "present" if machine.has_hub_token else "none (needed for gated models: hf auth login)"),
        ("kernels", _kernel_words(machine)),
        ("OpenMP", f"{len(machine.openmp)} loaded: {', '.join(machine.openmp) or 'none'}"),
        ("fits in bfloat16", ", ".join(fitting_models(machine)) or "only pebble, the model in the box"),
    ]


def advise(machine: Machine) -> list[str]:
    """Return what would make this machine faster, the largest gain first."""
    cpu, advice = machine.cpu, []
    usable = int(min(cpu.n_cores, cpu.quota or cpu.n_cores)) or 1
    if machine.has_nvidia_driver and not any(gpu.device.startswith("cuda") for gpu in machine.accelerators):
        advice.append(f"An NVIDIA driver is here but torch {machine.torch} cannot use it: install torch's CUDA build.")
    if "Rosetta" in machine.system:
        advice.append("This Python is built for Intel and runs translated: install an arm64 Python.")
    if machine.n_threads < usable:
        advice.append(f"torch uses {machine.n_threads} of {usable} cores: unset OMP_NUM_THREADS or set it to {usable}.")
    if machine.n_threads > usable:
        advice.append(f"torch uses {machine.n_threads} threads on {usable} cores: set OMP_NUM_THREADS={usable}.")
    advice += _library_advice(machine)
    if not machine.accelerators and not cpu.features["bf16"]:
        advice.append(
            "The processor has no bfloat16 arithmetic (AVX512-BF16, AMX, Arm BF16), so models are computed in "
            "float32, which takes twice the memory and time."
        )
    if not machine.accelerators and not (cpu.features["avx512"] or cpu.features["amx"] or cpu.features["i8mm"]):
        advice.append(
            "The processor has none of AVX-512, AMX and Arm i8mm: a newer one or a GPU computes several times faster."
        )
    if machine.memory.available < machine.memory.total / 2 and machine.memory.limit is None:
        advice.append("More than half of the memory is taken: close other programs before loading a larger model.")
    if machine.memory.limit is not None:
        advice.append(
            f"A container grants {in_gb(machine.memory.limit)} of {in_gb(machine.memory.total)}: "
            "raise its limit for larger models."
        )
    return advice


def _library_advice(machine: Machine) -> list[str]:
    advice = []
    if machine.kernels == "none":
        advice.append(
            "No kernels are compiled, so training takes the plain path: install a C++ compiler, then gemsmith."
        )
    if len(machine.openmp) > 1:
        advice.append(
            f"{' and '.join(machine.openmp)} compete for the cores: keep packages that bring their own OpenMP out."
        )
    return advice


def fitting_models(machine: Machine) -> list[str]:
    """Return the members of the family whose bfloat16 weights fit into what is free now."""
    room = max([machine.memory.available, *(gpu.memory_bytes or 0 for gpu in machine.accelerators)])
    return [name for name in ARCHITECTURES if needed_bytes(preset(name), "bfloat16") <= room]


def _system() -> str:
    words = f"{platform.system()} {platform.release()} {platform.machine()}"
    if "microsoft" in platform.release().lower():
        return f"{words} (WSL)"
    if sys.platform == "darwin" and platform.machine() == "x86_64" and "ARM64" in platform.version():
        return f"{words} (Rosetta)"
    return words


def _accelerators() -> tuple[Accelerator, ...]:
    """List what torch can compute on besides the processor."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Accelerator(f"cuda:{index}", properties.name, properties.total_memory))
    if torch.backends.mps.is_available():
        found.append(Accelerator("mps", "Apple GPU", None))
    return tuple(found)


def _kernel_words(machine: Machine) -> str:
    if machine.kernels == "none":
        return "not compiled; torch computes"
    return f"{machine.kernels} in use, of {', '.join(machine.kernel_choices)}"


def _memory_words(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f", {in_gb(n_bytes)}"
