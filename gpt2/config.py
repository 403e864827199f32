"""The sizes of a GPT-2 model: which there are, which are valid, and how many parameters they make."""

import dataclasses

from gpt2.errors import UserError, quoted

VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of a model. Raises UserError for sizes that no model can have.

    maxT: longest sequence. V: vocabulary. L: layers. NH: heads. C: channels, a multiple of NH.
    """

    maxT: int = 1024
    V: int = 50257
    L: int = 12
    NH: int = 12
    C: int = 768

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 1 <= value < 2**31:
                raise UserError(f"model size {field.name}={quoted(value)} is not between 1 and 2^31 - 1")
        if self.C % self.NH:
            raise UserError(f"the {self.C} channels cannot be divided among {self.NH} heads")

    @property
    def Vp(self):
        """Rows of the token embedding: V rounded up to a multiple of 128."""
        return -(-self.V // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def HS(self):
        """Channels of one head."""
        return self.C // self.NH

    @property
    def num_parameters(self):
        """Parameters of the model proper, the padding of the vocabulary not counted."""
        C, L = self.C, self.L
        return (self.V + self.maxT) * C + L * (12 * C * C + 13 * C) + 2 * C


PRESETS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(L=24, NH=16, C=1024),
    "gpt2-large": GPT2Config(L=36, NH=20, C=1280),
    "gpt2-xl": GPT2Config(L=48, NH=25, C=1600),
    "distilgpt2": GPT2Config(L=6),
}
