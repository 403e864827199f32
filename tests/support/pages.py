"""Pages as tests read them, and the small model that they show."""

import base64
import json
import re
import zlib

import numpy as np

from gpt2 import GPT2, GPT2Config
from gpt2.data.vocabulary import save_vocabulary
from gpt2.formats.pretrained import vocabulary_path
from tests.support.numeric import randomise
from tests.support.vocabulary import byte_level

WORDS = byte_level()
CONFIG = GPT2Config(maxT=300, V=WORDS.size, L=3, NH=2, C=16)


def save_model(path, seed=1, config=CONFIG):
    """Saves a random model of the bytes' vocabulary, with that beside it; returns the model."""
    model = GPT2(config)
    randomise(model, np.random.default_rng(seed))
    model.vocabulary = WORDS.sha256
    model.save(path)
    save_vocabulary(WORDS, vocabulary_path(path))
    return model


def page_data(page):
    """Returns the data that a page, bytes, holds for its scripts."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode(), re.DOTALL)
    return json.loads(found[1])


def unpacked(packed, NH, T):
    """Returns a layer's attention (NH,T,T) as attention.js reads it."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).astype(float)
    high, low = np.split(planes, 2)
    attention = np.zeros((NH, T, T))
    attention[:, np.tri(T, dtype=bool)] = ((256 * high + low) / 65535).reshape(NH, -1)
    return attention
