"""Conversations as tokens, by a chat template: a Jinja text in transformers' dialect that travels with a vocabulary.

The template writes control tokens around what is said. What is said is ordinary text: a message that spells a control
token does not contain it.
"""

import datetime
import json
import re

import jinja2
import jinja2.ext
import jinja2.sandbox

from gpt2.data.chat_vocabulary import chat_template, control_ids
from gpt2.data.conversations import ASSISTANT
from gpt2.errors import UserError
from gpt2.formats.tokenizer_folder import NAMED, SETTINGS, SPECIAL_TOKENS

# For models that were never tuned on conversations: a dialogue as it is printed, which they have read.
PLAIN_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {{- message['role'] | capitalize + ':' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- ' ' + message['content'] + '\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- ' ' + message['content'] + '\\n' }}
    {%- endif %}
{%- endfor %}
{{- 'Assistant:' if add_generation_prompt else '' }}"""
PLAIN_STOPS = ("\nUser:", "\nAssistant:", "\nSystem:")
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")
PRIVATE = range(0xF0000, 0xFFFFE)  # Unicode's private use


class ChatTemplate:
    """How a vocabulary writes conversations.

    Attributes: `name` of the template's file, for error messages; `is_plain`, whether the vocabulary has no template,
    so that conversations are plain text; `stops`, texts that end a reply then, besides the vocabulary's `ends`.
    """

    def __init__(self, words):
        """words: a Vocabulary or GPT2Vocabulary. Raises UserError if its template does not parse."""
        if words.problem is not None:
            raise UserError(words.problem)
        found = chat_template(words)
        self.is_plain, self.stops = found is None, () if found else PLAIN_STOPS
        file, self._source = found or ("the plain template", PLAIN_TEMPLATE)
        self.name = f"{words.path}/{file}" if words.path and found else file
        ids = control_ids(words, self._source)
        self._words, self._ids = words, dict(sorted(ids.items(), key=lambda item: -len(item[0])))  # the longest first
        self._names = re.compile("|".join(map(re.escape, self._ids)) or "(?!)")
        self._variables = _variables(words)
        if self.is_plain:
            self._variables["bos_token"] = "".join(name for name, id in self._ids.items() if id == words.begin)
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(self._source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self.name}: line {error.lineno}: not a template that parses: {error.message}") from error

    def encode(self, messages, reply=False, source="the conversation"):
        """Returns (ids, counts) of a conversation: its tokens, a list of int, and which of them count, a list of bool.

        Those count that the assistant has to produce: its words and the end of each of its turns. messages: as
        conversations.read_conversations yields them. reply: end with the tokens after which the assistant replies.
        source: of the messages, for errors. Raises UserError if the template or the vocabulary refuses a message, or
        there are no tokens.
        """
        contents = "".join(message["content"] for message in messages)
        private = (character for character in map(chr, PRIVATE) if character not in contents + self._source)
        self._environment.marks = start, stop = next(private), next(private)
        hidden = {name: next(private) for name in self._ids if name in contents}
        messages = [message | {"content": _replaced(message["content"], hidden)} for message in messages]
        text = self._render(messages, reply, source)
        if not GENERATION.search(self._source):
            text = self._with_marks(text, messages, source)
        ids, counts, counted = [], [], False
        shown = {character: name for name, character in hidden.items()}
        # Prompt and answer are tokenised apart: a model, too, gets the one and then produces the other.
        for part in re.split(f"([{start}{stop}])", text):
            if part in (start, stop):
                counted = part == start
                continue
            found = self._encode(part, shown, source)
            ids += found
            counts += [counted] * len(found)
        if not ids:
            raise UserError(f"{source}: {self.name} writes nothing of it")
        return ids, counts

    def encode_to_learn(self, messages, source):
        """Returns what `encode` does. Raises UserError also if nothing counts, but for a first token."""
        ids, counts = self.encode(messages, source=source)
        if not any(counts[1:]):
            raise UserError(f"{source}: {self.name} marks nothing in it as the assistant's")
        return ids, counts

    def _encode(self, text, shown, source):
        """Returns the tokens of text from the template; shown: what its private characters stand for."""
        ids, end = [], 0
        for name in self._names.finditer(text):
            ids += [*self._ordinary(text[end : name.start()], shown, source), self._ids[name[0]]]
            end = name.end()
        return ids + self._ordinary(text[end:], shown, source)

    def _ordinary(self, text, shown, source):
        """Returns the tokens of text that holds no control token."""
        found = self._words.encode(_replaced(text, shown), source) if text else []
        if shown and not set(self._ids.values()).isdisjoint(found):  # one that the vocabulary takes for a word
            pieces = re.split(f"([{''.join(shown)}])", text)
            pieces = [letter for piece in pieces for letter in shown.get(piece, [piece])]
            found = [id for piece in pieces for id in self._words.encode(piece, source)]
        return found

    def _render(self, messages, reply, source):
        variables = self._variables | {"tools": None, "documents": None}
        try:
            return self._template.render(messages=messages, add_generation_prompt=reply, **variables)
        except Exception as error:  # a template is a program, and may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{source}: {self.name} refuses it: {reason}") from error

    def _with_marks(self, text, messages, source):
        """Marks what the assistant produces in a text, by rendering how the conversation was before and after."""
        start, stop = self._environment.marks
        ends = [name for name, id in self._ids.items() if id in self._words.ends]
        out, done = "", 0
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            before = self._render(messages[:number], True, source)
            after = self._render(messages[: number + 1], False, source)
            if not (text.startswith(after) and after.startswith(before) and len(before) >= done):
                raise UserError(
                    f"{source}: {self.name} does not say which words are the assistant's; put {{% generation %}} and "
                    "{% endgeneration %} around them"
                )
            turn = after[len(before) :]  # what follows its end token does not belong to it
            size = max((turn.rfind(end) + len(end) for end in ends if end in turn), default=len(turn))
            out += text[done : len(before)] + start + turn[:size] + stop
            done = len(before) + size
        return out + text[done:]


def _replaced(text, replacements):
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def _variables(words):
    """Returns the names of the control tokens that templates refer to, "bos_token" and so on, a dict."""
    settings = {}
    for file in (SPECIAL_TOKENS, SETTINGS):
        settings |= json.loads(words.files.get(file, "{}"))
    found = {name: settings.get(name) for name in NAMED}
    found = {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
    return {name: token for name, token in found.items() if isinstance(token, str)}


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %} ... {% endgeneration %}, which puts the environment's `marks` around its contents."""

    tags = frozenset(["generation"])

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller):
        start, stop = self.environment.marks
        return start + caller() + stop


def _environment():
    """Returns an environment that renders templates as transformers does."""
    extensions = [_Generation, jinja2.ext.loopcontrols]
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message):
    raise jinja2.TemplateError(message)
