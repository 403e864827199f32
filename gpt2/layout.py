"""Offset tables: a tensor is declared once, as (name, shape), and is a view into one flat array."""

import math

# The parameters that are matrices or embeddings: drawn at random at first, and the ones that weight decay shrinks.
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")


class Layout:
    """Cuts a flat array into named tensors, in the order of `shapes`, without gaps.

    shapes: dict of name -> shape. Attributes: `shapes`; `offsets`, dict of name -> index of the tensor's first element;
    `size`, elements in all.
    """

    def __init__(self, shapes):
        self.shapes = dict(shapes)
        self.offsets = {}
        self.size = 0
        for name, shape in self.shapes.items():
            self.offsets[name] = self.size
            self.size += math.prod(shape)

    def slice(self, name):
        """The range of the flat array that the tensor occupies."""
        start = self.offsets[name]
        return slice(start, start + math.prod(self.shapes[name]))

    def views(self, flat):
        """Returns a dict of name -> shaped view of `flat`, an array of `size` elements."""
        assert flat.shape == (self.size,)
        return {name: flat[self.slice(name)].reshape(shape) for name, shape in self.shapes.items()}


def parameter_layout(config, padded=True):
    """The 16 parameter tensors in the order of llm.c's files; `padded` gives wte Vp rows instead of V.

    Linear weights are (out, in).
    """
    L, C = config.L, config.C
    return Layout(
        {
            "wte": (config.Vp if padded else config.V, C),
            "wpe": (config.maxT, C),
            "ln1w": (L, C),
            "ln1b": (L, C),
            "qkvw": (L, 3 * C, C),
            "qkvb": (L, 3 * C),
            "attprojw": (L, C, C),
            "attprojb": (L, C),
            "ln2w": (L, C),
            "ln2b": (L, C),
            "fcw": (L, 4 * C, C),
            "fcb": (L, 4 * C),
            "fcprojw": (L, C, 4 * C),
            "fcprojb": (L, C),
            "lnfw": (C,),
            "lnfb": (C,),
        }
    )
