"""A stand-in for cupy: numpy's numbers in arrays that refuse to meet numpy's own.

Like cupy's they are never turned into numpy's silently, and take none into account but those that were put
there. What this leaves untested is what only a card has.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

# What cupy has too, with the same meaning, and was looked up in its reference.
NAMES = "arange asarray clip einsum empty exp matmul maximum minimum sqrt tanh where"


def _inside(value):
    if isinstance(value, Foreign):
        return value.inner
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("an array of numpy's among those of a card")
    if isinstance(value, tuple | list):
        return type(value)(map(_inside, value))
    return value


def _outside(value):
    return Foreign(value) if isinstance(value, np.ndarray) else value


class Foreign(NDArrayOperatorsMixin):
    """An array that lies elsewhere."""

    def __init__(self, inner):
        self.inner = inner

    def __array__(self, *_args, **_options):
        raise TypeError("implicit conversion to numpy")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} of an array that is not numpy's")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None):
        if ufunc not in OPERATORS:
            raise TypeError(f"numpy.{ufunc.__name__} of an array that is not numpy's")
        options = {} if out is None else {"out": _inside(out)}
        return _outside(getattr(ufunc, method)(*map(_inside, inputs), **options))

    def __getitem__(self, key):
        return _outside(self.inner[_inside(key)])

    def __setitem__(self, key, value):
        self.inner[_inside(key)] = _inside(value)

    def __len__(self):
        return len(self.inner)

    @property
    def T(self):  # noqa: N802
        return Foreign(self.inner.T)

    def get(self):
        """Return numpy's array, as cupy's method of this name does."""
        return self.inner.copy()

    def __getattr__(self, name):
        if name.startswith("__"):  # other ways for numpy to get at the numbers
            raise AttributeError(name)
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def method(*args, **options):
            return _outside(found(*map(_inside, args), **options))

        return method


# Operators reach numpy as these functions; whoever calls them by name takes them from the namespace.
OPERATORS = {np.add, np.subtract, np.multiply, np.true_divide, np.matmul, np.negative}
OPERATORS |= {np.less, np.less_equal, np.greater, np.greater_equal, np.bitwise_or, np.bitwise_and}


class Namespace:
    """The functions of `NAMES` for such arrays, and no others."""

    def __getattr__(self, name):
        if name not in NAMES.split():
            raise AttributeError(f"{name} is not in the narrow namespace")
        function = getattr(np, name)

        def narrow(*args, out=None, **options):
            if name == "asarray":
                (value,) = args
                return value if isinstance(value, Foreign) else Foreign(np.array(value, **options))
            if out is not None:
                options["out"] = _inside(out)
            return _outside(function(*map(_inside, args), **options))

        return narrow
