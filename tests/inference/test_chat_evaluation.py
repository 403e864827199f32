"""Losses of the assistant's words against their definition, and answers in batches against each alone."""

import json
import pathlib

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data.chat_template import ChatTemplate
from gpt2.errors import UserError
from gpt2.evaluate import main
from gpt2.inference import chat_evaluation
from gpt2.inference.chat_evaluation import evaluate_chat, read_talks
from gpt2.inference.warmup import prepare_kernels
from tests import reference
from tests.support.chat import TALKS, WORDS, endless_model, save, talk, tuned_model
from tests.support.vocabulary import byte_level

WRONG = [talk("Hi", "Hallo.", "Bye", "So long, friend."), talk("Bye", "Good bye!"), talk("Bye", "Good")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_kernels()


def write(talks, path="talks.jsonl"):
    pathlib.Path(path).write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    return path


def evaluate(model, talks, words=WORDS):
    return evaluate_chat(model, words, read_talks(write(talks), words, model.config))


@pytest.mark.parametrize("batch_tokens", [1, 100, 2048])
def test_loss_and_accuracy_are_those_of_the_assistants_tokens(monkeypatch, batch_tokens):
    monkeypatch.setattr(chat_evaluation, "BATCH_TOKENS", batch_tokens)
    model = tuned_model()
    losses, hits, template = [], [], ChatTemplate(WORDS)
    for messages in TALKS + WRONG:
        ids, counts = map(np.array, template.encode(messages))
        logits, _ = reference.forward(model.params, model.config, ids[None, :-1])
        found = reference.cross_entropy(logits, ids[None, 1:])[0]
        losses += found[counts[1:]].tolist()
        hits += (logits[0].argmax(axis=1) == ids[1:])[counts[1:]].tolist()
    result = evaluate(model, TALKS + WRONG)
    assert result["tokens"] == len(losses) and result["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result["accuracy"] == np.mean(hits) and 0 < sum(hits) < len(hits)


def test_answers_are_exact_if_each_word_and_the_end_is_the_models():
    result = evaluate(tuned_model(), TALKS)
    assert (result["conversations"], result["answers"], result["exact"], result["ended"]) == (4, 5, 5, 5)
    assert result["accuracy"] == 1 and result["loss"] < 0.2
    result = evaluate(tuned_model(), WRONG)
    assert result["answers"] == result["ended"] == 4
    assert result["exact"] <= 1  # that after a history which the model would not have written
    assert evaluate(tuned_model(), WRONG[1:])["exact"] == 0


def test_an_answer_without_end_is_not_exact():
    model = tuned_model()
    words = byte_level(*(name.encode() for name in WORDS.tokens[257:]))  # the same names, but no end of a turn
    words.files |= {name: data for name, data in WORDS.files.items() if name == "chat_template.jinja"}
    talks = read_talks(write(TALKS), WORDS, model.config)
    words.ends = ()
    result = evaluate_chat(model, words, talks)
    assert result["exact"] == result["ended"] == 0


@pytest.mark.slow
def test_answers_in_batches_are_those_alone():
    rng = np.random.default_rng(0)
    questions = ["".join(rng.choice(list("BHbeiy "), rng.integers(1, 30))) + "y" for _ in range(26)]
    talks = [*TALKS, *(talk(question, "Good bye.") for question in questions)]
    found = [evaluate(tuned_model(), [messages]) for messages in talks]
    together = evaluate(tuned_model(), talks)
    for name in ("exact", "ended", "answers", "tokens"):
        assert together[name] == sum(each[name] for each in found)
    assert together["exact"] < together["ended"] < together["answers"]


def test_conversations_longer_than_the_context_are_counted_and_named(capsys):
    save(tuned_model(), "tuned.bin")
    long, fits = talk("x" * 52, "y" * 9), talk("x" * 52, "y" * 8)  # 66 tokens, 65: of these 64 are read
    main(["--model", "tuned.bin", "--chat", write([*TALKS, long, fits, long]), "--json", "out.json"])
    result = json.loads(pathlib.Path("out.json").read_text())["chat"]
    assert result["conversations"] == 7 and result["answers"] == 6
    assert result["too_long"] == ["talks.jsonl: line 5", "talks.jsonl: line 7"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out, as longer than the context: 2 of 7: talks.jsonl: line 5, talks.jsonl: line 7"
    assert lines[-1] == "exact answers 5 of 6, ended by the model 5"
    with pytest.raises(UserError, match="all conversations exceed the model's context of 64 tokens"):
        main(["--model", "tuned.bin", "--chat", write([long])])


def test_a_plain_model_is_measured_with_the_plain_template():
    words = byte_level()
    start = len("_User: Hi\nAssistant:") - 1  # the position whose logits are the answer's first
    for answer, ended, exact in [(" Hello.\nUser:", 1, 1), (" Hello.", 0, 0), (" Hullo.\nUser:", 1, 0)]:
        model = endless_model(64)
        model.params["wpe"][:] = 100 * model.params["wte"][ord("\n")]
        for position, byte in enumerate(answer.encode(), start):
            model.params["wpe"][position] = 100 * model.params["wte"][byte]
        result = evaluate(model, [talk("Hi", "Hello.")], words)
        assert (result["tokens"], result["ended"], result["exact"]) == (len(" Hello.\n"), ended, exact)


def test_bad_files_and_unknown_vocabularies_are_one_line():
    save(tuned_model(), "tuned.bin")
    GPT2(GPT2Config(maxT=64, V=300, L=1, NH=1, C=8)).save("unknown.bin")
    pathlib.Path("text.txt").write_text("A text.\n")
    for model, file, message in [
        ("tuned.bin", "missing.jsonl", "missing.jsonl: No such file or directory"),
        ("tuned.bin", "text.txt", "text.txt: line 1 begins with 'A text.'"),
        ("unknown.bin", write(TALKS), "unknown.bin: its vocabulary is not GPT-2's, and not beside it"),
    ]:
        with pytest.raises(UserError) as error:
            main(["--model", model, "--chat", file])
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
