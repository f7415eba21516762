"""Tensor names: as checkpoints spell them <-> as the network's parameters are called."""

HEAD_MODULE, EMBEDDING_MODULE = "lm_head", "embed_tokens"
HEAD = f"{HEAD_MODULE}.weight"
EMBEDDING = f"{EMBEDDING_MODULE}.weight"

# The text model's place in a checkpoint, longest first: alone, or beside the towers in either of the
# orders transformers has used (the older order is the one on the hub).
_PREFIXES = (
    "model.language_model.model.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
    "model.",
)
_TOWERS = (
    "vision_tower.",
    "multi_modal_projector.",
    "audio_tower.",
    "vision_embedder.",
    "embed_vision.",
    "embed_audio.",
)
# Tables some writers stored although they follow from the configuration.
_DERIVED = ("rotary_emb.inv_freq",)


def parameter_name(tensor_name: str) -> str | None:
    """Return what the network calls a checkpoint's tensor, or None for one it has no use for.

    None stands for the tensors of image and audio towers and for stored rotary tables. A stored
    output head keeps the name "lm_head.weight".
    """
    if tensor_name.removeprefix("model.").startswith(_TOWERS) or tensor_name.endswith(_DERIVED):
        return None
    for prefix in _PREFIXES:
        if tensor_name.startswith(prefix):
            return tensor_name.removeprefix(prefix)
    return tensor_name


def tensor_name(parameter_name: str) -> str:
    """Return the published name of a parameter or module."""
    return f"model.{parameter_name}"
