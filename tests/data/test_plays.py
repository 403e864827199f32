"""The plays' layout, with its irregularities, in TinyShakespeare's form."""

import pytest

from gpt2.data.plays import parse_play, plays_to_text


def test_cast_headings_and_stage_directions_are_removed():
    play = """THE TRAGEDY OF CORIOLANUS

by William Shakespeare

PERSONS REPRESENTED.

MENENIUS AGRIPPA, Friend to Coriolanus
A CITIZEN.
More of them

SCENE: Partly in Rome, and partly in the territories of the
Volscians.


ACT I.

SCENE I. Rome. A street.

[Enter a company of citizens, with staves, and
other weapons.]

FIRST CITIZEN.
Before we proceed any further,  [Shouts within.]
hear me speak.

MENENIUS.
[Aside.] The one side
   must have bale.--

[Enter CAIUS MARCIUS.]

Hail, noble Marcius!

SCENE II. The same. A lane
beyond the street.

Another place.

ALL.
Farewell.

[Exeunt]

THE END
"""
    assert plays_to_text([play]) == (
        "First Citizen:\nBefore we proceed any further,\nhear me speak.\n\n"
        "MENENIUS:\nThe one side\nmust have bale.--\nHail, noble Marcius!\n\n"
        "All:\nFarewell.\n"
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        # Names in lower case, of several words, abbreviated.
        ("Ham.\nWords.", [("HAM", ["Words."])]),
        ("Mar. and Ber.\nMy lord.", [("MAR. AND BER", ["My lord."])]),
        ("1 Clown.\nA pit.\n\n2. CAR.\nA hat.", [("First Clown", ["A pit."]), ("SECOND CAR", ["A hat."])]),
        ("CAESAR, ANTONY, and LEPIDUS.\nWelcome.", [("CAESAR, ANTONY, AND LEPIDUS", ["Welcome."])]),
        ("LUCIUS' SERVANT.\nPut in.", [("LUCIUS' SERVANT", ["Put in."])]),
        # Without the dot, with an indented speech.
        ("OBERON\n  Flower of this dye,\n  Sink.", [("OBERON", ["Flower of this dye,", "Sink."])]),
        # No line break, no blank line before, or an extra blank line after.
        ("KATE.\nSo.\n\nKATE. So, now.\nThey come.", [("KATE", ["So."]), ("KATE", ["So, now.", "They come."])]),
        ("ALL.\nYes.\n\nBRUTUS.\nNo.\nALL.\nYes.", [("All", ["Yes."]), ("BRUTUS", ["No."]), ("All", ["Yes."])]),
        ("CLOWN.\n\nTruly.", [("Clown", ["Truly."])]),
        # Not names: a short sentence, a word, song numbers and titles, a signature, a call.
        ("ANNE.\nNo.\n\nCome hither, sir.\nSit.", [("ANNE", ["No.", "Come hither, sir.", "Sit."])]),
        ("ANNE.\nNo.\n\nAmen.", [("ANNE", ["No.", "Amen."])]),
        ("ANNE.\nHere.\n\nSONG.\nSigh no more.\n\nII.\nSing.", [("ANNE", ["Here.", "Sigh no more.", "Sing."])]),
        ("ANNE.\nRead:\n\n'Thine, JOHN FALSTAFF.'\nSo.", [("ANNE", ["Read:", "'Thine, JOHN FALSTAFF.'", "So."])]),
        ("ANNE.\nSee.\n\nPisanio! come.", [("ANNE", ["See.", "Pisanio! come."])]),
        # Stage directions: in braces, nested, unclosed, unopened, without brackets.
        ("ANNE. {Aside.]\nNo.", [("ANNE", ["No."])]),
        ("ANNE.\nNo.\n\n[Enter two [BRITISH] CAPTAINS.]", [("ANNE", ["No."])]),
        ("ANNE.\nNo.\n\n[Exeunt\n\nKATE.\nYes.", [("ANNE", ["No."]), ("KATE", ["Yes."])]),
        ("ANNE.\nNo.\n\n[Drums. Enter\n\na Gentlewoman.]\n\nKATE.\nYes.", [("ANNE", ["No."]), ("KATE", ["Yes."])]),
        ("ANNE.\nNo.\n\nEnter HELEN.\n\nKATE.\nYes.", [("ANNE", ["No."]), ("KATE", ["Yes."])]),
    ],
)
def test_layouts(text, expected):
    assert parse_play("ACT I.\n\nSCENE I. A street.\n\n" + text) == expected


def test_a_prologue_before_the_first_act_is_kept():
    play = "CAST\n\nTHE PROLOGUE.\n\nI come no more.\n\nACT I.\n\nKING.\nWell."
    assert parse_play(play) == [("The Prologue", ["I come no more."]), ("KING", ["Well."])]
