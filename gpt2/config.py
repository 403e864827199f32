"""Model sizes: presets, which sizes are valid, and the parameter count."""

import dataclasses
import numbers

from gpt2.errors import UserError, safe_repr

VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of a model, whole numbers, NumPy's among them. Raises UserError for invalid ones.

    maxT: maximum sequence length. V: vocabulary size. L: layers. NH: attention heads. C: channels, a multiple of NH.
    """

    maxT: int = 1024
    V: int = 50257
    L: int = 12
    NH: int = 12
    C: int = 768

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            # bool is a subclass of int.
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= value < 2**31:
                raise UserError(
                    f"model size {field.name}={safe_repr(value)}: expected a whole number from 1 to 2^31 - 1"
                )
            object.__setattr__(self, field.name, int(value))
        if self.C % self.NH:
            raise UserError(f"C={self.C} channels: expected a multiple of NH={self.NH} heads")

    @property
    def Vp(self):
        """Padded vocabulary size: V rounded up to a multiple of 128."""
        return -(-self.V // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def HS(self):
        """Channels per head."""
        return self.C // self.NH

    @property
    def num_parameters(self):
        """Parameter count, without the vocabulary padding."""
        C, L = self.C, self.L
        return (self.V + self.maxT) * C + L * (12 * C * C + 13 * C) + 2 * C


# The released models, and one that trains from scratch in minutes.
PRESETS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(L=24, NH=16, C=1024),
    "gpt2-large": GPT2Config(L=36, NH=20, C=1280),
    "gpt2-xl": GPT2Config(L=48, NH=25, C=1600),
    "distilgpt2": GPT2Config(L=6),
    "baby": GPT2Config(maxT=64, L=4, NH=4, C=128),
}
