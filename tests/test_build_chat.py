"""`bash build.sh chat` as a user runs it, and a small set of conversations learnt from scratch by heart."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

ANSWERS = re.compile(r"^exact answers (\d+) of (\d+), ended by the model (\d+)$", re.MULTILINE)
pytestmark = pytest.mark.slow


def run(command, folder, timeout, **env):
    """Runs a command without a terminal; returns what it printed."""
    env = os.environ | {"GPT2_DATA_DIR": str(folder / "prepared"), "PYTHONPATH": ""} | env
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    finished = subprocess.run(command, cwd=folder, env=env, timeout=timeout, **streams)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a clone holds of the program and the shipped conversations, its kernels compiled."""
    folder = tmp_path / "clone"
    for name in ("gpt2", "data/chat"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("build.sh", "train_gpt2.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_shipped_chat_answers_what_it_was_taught(checkout):
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = run(["bash", "build.sh", "chat"], checkout, 500, VIRTUAL_ENV=sys.prefix, PATH=path)
    (exact, count, ended), (held_out, asked, held_out_ended) = [
        tuple(map(int, found)) for found in ANSWERS.findall(printed)
    ]
    assert count >= 300 and exact >= 0.95 * count and ended == count
    assert asked == 60 and held_out >= asked / 2 and held_out_ended == asked
    answers = dict(re.findall(r"^> (.*)\n(.*)$", printed, re.MULTILINE))
    talks = [json.loads(line)["messages"] for line in (ROOT / "data/chat/talks.jsonl").read_text().splitlines()]
    taught = {messages[0]["content"]: messages[1]["content"] for messages in talks}
    taught["Thank you!"] = taught["Thank you."]
    assert len(answers) == 3 and answers == {question: taught[question] for question in answers}
    before = (checkout / "out-chat/talks/metrics_before.jsonl").read_bytes()
    assert before == (checkout / "out-chat/facts/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("vocab", ["chars", "bpe:512"])
def test_53_conversations_are_learnt_by_heart_from_scratch(tmp_path, vocab):
    talks = [json.loads(line)["messages"] for line in (ROOT / "data/chat/talks.jsonl").read_text().splitlines()]
    by_answer = {
        answer: question
        for question, answer in (
            [message["content"] for message in messages] for messages in talks if len(messages) == 2
        )
    }
    lines = [f"User: {question} Assistant: {answer} </s>\n" for answer, question in list(by_answer.items())[:53]]
    (tmp_path / "talks.txt").write_text("".join(lines))
    python = [sys.executable, "-m"]
    env = {"PYTHONPATH": str(ROOT)}
    prepare = ["gpt2.prepare", "talks.txt", "--chat", "--name", "talks", "--vocab", vocab, "--val-fraction", "0"]
    run([*python, *prepare], tmp_path, 60, **env)
    sizes = "--init scratch --layers 3 --heads 4 --channels 128 --context 256".split()
    data = ["--train-data", "prepared/talks_train.bin", "--val-every", "0", "--sample-every", "0"]
    run([sys.executable, str(ROOT / "train_gpt2.py"), *sizes, *data], tmp_path, 300)
    printed = run([*python, "gpt2.evaluate", "--model", "out", "--chat", "talks.txt"], tmp_path, 120, **env)
    assert ANSWERS.search(printed).groups() == ("53", "53", "53"), printed
