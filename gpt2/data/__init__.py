"""From texts to batches: downloads, vocabulary, token files, the data loader."""
