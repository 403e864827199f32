"""Training on conversations: what is learned, the loss, growth, resuming, what is refused, defaults."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, prepare
from gpt2.data.conversation_loader import ConversationLoader
from gpt2.data.vocabulary import load_vocabulary, model_vocabulary
from gpt2.errors import UserError
from gpt2.formats import tokenizer_folder
from gpt2.formats.tokenizer_folder import token_digest
from gpt2.inference.chat_evaluation import evaluate_chat, read_talks
from gpt2.machine import available_threads, set_threads
from gpt2.training import loop
from gpt2.training.metrics import Metrics
from gpt2.training.options import TrainOptions
from tests.support.chat import save, talk, write_full_gpt2
from tests.support.runs import ROOT, contents, records
from tests.support.vocabulary import byte_level, files_of

SIZES = {"layers": 2, "heads": 2, "channels": 32, "context": 64}
TALKS = [
    talk("Hi", "Hello."),
    talk("Bye", "So long, friend.", "Bye, then", "Good bye."),
    talk("Who?", "Me."),
    talk("Hi", "Arr!", system="A pirate"),
    talk("one\ntwo", "Two lines."),
    talk("Why?", "Nobody knows."),
    talk("When does it begin?", "At noon."),
    talk("So", "So?"),
]


def write_talks(name, talks, vocab):
    """Prepares conversations as NAME_train.bin, without a validation part."""
    path = pathlib.Path(f"{name}.jsonl")
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    vocabulary = ["--vocab", vocab, "--val-fraction", "0"]
    prepare.main([str(path), "--chat", "--name", name, "--data-dir", ".", *vocabulary])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with conversations to train on (8) and to validate on (3), and "facts", a run on plain text."""
    folder = tmp_path_factory.mktemp("conversations")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        write_talks("talks", TALKS, "bpe:280")
        write_talks("val", [TALKS[0], TALKS[1], talk("Who, then?", "Me too.")], "talks_vocabulary")
        write_talks("others", TALKS, "bpe:270")
        pathlib.Path("facts.txt").write_text("Nobody knows when it begins. So long, friend.\n" * 20)
        plain = ["--val-fraction", "0.2", "--vocab", "talks_vocabulary", "--data-dir", "."]
        prepare.main(["facts.txt", "--name", "facts", *plain])
        data = {"train_data": "facts_train.bin", "val_data": "facts_val.bin", "seq_len": 16}
        train(init="scratch", max_steps=4, learning_rate=1e-3, val_every=2, out_dir="facts", **data, **SIZES)
    return folder


@pytest.fixture(autouse=True)
def folder(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(Metrics, "draw", lambda self: None)  # which takes longer than the runs
    yield tmp_path
    set_threads(available_threads())


def options(**changes):
    settings = {"init": "facts", "train_data": "talks_train.bin", "val_data": "val_train.bin", "batch_size": 2}
    return TrainOptions(**settings | {"val_every": 0, "sample_every": 0, "threads": 1} | changes)


def train(**changes):
    return loop.train(options(**changes))


def loss_of(model, name, loss_on):
    """The mean loss of the targets in a file, computed for one conversation at a time."""
    losses, counts = [], []
    loader = ConversationLoader(name, 1, 64, model.config.V, None, loss_on)
    for _ in range(loader.num_batches):
        tokens, targets = loader.next_batch()
        counts.append(np.count_nonzero(targets != -1))
        losses.append(counts[-1] * model.forward(tokens, targets))
    return sum(losses) / sum(counts)


def refused(message, **changes):
    with pytest.raises(UserError, match=message) as caught:
        train(**changes)
    assert "\n" not in str(caught.value)


def test_conversations_are_learnt_by_heart():
    model = train(init="scratch", **SIZES).state.model
    words = model_vocabulary("out")
    found = evaluate_chat(model, words, read_talks("talks.jsonl", words, model.config))
    # Of two conversations that begin with "Hi" one has a system message.
    assert (found["exact"], found["answers"], found["ended"]) == (9, 9, 9) and found["loss"] < 0.2


def test_a_step_is_the_same_however_it_is_cut_into_micro_batches():
    # A larger epsilon: else AdamW makes as large a step of a gradient's last bit as of a gradient.
    common = {"max_steps": 6, "learning_rate": 1e-2, "eps": 1e-3, "loss_on": "assistant"}
    whole = train(batch_size=8, out_dir="whole", **common)
    cut = train(batch_size=2, grad_accum_steps=4, out_dir="cut", **common)
    losses = [list(result.train_losses.values()) for result in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0][-1] < losses[0][0] - 0.1
    np.testing.assert_allclose(whole.state.model.params_flat, cut.state.model.params_flat, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_the_losses_are_means_over_the_targets_that_are_asked_for(loss_on):
    start = GPT2.load("facts")
    expected = [loss_of(start, name, loss_on) for name in ("talks_train.bin", "val_train.bin")]
    result = train(batch_size=8, max_steps=1, loss_on=loss_on, val_every=1, out_dir="whole")
    assert [result.train_losses[1], result.val_losses[0]] == pytest.approx(expected, rel=1e-6)
    # The second batch of the validation data has one conversation, of other targets than the first's.
    result = train(batch_size=2, max_steps=1, loss_on=loss_on, val_every=1)
    assert result.val_losses[0] == pytest.approx(expected[1], rel=1e-6)


def test_the_loss_is_the_assistants_unless_all_is_asked_for_and_stays_so_on_resume():
    losses = [
        train(batch_size=8, max_steps=1, out_dir=f"{n}", **more).train_losses
        for n, more in enumerate([{}, {"loss_on": "assistant"}, {"loss_on": "all"}])
    ]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(UserError, match=r"--loss-on was all, not assistant; leave"):
        loop.resume("2", {"max_steps": 2, "loss_on": "assistant"})
    assert (
        loop.resume("2", {"max_steps": 2}).train_losses[2]
        == train(batch_size=8, max_steps=2, loss_on="all", out_dir="3").train_losses[2]
    )


LONG = {"max_steps": 12, "val_every": 3, "learning_rate": 1e-3}


@pytest.fixture
def unbroken():
    """What a run of 12 steps, three epochs, leaves."""
    train(out_dir="unbroken", **LONG)
    return contents("unbroken", 12)


@pytest.mark.parametrize("steps", [3, 6])
@pytest.mark.parametrize("place", ["out", "moved"])
def test_a_resumed_run_is_the_unbroken_one(unbroken, steps, place):
    train(**LONG | {"max_steps": steps})
    loop.resume("out", {"max_steps": 12, "out_dir": place})
    assert contents(place, 12) == unbroken
    before = pathlib.Path(place, "metrics_before.jsonl").read_bytes()
    assert before == pathlib.Path("facts/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_second_phase_killed_before_its_first_save_is_started_again(unbroken):
    program = f"""if True:
        import os
        from gpt2.training import loop
        from gpt2.training.options import TrainOptions
        loop.train(TrainOptions(**{dataclasses.asdict(options(**LONG))}), on_step=lambda state, _: os._exit(state.step))
    """
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=env, timeout=120, capture_output=True).returncode == 1
    left = set(os.listdir("out"))
    assert {"metrics.jsonl", "metrics_before.jsonl", "vocabulary"} <= left and "checkpoints.json" not in left
    train(**LONG)
    assert contents("out", 12) == unbroken and not pathlib.Path("out-1").exists()


def test_the_run_before_is_kept_up_to_the_model_even_if_its_folder_is_renamed():
    loop.resume("facts", {"max_steps": 6})
    whole = pathlib.Path("facts/metrics.jsonl").read_bytes()
    with open("facts/metrics.jsonl", "ab") as file:
        file.write(b'{"step": 7, "train_loss": 1.0}\n{"st')  # a step that no checkpoint holds
    train(max_steps=1, out_dir="facts")
    assert pathlib.Path("facts/metrics_before.jsonl").read_bytes() == whole
    assert len(records("facts")) == 1 and pathlib.Path("facts-1/metrics.jsonl").exists()
    shutil.rmtree("facts-1")
    pathlib.Path("facts/metrics.jsonl").unlink()
    train(max_steps=1, init="facts")  # nothing to keep
    assert not pathlib.Path("out/metrics_before.jsonl").exists()
    pathlib.Path("facts").rename("scratch")
    pathlib.Path("scratch/metrics.jsonl").write_bytes(whole)
    train(max_steps=1, init="scratch", **SIZES)  # which means random weights
    assert not pathlib.Path("out/metrics_before.jsonl").exists()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("more", [0, 125], ids=["Vp stays", "Vp grows"])
def test_a_model_grows_by_the_control_tokens(more, trained, capsys):
    words = byte_level(*(bytes([97, n]) for n in range(more)))
    model = GPT2(GPT2Config(V=words.size, maxT=64, L=1, NH=2, C=8), seed=1)
    model.params_flat[-1] += trained  # then it counts as trained
    save(model, "own.bin", words)
    write_talks("mine", TALKS, "own_vocabulary")
    train(init="own.bin", train_data="mine_train.bin", max_steps=0)
    grown, V = GPT2.load("out"), words.size
    line = f"the vocabulary grows from {V} to {V + 4} tokens: new ones start as the mean of the old\n"
    assert line in capsys.readouterr().out
    assert grown.config == dataclasses.replace(model.config, V=V + 4) and grown.is_untrained == (not trained)
    assert (grown.config.Vp == model.config.Vp) == (more == 0)
    old, new = model.params, grown.params
    np.testing.assert_array_equal(new["wte"][:V], old["wte"][:V])
    np.testing.assert_allclose(new["wte"][V : V + 4], [old["wte"][:V].mean(axis=0)] * 4, atol=1e-7)
    assert not new["wte"][V + 4 :].any()
    assert all(np.array_equal(new[name], old[name]) for name in old if name != "wte")
    assert files_of("out/vocabulary") == files_of("mine_vocabulary")


@pytest.mark.slow
def test_a_model_of_gpt2s_vocabulary_grows_to_its_with_control_tokens(folder, monkeypatch):
    write_full_gpt2(folder, monkeypatch)
    GPT2(GPT2Config(V=50257, maxT=64, L=1, NH=1, C=4), seed=1).save("small.bin")
    write_talks("mine", TALKS[:2], "gpt2")
    gpt2_tokens = load_vocabulary("mine_vocabulary").tokens[:50257]
    monkeypatch.setattr(tokenizer_folder, "GPT2_SHA256", token_digest(gpt2_tokens))
    data = {"train_data": "mine_train.bin", "val_data": "mine_train.bin"}
    train(init="small.bin", max_steps=1, val_every=1, keep_best=True, **data)
    for run in ("out", "out/best"):
        assert (GPT2.load(run).config.V, GPT2.load(run).config.Vp) == (50261, 50304)
        assert files_of(f"{run}/vocabulary") == files_of("mine_vocabulary")
        assert model_vocabulary(run).ends == (50256, 50260) and "chat_template.jinja" in files_of(f"{run}/vocabulary")
    loop.resume("out", {"max_steps": 2})
    train(init="out", max_steps=1, out_dir="again", **data)  # it has them already
    assert GPT2.load("again").config.V == 50261


def test_conversations_of_another_vocabulary_are_refused():
    message = r"^others_train\.bin: tokens of a vocabulary that does not begin with the model's, which has \d+ tokens; "
    advice = r"prepare the conversations with that: gpt2 prepare FILE --chat --name NAME --vocab "
    refused(f"{message}{advice}facts/vocabulary$", train_data="others_train.bin")
    message = r"^(others_train\.bin|talks_train\.bin| and ){3}: tokens of different vocabularies; prepare both "
    refused(message, val_data="others_train.bin", val_every=1)
    refused(message, train_data=("talks_train.bin", "others_train.bin"))


@pytest.mark.parametrize("changes", [{"train_data": ("talks_train.bin", "facts_train.bin")}, {"val_every": 1}])
def test_conversations_do_not_mix_with_plain_text(changes):
    message = r"^talks_train\.bin holds conversations, facts_(train|val)\.bin does not; train on files of one kind$"
    refused(message, **{"val_data": "facts_val.bin"} | changes)
    assert not pathlib.Path("out").exists()


def test_conversations_do_not_go_in_the_order_of_llmc():
    refused(r"^--shuffle llmc: llm\.c has no order for conversations; leave out llmc$", shuffle="llmc")


def test_a_text_has_a_loss_on_every_token():
    files = {"train_data": "facts_train.bin", "val_data": "facts_val.bin", "val_every": 1}
    refused(r"^--loss-on all: is for conversations; of a text, every token has a loss$", loss_on="all", **files)


def test_conversations_that_are_too_long_are_left_out_and_named(capsys):
    lengths = ConversationLoader("talks_train.bin", 8, 64, 300, None)._lengths
    longest = sorted(lengths)[-2:]
    train(seq_len=int(longest[0]) - 2, max_steps=1)
    named = ", ".join(str(n + 1) for n in np.flatnonzero(lengths >= longest[0]))
    line = f"talks_train.bin: left out 2 of 8 conversations, longer than {longest[0] - 1} tokens: number {named}\n"
    assert capsys.readouterr().out.count(line) == 1
    refused(r"^talks_train\.bin: no conversation is left to train on; choose a larger --seq-len$", seq_len=2)


def test_memory_is_asked_for_as_the_widest_row_needs_it(capsys):
    train(max_steps=1)
    widest = ConversationLoader("talks_train.bin", 2, 64, 300, None).widest
    assert widest < 64 and f"activations of 2 x {widest} " in capsys.readouterr().out
    # The validation data count, too.
    write_talks("short", TALKS[:1], "talks_vocabulary")
    train(train_data="short_train.bin", val_data="talks_train.bin", val_every=1, max_steps=1, out_dir="swapped")
    assert f"activations of 2 x {widest} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (2 * 4, 5e-5, 0, 1.0)),
        ({"init": "scratch"} | SIZES, (60 * 4, 3e-3, 20, 1.0)),
        ({"epochs": 3, "learning_rate": 1e-4}, (3 * 4, 1e-4, 0, 1.0)),
        ({"max_steps": 3, "grad_clip": 0.0}, (3, 5e-5, 0, 0.0)),
        ({"grad_accum_steps": 4}, (2, 5e-5, 0, 1.0)),
        ({"train_data": "facts_train.bin", "seq_len": 16}, (40, 1e-4, 0, 0.0)),
        ({"train_data": "facts_train.bin", "seq_len": 16, "init": "scratch"} | SIZES, (40, 3e-4, 10, 1.0)),
    ],
    ids=["tuned", "from scratch", "epochs given", "steps given", "micro-batches", "text", "text from scratch"],
)
def test_defaults_for_conversations(changes, expected):
    resolved = train(**changes).state.resolved
    assert (resolved.max_steps, resolved.learning_rate, resolved.warmup_steps, resolved.grad_clip) == expected
