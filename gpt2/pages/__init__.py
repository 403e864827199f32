"""Self-contained HTML pages: what a model does with a text, and how a run went."""

MOST_TOKENS = 256  # of a text in a page
