"""Losses, softmax and evaluation of Dask arrays, in chunks of positions, of classes, or of both.

All functions are lazy. Chunks of logits are reduced where they are, each by itself, and never rechunked: what
moves between tasks is a state of at most 64 bytes per position (`cyce.sharded`), merged in a tree.

Needs Dask (the extra `dask`).
"""

try:
    import dask.array  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "cyce.dask needs Dask: python -m pip install 'cyce[dask]'", name=error.name
    ) from error

from cyce.dask.losses import cross_entropy
from cyce.dask.probabilities import log_softmax, softmax
from cyce.dask.statistics import evaluate

__all__ = ["cross_entropy", "evaluate", "log_softmax", "softmax"]
