"""python -m gpt2.generate, on a small model with a vocabulary of its own, the bytes and " t"."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data.vocabulary import save_vocabulary
from gpt2.errors import UserError
from gpt2.formats.llmc import save_model as save_model_file
from gpt2.formats.pretrained import vocabulary_path
from gpt2.generate import main
from gpt2.inference import prompt
from gpt2.inference.beam import beam_search
from gpt2.inference.context import Context
from gpt2.inference.warmup import prepare_kernels
from tests.support.numeric import randomise
from tests.support.vocabulary import byte_level

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORDS = byte_level(b" t")
(EOT,) = WORDS.ends
CONFIG = GPT2Config(maxT=32, V=WORDS.size, L=1, NH=2, C=8)


def save_model(path, end_of_text=-3.0):
    """Saves a model that prefers ASCII, with its vocabulary beside it.

    The logits of other tokens are 30 lower, that of end of text is 10 * end_of_text higher.
    """
    model = GPT2(CONFIG)
    randomise(model, np.random.default_rng(1))
    model.params["wpe"] *= 10
    model.params["wte"] *= 5
    model.params["lnfw"][0], model.params["lnfb"][0] = 0, 10
    model.params["wte"][:, 0] = 0
    model.params["wte"][128:256, 0] = -3
    model.params["wte"][EOT, 0] = end_of_text
    model.vocabulary = WORDS.sha256
    model.save(path)
    save_vocabulary(WORDS, vocabulary_path(path))
    return model


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the model m.bin and its vocabulary; standard input is a terminal."""
    monkeypatch.chdir(tmp_path)
    save_model("m.bin")
    prepare_kernels()  # prints to stderr the first time
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO()))
    return tmp_path


def piped(data):
    return io.TextIOWrapper(io.BytesIO(data))


@pytest.fixture
def run(folder, capsys):
    """Returns a function that runs the command on m.bin and returns its output: `out` and `err`."""

    def run(*arguments):
        main(["--model", "m.bin", *arguments])
        return capsys.readouterr()

    return run


def greedy(prompt, count):
    """The ids that the uncached model generates greedily, sliding the window."""
    model, tokens, window = GPT2.load("m.bin"), [], list(prompt)
    for _ in range(count):
        if len(window) > CONFIG.maxT:
            window = window[-24:]
        tokens.append(int(model.last_logits([window])[0].argmax()))
        window.append(tokens[-1])
    return tokens


def test_greedy_text_equals_the_uncached_models(run):
    for text in ("a", "to be t", "ten tokens"):
        expected = WORDS.decode(greedy(WORDS.encode(text), 20))
        printed = run("--prompt", text, "--temperature", "0", "--max-new-tokens", "20")
        assert printed.out == expected + "\n" and printed.err == ""
        assert len(set(expected)) > 3


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_narrower_weights_change_probabilities_a_little(run, form):
    options = ("--prompt", "be t", "--temperature", "0", "--max-new-tokens", "1", "--show-tokens")
    exact, narrow = (float(run(*options, *more).out.split()[-1]) for more in ([], ["--weights", form]))
    assert exact != narrow and abs(exact - narrow) < 0.2


def test_a_bfloat16_file_is_continued_as_it_is(run):
    options = ("--prompt", "a", "--temperature", "0", "--show-tokens")
    save_model_file("m.bin", CONFIG, GPT2.load("m.bin").params_flat, "bfloat16", vocabulary=WORDS.sha256)
    shown, widened = run(*options).out, GPT2.load("m.bin")
    bfloat16 = pathlib.Path("m.bin").read_bytes()
    widened.save("m.bin")
    assert run(*options, "--weights", "bf16").out == shown
    pathlib.Path("m.bin").write_bytes(bfloat16)
    os.truncate("m.bin", 2000)
    with pytest.raises(UserError, match=r"m\.bin: truncated: 2,000 bytes"):
        run(*options)


def test_a_form_of_weights_that_does_not_exist_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--weights", "int4")
    assert capsys.readouterr().err == "error: --weights int4: expected one of float32, bf16, int8\n"


def test_prompt_sources(run, monkeypatch):
    options = ("--temperature", "0", "--max-new-tokens", "5", "--show-tokens")
    expected = run("--prompt", "né", *options).out
    pathlib.Path("prompt.txt").write_bytes("né\n".encode())
    assert run("--prompt-file", "prompt.txt", *options).out == expected
    for ending in (b"", b"\n", b"\r\n"):
        for more in ([], ["--prompt-file", "-"]):
            monkeypatch.setattr(sys, "stdin", piped("né".encode() + ending))
            assert run(*options, *more).out == expected
    assert run("--prompt", "né\n", *options).out != expected


def test_a_prompt_with_crlf_and_a_byte_order_mark_is_the_same_prompt(run, monkeypatch):
    options = ("--temperature", "0", "--max-new-tokens", "5", "--show-tokens")
    expected = run("--prompt", "né\n\nx", *options).out
    for form in ("né\r\n\r\nx", "\ufeffné\n\nx", "\ufeffné\r\n\nx"):
        assert run("--prompt", form, *options).out == expected
        pathlib.Path("prompt.txt").write_bytes(f"{form}\r\n".encode())
        assert run("--prompt-file", "prompt.txt", *options).out == expected
        monkeypatch.setattr(sys, "stdin", piped(f"{form}\r\n".encode()))
        assert run(*options).out == expected


def test_a_prompt_of_a_million_blanks(run):
    options = ("--temperature", "0", "--max-new-tokens", "5")
    pathlib.Path("prompt.txt").write_text(" " * 1_000_001 + "x")
    assert run("--prompt-file", "prompt.txt", *options).out == run("--prompt", " " * 31 + "x", *options).out


def test_without_a_prompt_a_new_document_starts(run):
    options = ("--temperature", "0", "--max-new-tokens", "5")
    assert run(*options).out == WORDS.decode(greedy([EOT], 5)) + "\n"
    # In a prompt, the name of a special token is ordinary text.
    assert run(*options, "--prompt", "<|endoftext|>").out != run(*options).out


def test_text_depends_on_the_seed_but_not_on_threads(run):
    options = ("--prompt", "a", "--max-new-tokens", "30", "--top-k", "50", "--threads")
    texts = [run(*options, threads, "--seed", "5").out for threads in ("1", "2", "3")]
    assert texts[0] == texts[1] == texts[2]
    assert run(*options, "1", "--seed", "6").out != texts[0] != run(*options, "1").out


def test_several_samples(run):
    options = ("--prompt", "a", "--max-new-tokens", "12", "--seed", "5")
    printed = run(*options, "--num-samples", "3").out
    assert printed == run(*options, "--num-samples", "3").out
    texts = printed.split("--- sample ")[1:]
    assert [text.partition("\n")[0] for text in texts] == ["1 of 3 ---", "2 of 3 ---", "3 of 3 ---"]
    assert len({text.partition("\n")[2] for text in texts}) == 3


def test_end_of_text_ends_a_sample(run):
    save_model("m.bin", end_of_text=5.0)
    assert run("--prompt", "a").out == "\n"
    assert run("--prompt", "a", "--num-samples", "2").out == "--- sample 1 of 2 ---\n\n--- sample 2 of 2 ---\n\n"
    (line,) = run("--prompt", "a", "--show-tokens").out.splitlines()
    assert line.split() == [str(EOT), "'<|endoftext|>'", "1.000000"]
    assert run("--prompt", "a", "--num-beams", "2").out == "\n"


def test_stop_text_ends_a_sample_and_is_not_printed(run):
    options = ("--prompt", "a", "--temperature", "0", "--max-new-tokens", "20")
    text = run(*options).out
    stop = text[6:9]
    assert "�" not in stop
    assert run(*options, "--stop", "no such text", "--stop", stop).out == text[: text.index(stop)] + "\n"


def test_show_tokens(run):
    prompt = WORDS.encode("a")
    lines = run("--prompt", "a", "--temperature", "0", "--max-new-tokens", "6", "--show-tokens").out.splitlines()
    expected = greedy(prompt, 6)
    assert [int(line.split()[0]) for line in lines] == expected
    logits = GPT2.load("m.bin").last_logits([prompt])[0].astype(float)
    share = np.exp(logits[expected[0]]) / np.exp(logits).sum()
    assert float(lines[0].split()[-1]) == pytest.approx(share, abs=2e-5)
    data = WORDS.token_bytes[expected[0]]
    assert repr(data)[1:] in lines[0]


def test_sliding_window_is_reported_once(run):
    printed = run("--prompt", "a", "--temperature", "0", "--max-new-tokens", "60")
    assert printed.out == WORDS.decode(greedy([ord("a")], 60)) + "\n"
    assert printed.err == "text exceeds the context of 32 tokens: the model no longer sees its beginning\n"


def test_long_prompt_is_truncated_and_reported(run):
    options = ("--temperature", "0", "--max-new-tokens", "1")
    long, end = "abcdefgh" * 5, "abcdefgh" * 4
    printed = run("--prompt", long, *options)
    assert printed.err == "prompt of 40 tokens exceeds the context of 32: dropping the first 8\n"
    whole = run("--prompt", end, *options)
    assert whole.err == "" and whole.out == printed.out


def test_beam_search(run):
    model = GPT2.load("m.bin")
    context = Context(CONFIG, model.params_flat, batch_size=4)
    context.add([WORDS.encode("a t")])
    expected = WORDS.decode([token.id for token in beam_search(context, 10)])
    assert run("--prompt", "a t", "--num-beams", "4", "--max-new-tokens", "10").out == expected + "\n"


PROMPTS = ["a", "to be t", "né\n", "x" * 30, "a t t t" * 4, *("abcdefghijk"[:n] for n in range(2, 12)), "y" * 40]


@pytest.mark.parametrize(
    "more", ["--temperature 0", "--temperature 0 --show-tokens", "--seed 3 --repetition-penalty 2"]
)
def test_prompts_side_by_side_give_the_text_of_each_alone(run, more):
    """More prompts than fit a batch, of different lengths, past the end of the window, and one that is too long."""
    save_model("m.bin", end_of_text=0.3)  # ends some
    options = ("--max-new-tokens", "40", *more.split())
    with open("prompts.jsonl", "w") as file:
        for number, prompt in enumerate(PROMPTS):
            file.write(json.dumps(prompt if number % 2 else {"prompt": prompt, "id": number}) + "\n\n")
    together = run("--prompt-file", "prompts.jsonl", *options)
    alone = [run("--prompt", prompt, *options).out for prompt in PROMPTS]
    assert len(set(alone)) > 12
    count, end = len(PROMPTS), "" if "--show-tokens" in more else "\n"
    headings = [f"--- prompt {number} of {count} ---\n" for number in range(1, count + 1)]
    expected = (heading + text.removesuffix(end) + "\n" for heading, text in zip(headings, alone, strict=True))
    assert together.out == "".join(expected)
    assert together.err.startswith("prompt of 40 tokens exceeds the context of 32") and "no longer sees" in together.err


def test_model_with_another_vocabulary_prints_ids(folder, capsys):
    model = GPT2(GPT2Config(maxT=16, V=30, L=1, NH=1, C=8))
    model.save("other.bin")
    options = ["--model", "other.bin", "--max-new-tokens", "6"]
    problem = "other.bin: its vocabulary is not GPT-2's, and not beside it"
    for more in ([], ["--num-beams", "2"]):
        main([*options, *more])
        printed = capsys.readouterr()
        assert printed.err == f"{problem}: printing token ids\n"
        assert len(printed.out.split()) == 6 and all(int(id) < 30 for id in printed.out.split())
    for refused in (["--prompt", "a"], ["--stop", "a"]):
        with pytest.raises(UserError, match=f"^{problem}: .* requires the model's vocabulary$"):
            main([*options, *refused])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--top-p 0", "--top-p 0.0: expected a number above 0, up to 1"),
        ("--top-p 1.5", "--top-p 1.5"),
        ("--temperature -1", "--temperature -1.0: expected 0"),
        ("--temperature nan", "--temperature nan"),
        ("--temperature 1e300", "--temperature 1e+300: expected 0 (greedy), or a number from 1e-06 to 1e+06"),
        ("--top-k 0", "--top-k 0: expected 1 or more"),
        ("--min-p 2", "--min-p 2.0: expected a number from 0 to 1"),
        ("--repetition-penalty 0", "--repetition-penalty 0.0"),
        ("--num-samples 0", "--num-samples 0: expected 1 to 2147483647"),
        ("--num-beams 0", "--num-beams 0: expected 1 to 2147483647"),
        ("--max-new-tokens 0", "--max-new-tokens 0: expected 1 to 2147483647"),
        ("--max-new-tokens 99999999999999999999 --num-samples 2", "expected 1 to 2147483647"),
        ("--seed -1", "--seed -1: expected 0 or more"),
        ("--threads 0", "0 threads"),
        ("--num-beams 2 --top-k 5", "--num-beams excludes --top-k"),
        ("--num-beams 2 --temperature 1", "--num-beams excludes --temperature"),
        ("--num-beams 2 --num-samples 2", "--num-beams excludes --num-samples"),
        ("--prompt a --prompt-file b", "--prompt and --prompt-file exclude each other"),
        ("--prompt-file missing.txt", "missing.txt: No such file"),
        ("--prompt-file missing.jsonl", "missing.jsonl: No such file"),
        ("--prompt-file empty.jsonl", "empty.jsonl: empty, expected a prompt in each line"),
        ("--prompt-file broken.jsonl", "broken.jsonl: line 2: not JSON: "),
        ("--prompt-file number.jsonl", "number.jsonl: line 3: 7, expected a text or "),
        ("--prompt-file blank.jsonl", "blank.jsonl: line 1: the prompt is empty"),
        ("--prompt-file half.jsonl", "half.jsonl: line 1: not UTF-8 at byte 1"),
        ("--prompt-file two.jsonl --num-samples 2", "two.jsonl: several prompts exclude --num-samples"),
        ("--prompt-file two.jsonl --num-beams 2", "two.jsonl: several prompts exclude --num-beams"),
        ("--prompt-file empty.txt", "empty.txt: the prompt is empty"),
        ("--prompt-file /proc/self/mem", "/proc/self/mem: Input/output error"),
        ("--prompt-file /dev/zero", "/dev/zero: a prompt of more than"),
        ("--prompt-file latin.txt", "latin.txt: not UTF-8 at byte 2"),
        ("--prompt=", "--prompt: the prompt is empty"),
        ("--prompt a\udce9", "--prompt: not UTF-8 at byte 1"),
        ("--stop=", "--stop: empty text"),
        ("--model missing.bin", "missing.bin"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):
    pathlib.Path("empty.txt").write_bytes(b"\n")
    pathlib.Path("latin.txt").write_bytes("caé".encode("latin-1"))
    lines = {"empty": "\n", "broken": '"a"\n{', "number": '"a"\n\n7', "blank": '{"prompt": ""}', "half": '"a\\udc00"'}
    for name, text in lines.items():
        pathlib.Path(f"{name}.jsonl").write_text(text)
    with pytest.raises(UserError) as error:
        run(*arguments.split())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf\r\n"])
def test_empty_standard_input_is_no_prompt(run, monkeypatch, data):
    options = ("--temperature", "0", "--max-new-tokens", "5")
    expected = run(*options).out
    for more in ([], ["--prompt-file", "-"]):
        monkeypatch.setattr(sys, "stdin", piped(data))
        assert run(*options, *more) == (expected, "")


def test_standard_input_without_end_is_refused(run, monkeypatch):
    with open("/dev/zero") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="standard input: a prompt of more than 67,108,864 bytes"):
            run()


def test_a_pipe_that_stays_silent_is_no_prompt(run, monkeypatch):
    options = ("--temperature", "0", "--max-new-tokens", "5")
    expected = run(*options).out
    monkeypatch.setattr(prompt, "SILENT_SECONDS", 0.1)
    read, write = os.pipe()
    with open(read) as stdin, open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        printed = run(*options)
        assert printed.out == expected
        assert printed.err.startswith("no prompt on standard input within 0.1 seconds: starting a new document")
        pipe.write("né\n")
        pipe.close()
        assert run(*options) == run("--prompt", "né", *options)


def test_a_prompt_file_of_dash_waits_for_a_slow_pipe(run, monkeypatch):
    options = ("--temperature", "0", "--max-new-tokens", "5")
    expected = run("--prompt", "né", *options).out
    monkeypatch.setattr(prompt, "SILENT_SECONDS", 0.05)
    slow = subprocess.Popen("sleep 0.5; echo né", shell=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    with slow:
        monkeypatch.setattr(sys, "stdin", slow.stdout)
        assert run(*options, "--prompt-file", "-") == (expected, "")


def test_bad_option_exits_with_status_1(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "gpt2.generate", "--top-p", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: --top-p 0.0: expected a number above 0, up to 1\n"
