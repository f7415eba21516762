"""The keys of config.json that are not read, and the last parts of the names of tensors.

Of the keys: which are harmless, which must have one value, which are code.
"""

# Say how a model was made, shown or trained, never what it computes for text.
_HARMLESS = """
    _name_or_path _commit_hash _attn_implementation_autoset architectures model_type model_name name_or_path
    transformers_version unsloth_version unsloth_fixed torch_dtype dtype use_bfloat16 torchscript
    initializer_range use_cache cache_implementation attention_dropout pretraining_tp gradient_checkpointing
    tokenizer_class prefix task_specific_params finetuning_task problem_type id2label label2id num_labels
    return_dict output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    chunk_size_feed_forward tf_legacy_loss decoder_start_token_id sep_token_id unk_token_id
    do_sample temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    num_beams num_beam_groups num_return_sequences early_stopping max_length min_length max_new_tokens
    min_new_tokens bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
    is_decoder remove_invalid_values exponential_decay_length_penalty renormalize_logits
    vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id
    image_token_id processor_class
"""
HARMLESS = frozenset(_HARMLESS.split())

# Says how matrices are stored; read by weights/compressed.py.
QUANTIZATION = "quantization_config"

# The tensors of a matrix in few bits, in the compressed-tensors layout.
WEIGHT, PACKED_WEIGHT, SCALE = "weight", "weight_packed", "weight_scale"
ZERO, SHAPE = "weight_zero_point", "weight_shape"

_OFF = (None, False)
# Would change the numbers at any other value; this network has no such part.
FIXED: dict[str, tuple[object, ...]] = {
    "tie_word_embeddings": (True,),
    "attention_bias": _OFF,
    "mlp_bias": _OFF,
    "use_bidirectional_attention": _OFF,
    "is_encoder_decoder": _OFF,
    "add_cross_attention": _OFF,
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": _OFF,
    "pruned_heads": (None, {}),
    QUANTIZATION: (None,),
    "partial_rotary_factor": (None, 1.0),
    "attn_implementation": (None, "eager", "sdpa", "flash_attention_2", "flex_attention"),
    "_attn_implementation": (None, "eager", "sdpa", "flash_attention_2", "flex_attention"),
}

# Name code to import. A configuration is data: nothing lets these pass.
CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "_target_"})

# Activations by the name a key gives them that mean GELU in its tanh form. Gemma 1 was published with
# `hidden_act: "gelu"` while its training used the tanh form, and every reader takes it so.
# Source: huggingface/transformers pull request 29402.
TANH_GELU: dict[str, tuple[object, ...]] = {
    "hidden_act": (None, "gelu", "gelu_pytorch_tanh"),
    "hidden_activation": (None, "gelu_pytorch_tanh"),
}
