"""Text from a model: the KV cache, sampling, beam search, text as it streams."""
