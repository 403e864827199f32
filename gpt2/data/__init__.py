"""From texts to batches: downloads, tokenizer, token files, data loader."""
