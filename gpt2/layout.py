"""Offset tables: a tensor is declared once, as (name, shape), and is a view into one flat array."""

import itertools
import math

# The parameters that are matrices or embeddings: drawn at random at first, and the ones that weight decay shrinks.
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")


class Layout:
    """Cuts a flat array into named tensors, in the order of `shapes`, without gaps.

    shapes: dict of name -> shape. per_layer: names of the tensors whose first dimension is the layer.
    Attributes: `shapes`; `offsets`, dict of name -> index of the tensor's first element; `size`, elements in all.
    """

    def __init__(self, shapes, per_layer=()):
        self.shapes = dict(shapes)
        self._per_layer = frozenset(per_layer)
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

    def by_layer(self, tensors):
        """Yields (name, layer, tensor) layer by layer: what the layers share before and after them, with layer None.

        tensors: dict of name -> array, as `views` returns. With tensors declared in the order of computation, this is
        the order in which a forward pass gets to them.
        """
        for shared, names in itertools.groupby(self.shapes, lambda name: name not in self._per_layer):
            names = list(names)
            if shared:
                yield from ((name, None, tensors[name]) for name in names)
            else:
                for layer in range(len(tensors[names[0]])):
                    yield from ((name, layer, tensors[name][layer]) for name in names)


LAYER_PARAMETERS = (
    *("ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb"),
    *("ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb"),
)


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
        },
        LAYER_PARAMETERS,
    )
