"""Losses and norms that stand out from those before them."""

import collections
import math

from gpt2.errors import UserError


class OutlierDetector:
    """The z-scores of a series of numbers over a moving window, as outlier_detector.h of llm.c defines them.

    A value is part of the window that it is compared with, so that no score is above sqrt(window - 1), 11.3 for the
    window of llm.c, 128. Mean and deviation are computed anew from the window each time, not from running sums as
    there: nothing drifts, and the window is all that has to be saved.
    """

    def __init__(self, window=128):
        """window: values in it, at least 2."""
        self._values = collections.deque(maxlen=window)

    def update(self, value):
        """Returns the z-score of the next value: (value - mean) / standard deviation of the last `window` values, this
        one included; 0.0 if they are all the same, and NaN for the first `window` values.

        A value that is not finite gives NaN and doesn't enter the window.
        """
        value = float(value)
        if not math.isfinite(value):
            return math.nan
        values, window = self._values, self._values.maxlen
        was_full = len(values) == window
        values.append(value)
        if not was_full:
            return math.nan
        if min(values) == max(values):
            return 0.0
        mean = math.fsum(each / window for each in values)
        return math.sqrt(window) * (value - mean) / math.hypot(*(each - mean for each in values))

    @property
    def state(self):
        """The window, a list of floats, oldest first. Assigning a saved one goes on from it.

        Raises UserError if what is assigned cannot be a window.
        """
        return list(self._values)

    @state.setter
    def state(self, values):
        window = self._values.maxlen
        if (
            not isinstance(values, list)
            or len(values) > window
            or not all(type(value) is float and math.isfinite(value) for value in values)
        ):
            raise UserError(f"the values saved for finding outliers are not a list of at most {window} finite numbers")
        self._values = collections.deque(values, window)
