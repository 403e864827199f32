"""The command line: the parser of all commands, and options that several of them share."""

import argparse
import re
import sys

from gpt2.commands import COMMANDS
from gpt2.errors import error_line
from gpt2.inference.forms import FORMS

_EXPECTED = {int: "a whole number", float: "a number"}


class Parser(argparse.ArgumentParser):
    """A parser whose help begins with examples, and whose errors are one line, with exit status 2.

    Options are not abbreviated. `type=int` and `type=float` are reported as "a whole number" and "a number".
    """

    model_required = False
    default_model = None

    def __init__(self, prog, description, examples, epilog=None):
        """examples: command lines without prog."""
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=_Layout,
        )
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own takes -1e-3 for an option
        self._examples = [f"  {prog} {example}".rstrip() for example in examples]
        for convert in _EXPECTED:
            self.register("type", convert, _checked(convert))
        self.add_argument(
            "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
        )

    def parse_args(self, args=None, namespace=None):
        """Returns the options as a namespace; exits with a line on stderr and status 2 if there is a mistake."""
        words = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown_options(words)
        try:
            options, rest = self.parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            self.error(_message(error))
        rest = [word for word in rest if word != "--"]
        if "place" in options:
            rest = self._choose_model(options, rest)
        if rest:
            self.error(f"{rest[0]}: not expected here; {self.prog} --help shows what is")
        return options

    def error(self, message):
        """Prints the line and exits."""
        self.exit(2, f"{error_line(message)}\n")

    def format_help(self):
        """Returns the examples, the usage, then what argparse prints."""
        if self.usage is None:
            shown = {"?": "[{}]", "+": "{} ..."}
            places = [
                shown.get(each.nargs, "{}").format(each.metavar) for each in self._actions if not each.option_strings
            ]
            self.usage = " ".join([self.prog, *places, "[OPTIONS]"])
        return "\n".join(["examples:", *self._examples, "", super().format_help()])

    def _refuse_unknown_options(self, words):
        """Reports an option that there isn't before anything else: what is missing may be what it was meant to be."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            is_option = word.startswith("-") and len(word) > 1 and " " not in word and not _is_number(word)
            if is_option and name not in known and (word.startswith("--") or word[:2] not in known):
                near = _nearest(name, [each for each in known if each.startswith("--")])
                advice = f"did you mean {near}?" if near else f"{self.prog} --help lists the options"
                self.error(f"{name}: no such option; {advice}")

    def _choose_model(self, options, rest):
        """Sets options.model to the one model that was given; returns the other words that were left over.

        Python 3.11 leaves over what follows an option in the place of an optional argument.
        """
        places = [options.place, *rest]
        given = [name for name in (*places, options.model) if name is not None]
        if len(given) > 1:
            self.error(f"{given[0]} and {given[1]}: give one model, as MODEL or as --model")
        if not given and self.model_required:
            self.error(f"no model given; name it first: {self.prog} out")
        options.model = given[0] if given else self.default_model
        del options.place
        return []

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value}: expected one of {', '.join(action.choices)}")


class _Layout(argparse.HelpFormatter):
    """Wraps descriptions, but leaves the lines of a table as they are."""

    def _fill_text(self, text, width, indent):
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Version(argparse.Action):
    def __call__(self, parser, *_):
        from gpt2.version import __version__

        print(f"gpt2 {__version__}")
        parser.exit()


def _checked(convert):
    def converted(text):
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: expected {_EXPECTED[convert]}") from None

    return converted


def _message(error):
    """The line for an argparse.ArgumentError."""
    if error.argument_name is None:
        return error.message
    name = error.argument_name.split("/")
    name = next((each for each in name if each.startswith("--")), name[0])
    if error.message.startswith("expected "):
        return f"{name}: expected a value"
    if error.message.startswith("ignored explicit argument"):
        return f"{name}: takes no value"
    return f"{name} {error.message}"


def _nearest(name, names):
    """Returns the name that was probably meant, or None."""
    import difflib

    bare = {each.lstrip("-"): each for each in names}
    longer = [each for each in names if each.startswith(name)]
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1)
    return next(iter(longer or [bare[each] for each in near]), None)


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True


def command_parser(name, details=None, epilog=None):
    """Returns the Parser of one of COMMANDS, with its summary and examples. details: more for the description."""
    command = COMMANDS[name]
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    return Parser(f"gpt2 {name}", f"{summary} {details}" if details else summary, command.examples, epilog)


def add_model(parser, group, default=None):
    """Adds MODEL to a parser and --model to a group of it; without a default one of them is required."""
    parser.default_model, parser.model_required = default, default is None
    parser.add_argument("place", nargs="?", metavar="MODEL", help="the same as --model")
    group.add_argument(
        "--model",
        metavar="NAME|FILE.bin|DIR",
        help="released weights (gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or OWNER/NAME on the Hugging Face "
        "hub), a model file, the folder of a training run (its newest model), or a Hugging Face folder"
        + (f" (default: {default})" if default else ""),
    )


def add_weights(parser):
    """Adds --weights to a parser or a group of one."""
    help_text = (
        "form of the weights, which each token reads: bf16 takes half of float32's memory, int8, with a scale for each "
        "32 weights, little more than a quarter (default: bf16 for a bfloat16 model file, else float32)"
    )
    parser.add_argument("--weights", choices=FORMS, help=help_text)


def add_threads(parser):
    """Adds --threads to a parser or a group of one: None unless given, as machine.set_threads takes it."""
    help_text = "threads, which do not affect the result (default: all available CPUs)"
    parser.add_argument("--threads", type=int, metavar="N", help=help_text)


def add_data_dir(parser):
    """Adds --data-dir to a parser; without it files.data_dir() is the folder."""
    from gpt2.formats.files import data_dir

    help_text = "folder for downloads and token files (default: %(default)s)"
    parser.add_argument("--data-dir", default=data_dir(), metavar="DIR", help=help_text)


def add_sampling(parser, temperature=1, top_k=None):
    """Adds the options of sampling to a parser; returns their group. temperature, top_k: the defaults, None for off."""
    group = parser.add_argument_group("sampling")
    add, off = group.add_argument, "off" if top_k is None else top_k
    add("--temperature", type=float, metavar="X", help=f"divides the logits; 0: greedy (default: {temperature})")
    add("--top-k", type=int, metavar="N", help=f"sample from the N most probable tokens (default: {off})")
    add("--top-p", type=float, metavar="P", help="from the most probable tokens that add up to P (default: off)")
    help_text = "from tokens at least P times as probable as the top token (default: off)"
    add("--min-p", type=float, metavar="P", help=help_text)
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: avoid repetition (default: 1)")
    add("--seed", type=int, metavar="N", help="same seed, same text (default: different text each time)")
    return group
