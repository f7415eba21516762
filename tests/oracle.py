"""The independent implementation: transformers models with the weights of ours."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers as hf

from gemsmith.config import ModelConfig
from gemsmith.model.transformer import Transformer

CLASSES = {
    "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM),
    "vaultgemma": (hf.VaultGemmaConfig, hf.VaultGemmaForCausalLM),
}


def oracle_config(config: ModelConfig) -> hf.PretrainedConfig:
    """Spell one of our configurations in the oracle's words."""
    first = config.layers[0]
    words = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": first.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": first.n_heads,
        "num_key_value_heads": first.n_kv_heads,
        "head_dim": first.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "query_pre_attn_scalar": round(first.attn_scale**-2),
        "attn_logit_softcapping": first.attn_softcap,
        "final_logit_softcapping": config.final_softcap,
        "layer_types": ["sliding_attention" if x.kind == "local" else "full_attention" for x in config.layers],
        "sliding_window": next((x.window for x in config.layers if x.window), 4096),
        "attn_implementation": "eager",
    }
    if config.family == "gemma":
        for word in ("query_pre_attn_scalar", "layer_types", "sliding_window"):
            del words[word]
    if config.family == "gemma3":
        wide = next(x for x in config.layers if x.kind == "global")
        words["rope_parameters"] = {
            "sliding_attention": {"rope_type": "default", "rope_theta": first.rope_theta},
            "full_attention": {"rope_type": "linear", "factor": wide.rope_factor, "rope_theta": wide.rope_theta},
        }
    return CLASSES[config.family][0](**words)


def oracle(network: Transformer, *, attn_implementation: str = "eager") -> hf.PreTrainedModel:
    """Return a transformers model that holds the network's weights."""
    config = oracle_config(network.config)
    config._attn_implementation = attn_implementation
    model = CLASSES[network.config.family][1](config)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected, unexpected
    model.tie_weights()
    return model.to(network.norm.weight.dtype).eval()


@torch.inference_mode()
def oracle_logits(model: hf.PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the oracle's logits of every token, in float32."""
    return model(input_ids=token_ids, use_cache=False).logits.float()
