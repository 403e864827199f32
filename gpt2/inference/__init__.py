"""Text generation and evaluation: KV cache, sampling, beam search, streaming text, loss and accuracy."""
