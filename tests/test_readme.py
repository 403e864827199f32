"""README.md and docs/: their Python runs, their commands parse, their paths exist, their messages are the program's."""

import argparse
import ast
import dataclasses
import importlib
import itertools
import pathlib
import re
import shlex

import numpy as np
import pytest

import prepro_tinyshakespeare
from gpt2 import GPT2, GPT2Config
from gpt2.commands import COMMANDS
from gpt2.formats.llmc import write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.optimizer import OPTIMIZERS, SCHEDULES
from gpt2.training import checkpoint
from gpt2.training.__main__ import parse_arguments
from gpt2.training.budget import checkpoint_bytes
from gpt2.training.loop import resume
from gpt2.training.options import CONTENTS, FREE, PROCESS, SIZES, TrainOptions, flag, on_resume
from tests.support.runs import records
from tests.support.vocabulary import pin_byte_vocabulary, shrink_gpt2, write_foreign_folder, write_vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench/README.md", ROOT / "data/README.md"]
# With argparse's own parser.
SCRIPTS = {
    "bench/compare.py": "bench.compare",
    "bench/generate.py": "bench.generate",
    "bench/scaling.py": "bench.scaling",
}
# Of mpirun and srun.
LAUNCHERS_OPTIONS = {
    "-f",
    "-n",
    "--hostfile",
    "--bind-to",
    "--oversubscribe",
    "--mpi",
    "--kill-on-bad-exit",
    "--signal",
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def inline_code(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def commands():
    """Every command of ours that the pages show: a list of words each."""
    found = {}
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        named = [code for code in inline_code(page) if not code.startswith("gpt2 ")]  # as in "`gpt2 prepare` writes"
        for line in [*lines, *named]:
            line = re.sub(r"^(mpirun|srun) .*?(?=(python|gpt2) )", "", line.rpartition(" | ")[2])
            if line.startswith(("gpt2 ", "python ", "bash build.sh")):
                words = itertools.takewhile(lambda word: word not in ("<", ">"), shlex.split(line, comments=True))
                for command in " ".join(map(shlex.quote, words)).split(" '&&' "):
                    found[command] = shlex.split(command)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder where "gpt2" and the default data are tiny."""
    config = GPT2Config(maxT=64, V=50, L=2, NH=2, C=12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    shrink_gpt2(monkeypatch, config)
    pathlib.Path("data").mkdir()
    GPT2(config, seed=1).save("data/gpt2_124M.bin")
    for split, count in (("train", 3000), ("val", 1500)):
        write_tokens(f"data/tiny_shakespeare_{split}.bin", np.arange(count) % 50)
    schedules = dict(SCHEDULES)
    yield tmp_path
    SCHEDULES.clear()
    SCHEDULES.update(schedules)
    set_threads(available_threads())


def run_block(page, promise):
    """Runs the one Python block of a page that contains `promise`; returns its names."""
    (block,) = [block for block in blocks(page, "python") if promise in block]
    names = {"__name__": "example"}
    exec(compile(block, str(page), "exec"), names)
    return names


PROMISES = (
    "import GPT2, AdamW, DataLoader, GPT2Config\n",
    'SCHEDULES["inverse_sqrt"]',
    "last_logits",
    'Tokenizer.from_pretrained("my_model")',
    'resume("short"',
    "GoodEnough",
    "class Lion",
    "GPT2Config, Tokenizer, TrainOptions, train",
)


def test_every_python_block_is_run_by_a_test_below():
    shown = [block for page in PAGES for block in blocks(page, "python")]
    assert len(shown) == len(PROMISES)
    assert all(sum(promise in block for block in shown) == 1 for promise in PROMISES)


def test_a_loop_of_ones_own_trains(folder, capsys):
    names = run_block(README, PROMISES[0])
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.1
    assert np.array_equal(GPT2.load("mine.bin").params_flat, names["model"].params_flat)


def test_a_schedule_and_a_metric_of_ones_own_reach_the_metrics(folder):
    result = run_block(README, PROMISES[1])["result"]
    written = records()[1:]
    peak = result.state.resolved.learning_rate
    expected = [peak / 2, peak, *(peak * (3 / (step + 1)) ** 0.5 for step in range(2, 10))]
    assert [record["lr"] for record in written] == pytest.approx(expected)
    assert [record["train_loss"] for record in written] == list(result.train_losses.values())
    assert all(record["largest_weight"] > 0 for record in written)
    assert written[-1]["largest_weight"] == float(abs(result.state.model.params["wte"]).max())


def test_the_models_methods_do_what_the_page_asserts(folder):
    run_block(ROOT / "docs/python.md", PROMISES[2])


def test_the_first_example_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    pathlib.Path("data").mkdir()
    pin_byte_vocabulary(monkeypatch, whole=True)  # at its size, 50,257 tokens
    write_vocabulary(pathlib.Path("data"), whole=True)
    for split in ("train", "val"):
        write_tokens(f"data/tiny_shakespeare_{split}.bin", np.arange(3000) % 50)
    names = run_block(ROOT / "docs/python.md", PROMISES[7])
    out = capsys.readouterr().out
    assert out.startswith("GPT2(GPT2Config(maxT=64, V=50257, L=4, NH=4, C=128)), 7,234,432 parameters\nmemory: ")
    assert out.count("The sea was") == 2
    losses = list(names["result"].train_losses.values())
    assert len(losses) == 3 and all(f"\n{step} {loss}\n" in out for step, loss in enumerate(losses, start=1))


def test_the_vocabulary_of_a_model_is_what_the_page_says(folder):
    words = write_foreign_folder("my_model", GPT2Config(maxT=8, V=300, L=1, NH=1, C=4))
    names = run_block(ROOT / "docs/python.md", PROMISES[3])
    assert names["tokenizer"].sha256 == words.sha256


def test_a_run_is_resumed(folder):
    run_block(ROOT / "docs/python.md", PROMISES[4])
    assert checkpoint.find("short").step == 4


def test_an_exception_in_the_callback_ends_the_run_and_saves_the_step(folder, capsys):
    run_block(ROOT / "docs/python.md", PROMISES[5])
    assert checkpoint.find("stopped").step == 3
    assert capsys.readouterr().out.endswith("saved in stopped/\n")
    assert records("stopped")[1]["gradient_of_wpe"] > 0


def test_an_optimizer_of_ones_own_updates_the_parameters(folder, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "lion", None)  # until the end of the test
    before = GPT2.load("data/gpt2_124M.bin").params_flat
    result = run_block(ROOT / "docs/python.md", PROMISES[6])["result"]
    moved = abs(result.state.model.params_flat - before)
    # Each step moves a parameter by the learning rate, up or down.
    assert 9e-4 < moved.max() < 1.1e-3
    assert result.train_losses[10] < result.train_losses[1]
    found = checkpoint.find("lion")
    assert found.optimizer_steps == 10
    # One array: what AdamW would keep, less v.
    assert found.state.stat().st_size < checkpoint_bytes(result.state.model.config) - before.nbytes
    resumed = resume("lion", {"max_steps": 11}).state.optimizer
    assert resumed.m.any() and resumed.steps == 11


class ParsedError(Exception):
    """Ends a command once its command line has been parsed."""


@pytest.mark.parametrize("words", [pytest.param(words, id=shown) for shown, words in commands().items()])
def test_every_command_shown_parses(words, monkeypatch):
    if words[0] == "bash":
        if words[2:3] in (["test"], ["chat"]):
            return  # pytest's options, and see test_build_chat.py
        words = ["gpt2", "train", *words[2:]]
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    elif words[0] == "python":
        words = words[1:]
    name, *arguments = words
    try:
        if words[:2] == ["gpt2", "train"]:
            TrainOptions(**parse_arguments(arguments[1:])[0])
        elif name == "gpt2" and arguments and arguments[0] in COMMANDS:
            parser_of(arguments[0]).parse_args(arguments[1:])
        elif name == "prepro_tinyshakespeare.py":
            prepro_tinyshakespeare.make_parser().parse_args(arguments)
        elif name in SCRIPTS or name == "tests.soak":
            parse(SCRIPTS.get(name, name), arguments, monkeypatch)
        else:
            assert words in (["gpt2"], ["gpt2", "--version"])
    except SystemExit as end:
        assert end.code == 0, "the command line is refused"  # 0: --help


def parser_of(name):
    return importlib.import_module(COMMANDS[name].module).make_parser()


def parse(name, arguments, monkeypatch):
    """Runs a command up to the point where it has parsed its arguments; returns its parser."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(parser, given=None, namespace=None):
        parse_args(parser, given, namespace)
        raise ParsedError(parser)

    command = importlib.import_module(name)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(ParsedError) as parsed:
        command.main()
    return parsed.value.args[0]


def test_every_option_named_in_the_text_exists(monkeypatch):
    parsers = [prepro_tinyshakespeare.make_parser(), *map(parser_of, COMMANDS)]
    for name in (*SCRIPTS.values(), "tests.soak"):
        with monkeypatch.context() as patch:
            parsers.append(parse(name, [], patch))
    known = {option for parser in parsers for option in parser._option_string_actions}
    named = {
        option for page in PAGES for code in inline_code(page) for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", code)
    }
    assert named - known - {"-m"} - LAUNCHERS_OPTIONS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_path_exists(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for code in inline_code(page):
        if re.fullmatch(r"(gpt2|tests|bench|docs|\.ci)/[\w./-]*|[\w./-]+\.(py|md|sh|toml)", code):
            # A file is named from the root, from the page, or beside one named in full on the same line or row.
            places = [ROOT, page.parent, ROOT / "gpt2", ROOT / "gpt2/kernels"]
            generated = code.endswith("__pycache__/") or code == "gpt2/data"
            assert generated or any((place / code).exists() for place in places), code


def test_anchors_are_headings():
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text(encoding="utf-8")):
            target = (page.parent / link if link else page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def literals():
    """The string literals of the program, with a NUL for what an f-string fills in."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "gpt2").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_quoted_is_the_programs():
    quoted = re.findall(r"^> `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 15
    program = list(literals())
    for message in quoted:
        for fragment in re.split("…", message.removeprefix("error: ")):
            fragment = fragment.strip()
            assert any(fragment in literal for literal in program), f"{message}: {fragment!r}"


def test_the_page_on_checkpoints_says_which_options_may_change():
    table = re.findall(
        r"^\| (`--.*) \| (.*) \|$", (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    shown = [sorted(re.findall(r"--[a-z-]+", options)) for options, _ in table]
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    expected = [sorted(flag(name) for name in names if on_resume(name) == kind) for kind in (FREE, PROCESS, CONTENTS)]
    assert shown == [*expected, sorted(["--init", "--size", *map(flag, SIZES)])]


def test_the_readme_can_be_read_in_five_minutes():
    assert len(README.read_text(encoding="utf-8").split()) <= 1000
