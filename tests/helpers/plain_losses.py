"""What tests of losses write in plain Python, and a batch that is only its columns."""

import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def nls(x: float) -> float:
    """-log sigma(x)."""
    return softplus(-x)


class Columns(dict):
    """A batch that is its columns."""

    def with_columns(self, **columns):
        return Columns({**self, **columns})
