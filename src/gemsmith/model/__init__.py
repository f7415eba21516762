"""The network: token ids, positions and a cache in; hidden states and logits out."""
