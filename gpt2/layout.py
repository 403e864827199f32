"""Offset tables: a tensor is declared once, as name and shape, and is a view of one flat array."""

import functools
import itertools
import math
import types

# Matrices and embeddings: the parameters that are initialised at random and that weight decay applies to.
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")


class Views(dict):
    """Tensors by name. They are written in place: replacing one would detach it from the flat array."""

    def __setitem__(self, name, tensor):
        if tensor is not self.get(name):  # it is after views[name] *= 2
            raise TypeError(f"{name} is a view of a flat array: assign to [{name!r}][...], in place")


class Layout:
    """Splits a flat array into named, contiguous tensors, in the order of `shapes`. Immutable, so it can be shared.

    shapes: dict of name -> shape. per_layer: names of the tensors whose first dimension is the layer. Attributes:
    `shapes`; `offsets`, name -> index of the tensor's first element (both read-only mappings); `size`, the total number
    of elements.
    """

    def __init__(self, shapes, per_layer=()):
        offsets, size = {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += math.prod(shape)
        self.shapes = types.MappingProxyType(dict(shapes))
        self.offsets = types.MappingProxyType(offsets)
        self.size = size
        self._per_layer = frozenset(per_layer)

    def __reduce__(self):
        return Layout, (dict(self.shapes), self._per_layer)  # mapping proxies cannot be copied

    def slice(self, name):
        """Returns the tensor's range in the flat array, as a slice."""
        start = self.offsets[name]
        return slice(start, start + math.prod(self.shapes[name]))

    def views(self, flat):
        """Returns Views of `flat`, name -> shaped view. flat: (size,), contiguous, any dtype; ValueError for others."""
        if flat.shape != (self.size,) or not flat.flags.c_contiguous:
            raise ValueError(f"an array of shape {flat.shape}: expected a contiguous one of shape ({self.size},)")
        return Views((name, flat[self.slice(name)].reshape(shape)) for name, shape in self.shapes.items())

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


@functools.cache
def parameter_layout(config, padded=True):
    """Returns the Layout of the 16 parameter tensors, in the order of llm.c's files. Linear weights are (out, in).

    padded: wte has Vp rows, or V if False.
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
