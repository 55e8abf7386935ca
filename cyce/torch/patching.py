"""cyce's functions in place of torch's own."""

import contextlib
import threading
from types import TracebackType
from typing import Any

import torch

from cyce.torch import functional
from cyce.torch.tensors import TORCH

lock = threading.Lock()
n_patches = 0
before_patches: dict[str, Any] = {}


class Patch(contextlib.AbstractContextManager["Patch"]):
    """What `patch` returns: a context manager, and `restore`."""

    def __init__(self) -> None:
        global n_patches
        self._is_active = True
        with lock:
            n_patches += 1
            if n_patches == 1:
                for name in TORCH:
                    before_patches[name] = getattr(torch.nn.functional, name)
                    setattr(torch.nn.functional, name, getattr(functional, name))

    def restore(self) -> None:
        """Undo the patch, unless others are still in use; again does nothing."""
        global n_patches
        with lock:
            if not self._is_active:
                return
            self._is_active = False
            n_patches -= 1
            if n_patches == 0:
                for name, before in before_patches.items():
                    # Not what somebody else has put there since.
                    if getattr(torch.nn.functional, name) is getattr(functional, name):
                        setattr(torch.nn.functional, name, before)
                before_patches.clear()

    def __enter__(self) -> "Patch":
        if not self._is_active:
            raise RuntimeError("this patch was restored; call cyce.torch.patch() again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()


def patch() -> Patch:
    """Let `torch.nn.functional`, and so torch's modules and transformers' losses, use cyce for CPU tensors.

    The attributes of `torch.nn.functional` are replaced in the whole process: `cross_entropy`, `nll_loss`,
    `binary_cross_entropy_with_logits`, `kl_div` and `linear_cross_entropy`. Names that were imported from
    there before keep torch's functions.

    Returns
    -------
    Patch
        A context manager that undoes it, with a method `restore` that does the same. Of several at a time,
        the last one to end restores torch's functions.

    Examples
    --------
    >>> import torch
    >>> import cyce.torch
    >>> with cyce.torch.patch():
    ...     print(torch.nn.CrossEntropyLoss()(torch.zeros(2, 3), torch.tensor([0, 1])))
    tensor(1.0986)
    """
    return Patch()
