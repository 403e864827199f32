"""Self-contained HTML pages: what a model does with a text, and how a run went."""
