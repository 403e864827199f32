"""Reading and writing what is on the disk: llm.c's files, Hugging Face folders, the folder of a run."""
