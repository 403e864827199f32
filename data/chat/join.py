"""Joins the conversations of talks.jsonl, drawn at random, into long ones about one thing after another.

    python data/chat/join.py VOCABULARY COUNT SEED > joined.jsonl

A model that learns these answers a question whatever was said before. Each fills the context of 128 tokens as far as
whole conversations do, so every position of it is trained.
"""

import argparse
import json
import pathlib
import random

import tokenizers

TALKS = pathlib.Path(__file__).with_name("talks.jsonl")
LONGEST = 128 + 1  # tokens: the last one is a target only


def joined(talks, sizes):
    """Returns messages: those of talks in random order, each taken if there is room for its number of tokens."""
    messages, room = [], LONGEST - 1  # after <|endoftext|>
    for number in random.sample(range(len(talks)), len(talks)):
        if sizes[number] <= room:
            messages += talks[number]
            room -= sizes[number]
    return messages


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("vocabulary", help="folder with tokenizer.json")
    parser.add_argument("count", type=int, help="number of conversations")
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    random.seed(options.seed)
    words = tokenizers.Tokenizer.from_file(f"{options.vocabulary}/tokenizer.json")
    talks = [json.loads(line)["messages"] for line in TALKS.open(encoding="ascii")]
    # A message stands between two control tokens: its role and <|end|>.
    sizes = [sum(2 + len(words.encode(message["content"]).ids) for message in messages) for messages in talks]
    for _ in range(options.count):
        print(json.dumps({"messages": joined(talks, sizes)}))


if __name__ == "__main__":
    main()
