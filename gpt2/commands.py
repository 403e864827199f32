"""The table of commands: what `gpt2` lists, and what the --help of each begins with."""

import typing


class Command(typing.NamedTuple):
    """module: has main(arguments=None), which returns the exit status, and make_parser().

    examples: command lines without `gpt2 NAME`.
    """

    module: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "prepare": Command(
        "gpt2.prepare",
        "makes token files from texts or conversations of your own",
        (
            "mine.txt --name mine",
            "notes/ posts.jsonl --name small --vocab bpe:1024",
            "talks.jsonl --chat --name talks",
        ),
    ),
    "train": Command(
        "gpt2.training.__main__",
        "trains a model, or continues a run",
        (
            "--train-data data/mine_train.bin --max-steps 500",
            "--init scratch --size baby --lr 1e-3 --lr-schedule cosine",
            "--resume out",
        ),
    ),
    "generate": Command(
        "gpt2.generate",
        "continues a prompt",
        (
            'out --prompt "The sea was"',
            "gpt2 --temperature 0.8 --top-k 40 --seed 1 --num-samples 8",
            "out --prompt-file prompts.jsonl",
        ),
    ),
    "chat": Command(
        "gpt2.chat",
        "talks with a model that was tuned on conversations",
        ("out-talks", 'out-talks --prompt "What is the sea?"', "out-talks --temperature 0"),
    ),
    "evaluate": Command(
        "gpt2.evaluate",
        "measures loss, perplexity and bits per byte, HellaSwag, and answers to conversations",
        (
            "out --data data/mine_val.bin",
            "gpt2 --hellaswag hellaswag_val.bin --json results.json",
            "out-talks --chat talks.jsonl",
        ),
    ),
    "inspect": Command(
        "gpt2.inspect",
        "makes a page that shows what a model computes for a text",
        ('--model out --text "The sea was" -o page.html',),
    ),
    "report": Command("gpt2.report", "makes a page of a run: losses, rates, samples, options", ("out",)),
    "convert": Command(
        "gpt2.convert",
        "writes a model for Hugging Face, llm.c or llama.cpp",
        ("out my_model", "gpt2-xl xl.bin --dtype bfloat16", "out my_model.gguf --dtype q8_0"),
    ),
    "checkpoint": Command("gpt2.checkpoint", "lists and verifies the checkpoints of a run", ("out",)),
    "verify": Command(
        "gpt2.verify",
        "compares logits, loss and gradients with another implementation's",
        ("MODEL.bin STATE.bin", "MODEL.bin STATE.bin --write --data data/mine_val.bin"),
    ),
    "profile": Command(
        "gpt2.profile", "shows where the time of a training step goes", ("-b 4 -t 64", "--size baby --precision bf16")
    ),
    "completion": Command(
        "gpt2.completion", "prints a script that completes commands and options in a shell", ("bash", "zsh")
    ),
}


def overview():
    """Returns what `gpt2` alone prints: a line for each command, with an example."""
    rows = [(name, each.summary, f"gpt2 {name} {each.examples[0]}") for name, each in COMMANDS.items()]
    lines = [f"  {name:<11} {summary}\n{'':13} {example}" for name, summary, example in rows]
    head = "GPT-2 on the CPU. `gpt2 COMMAND --help` lists a command's options; `python -m gpt2` is the same as `gpt2`."
    return "\n".join([head, "", *lines, "", "  --version   prints the version"])
