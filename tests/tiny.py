"""The small models of the tests: every feature of a generation switched on, nothing at its default."""

from dataclasses import replace

import torch

from gemsmith.config import LayerSpec, ModelConfig
from gemsmith.model.transformer import Transformer

WINDOW = 8
FAMILIES = ("gemma", "gemma2", "gemma3", "vaultgemma")


def tiny_config(family: str = "gemma2", *, vocab_size: int = 300, max_seq_len: int = 256) -> ModelConfig:
    """Return a small configuration in which head_dim * n_heads differs from d_model and windows are short."""
    base = LayerSpec("global", n_heads=4, n_kv_heads=2, head_dim=12, d_ff=64, attn_scale=20.0**-0.5)
    if family == "gemma":
        layers = (replace(base, norms="pre", n_kv_heads=1, attn_scale=12.0**-0.5),) * 4
    elif family == "vaultgemma":
        layers = (replace(base, norms="pre_ffw", n_kv_heads=4, attn_softcap=5.0),) * 4
    elif family == "gemma2":
        layers = (replace(base, kind="local", window=WINDOW, attn_softcap=5.0), replace(base, attn_softcap=5.0)) * 2
    elif family == "gemma3":
        local = replace(base, kind="local", window=WINDOW, has_qk_norm=True, rope_theta=1000.0)
        wide = replace(local, kind="global", window=None, rope_theta=20_000.0, rope_factor=8.0)
        layers = tuple(wide if (index + 1) % 6 == 0 else local for index in range(7))
    else:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {family!r}.")
    cap = 3.0 if family in ("gemma2", "vaultgemma") else None
    return ModelConfig(family, vocab_size, 40, max_seq_len, layers, final_softcap=cap)


def tiny_network(
    family: str = "gemma2", *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: int
) -> Transformer:
    """Return a small network with random weights large enough for caps and norms to matter."""
    network = Transformer(tiny_config(family, **sizes), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            spread = 0.3 if "norm" in name else 0.2 if "embed" in name else 2.0 * parameter.shape[-1] ** -0.5
            parameter.normal_(0.0, spread, generator=generator)
            if "post_" in name and network.config.layers[0].norms == "sandwich":
                parameter.add_(3.0)  # blocks outweigh the embedding, so that greedy text does not settle at once
    return network.to(dtype).eval()
