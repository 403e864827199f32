"""Shakespeare's plays in Project Gutenberg's layout, brought into TinyShakespeare's form.

Paragraphs are separated by blank lines. One whose first line is just "NAME." starts a speech; one without a name
continues the speech before. In a few places the dot, the blank line or the line break is missing. Three plays shorten
the speakers' names ("Ham.", "FAL."), and so they stay.
"""

import re

# A bracketed stage direction within a paragraph, with any nested in it; the bracket at either end may be missing.
_DIRECTION = re.compile(r"[\[{](?:[^\[\]{}]|\[[^\[\]]*\])*(?:[\]}]|$)|^[^\[\]{}]*[\]}]")
_UNBRACKETED = re.compile(r"(Enter|Exit|Exeunt|Dead March|Here alarum)\b")
_SONG_HEADING = re.compile(r"([IVX]{2,}|SONG|Song|DUMB SHOW)\.?")
_HEADING = re.compile(r"(THE )?(ACT|Act|SCENE|Scene|INDUCTION|END|ORDER)\b")
_OPENING = re.compile(r"(THE )?(ACT|Act|INDUCTION|PROLOGUE)\b")
_WORD = r"(?:[A-Z0-9&][A-Za-z0-9&'.-]*|and|of|&c)"
_NAME = re.compile(rf"(?=.*[A-Za-z]{{2}}){_WORD}(?:,? {_WORD}){{0,3}}(?<!')")
_NAME_INLINE = re.compile(rf"({_WORD}(?: {_WORD}){{0,3}}?)\.\s*(?=[A-Z'])")
_ORDINALS = {"1": "First", "2": "Second", "3": "Third"}

# TinyShakespeare writes speakers without a proper name as "First Citizen", the others as "MENENIUS".
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
    """Returns the texts of the plays, an iterable of str, as one text. Texts without acts (poems) are skipped."""
    speeches = [speech for play in plays for speech in parse_play(play)]
    return "\n".join(f"{speaker}:\n" + "".join(f"{line}\n" for line in lines) for speaker, lines in speeches)


def parse_play(play):
    """Returns the speeches of a play as a list of (speaker, list of lines).

    Headings, stage directions and everything before the first act are skipped.
    """
    paragraphs = _spoken_paragraphs(play)
    known = {_sole_name(lines) for lines in paragraphs} - {None}
    speeches = []
    for lines in paragraphs:
        if _HEADING.match(lines[0]):
            speeches.append((None, []))  # collects the lines up to the next name, for removal
        inline = _NAME_INLINE.match(lines[0])
        if inline and inline[1] in known and lines[0].rstrip(".") not in known:
            lines = [inline[1], lines[0][inline.end() :], *lines[1:]]
        for line in lines:
            name = line.rstrip(".")
            if name in known:
                speeches.append((_tiny_name(name), []))
            elif speeches:
                speeches[-1][1].append(line)
    return [(speaker, lines) for speaker, lines in speeches if speaker and lines]


def _spoken_paragraphs(play):
    """Returns the paragraphs from the first act on, as lists of lines without stage directions and indentation."""
    spoken = []
    for paragraph in re.split(r"\n\s*\n", play):
        lines = [" ".join(line.split()) for line in _DIRECTION.sub("", paragraph).split("\n")]
        lines = [line for line in lines if re.search("[A-Za-z]", line) and not _SONG_HEADING.fullmatch(line)]
        if lines and not _UNBRACKETED.match(lines[0]) and (spoken or _OPENING.match(lines[0])):
            spoken.append(lines)
    return spoken


def _sole_name(lines):
    """Returns the speaker's name if it is all there is in the paragraph's first line, else None."""
    if not _NAME.fullmatch(lines[0]) or _HEADING.match(lines[0]):
        return None
    capitals = re.sub(r"\b(and|of|c)\b", "", lines[0]).isupper()
    return lines[0].rstrip(".") if capitals or (lines[0].endswith(".") and lines[1:]) else None


def _tiny_name(name):
    """Returns a speaker's name as TinyShakespeare writes it."""
    words = [_ORDINALS.get(word.rstrip("."), word) for word in name.split()]
    generic = all(word.lower().rstrip(".,") in _GENERIC for word in words)
    return " ".join(word.capitalize() if generic else word.upper() for word in words)
