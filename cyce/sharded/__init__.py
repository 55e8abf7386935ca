"""Cross-entropy of logits whose classes are split over several workers, such as the ranks of MPI.

Each worker reduces the logits of its classes to a `Partial`, a few numbers per position. Any engine moves
and merges these. From the merged one, every worker has the losses, and the gradient of its own logits.
"""

from cyce.sharded.linear import linear_gradient, linear_partial
from cyce.sharded.logits import finish, gradient, partial
from cyce.sharded.states import Partial, merge

__all__ = ["Partial", "finish", "gradient", "linear_gradient", "linear_partial", "merge", "partial"]
