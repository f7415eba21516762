"""The compiled library of csrc/ as a file: where it is, what it holds, and how it is opened, all without torch."""

import ctypes
from pathlib import Path

PATH = Path(__file__).with_name("_gemsmith.so")
# The version of csrc/kernels.h this file was written for.
ABI = 5
# A letter per parameter of csrc/kernels.h: p pointer, n int64, f float, i int32.
_SIGNATURES = {
    "rms_norm": "ppppnnfii",
    "rms_norm_backward": "ppppppnnfii",
    "rotate": "ppppnnnnnffi",
    "gated_gelu": "pppnnnni",
    "gated_gelu_backward": "pppppnnnnnni",
    "loss_and_gradient": "ppppnnffi",
    "adamw": "ppppnfffffffi",
    "sum_of_squares": "ppni",
    "attention": "p",
    "attention_backward": "p",
    "quantized_linear": "p",
    "quantized_linears": "pi",
    "quantized_feed_forward": "p",
    "pack_quantized": "ppnni",
    "pack_blocks": "pppnni",
    "pack_groups": "ppnni",
    "dense_linear": "pppnnni",
    "cached_attention": "p",
    "decode": "p",
    "decode_scratch": "pp",
    "pick": "p",
    "record_tokens": "pp",
    "probe_read": "ppn",
    "probe_products": "pnni",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int32}


def load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """Return the library with its functions' types declared, or None and why."""
    if not path.exists():
        return None, f"{path.name} is not there (install with a C++ compiler, or run make kernels)"
    try:
        loaded = ctypes.CDLL(str(path))
        found = loaded.gs_abi()
        if found != ABI:
            return None, f"{path.name} has version {found}, not {ABI} (run make kernels)"
        for name in ("gs_isa", "gs_available"):
            getattr(loaded, name).restype = ctypes.c_char_p
        for name in ("gs_share_openmp", "gs_select"):
            getattr(loaded, name).argtypes = [ctypes.c_char_p]
        for name in ("gs_do_early", "gs_pack_early"):
            getattr(loaded, name)
        for name, letters in _SIGNATURES.items():
            function = getattr(loaded, f"gs_{name}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be loaded ({error}; run make kernels)"
    return loaded, ""
