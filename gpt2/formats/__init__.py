"""Files on disk: llm.c's formats, Hugging Face folders, run folders."""
