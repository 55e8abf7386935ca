"""Time forward and backward passes in torch: `python -m benchmarks.torch --help`.

A call is a loss and its backward pass, from logits that are there, or a whole training step: a linear layer
or a convolution, the loss, the backward pass; with cyce's loss and with torch's. Every contender has a
process of its own, which is stopped while another one is at work. Losses and gradients are compared with
torch's in float64 first, of a part of the logits where they are many. Rounds are interleaved; a time is the
median over the rounds of each round's shortest call. Memory is the most that a process had during a call,
beyond what it had before.
"""

import math
import sys
from typing import NamedTuple

from benchmarks import tables, turns
from benchmarks.linear import clear_peak, memory


class Case(NamedTuple):
    """Logits, and the layer that makes them, if that belongs to the call."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    features: int = 0
    """Of a linear layer, or channels of a convolution; 0 for none."""


CASES = {
    "64 x 10": Case((64, 10)),
    "1024 x 1000": Case((1024, 1000)),
    "2048 x 32000": Case((2048, 32000)),
    "2048 x 32000, bfloat16": Case((2048, 32000), "bfloat16"),
    "(8, 21, 512, 512)": Case((8, 21, 512, 512)),
    "step: 1024 x 768 -> 50257": Case((1024, 50257), features=768),
    "step: 8 channels -> (4, 21, 512, 512)": Case((4, 21, 512, 512), features=8),
    "step: 64 x 64 -> 10": Case((64, 10), features=64),
    "step: 1024 x 512 -> 1000": Case((1024, 1000), features=512),
}

CONTENDERS = ("cyce", "cyce, in place", "torch", "torch.compile")


class Call:
    """A loss and its backward pass."""

    def __init__(self, case, contender):
        import torch

        import cyce.torch

        self._inplace = contender == "cyce, in place"
        self._function = torch.nn.functional.cross_entropy
        if contender.startswith("cyce"):
            self._function = cyce.torch.cross_entropy
        torch.manual_seed(0)
        dtype = getattr(torch, case.dtype)
        positions = (case.shape[0], *case.shape[2:])
        self.target = torch.randint(0, case.shape[1], positions)
        self._layer = None
        if case.features:
            given = (case.shape[0], case.features, *case.shape[2:])
            image = len(case.shape) > 2
            layer = torch.nn.Conv2d if image else torch.nn.Linear
            self._layer = layer(case.features, case.shape[1], **({"kernel_size": 1} if image else {}))
            self.given = torch.randn(given)
        else:
            self.given = torch.randn(case.shape).to(dtype).requires_grad_()
        # In place, the logits are no leaf of the graph, and are gone afterwards.
        self._leaf = self.given if self._inplace and self._layer is None else None
        self._forward = self.forward
        if contender == "torch.compile":
            torch._dynamo.reset()
            self._forward = torch.compile(self.forward, dynamic=False)

    def forward(self, given):
        """Return the loss."""
        logits = given if self._layer is None else self._layer(given)
        if self._inplace:
            return self._function(logits, self.target, inplace=True)
        return self._function(logits, self.target)

    def prepare(self):
        """Restore what the last call has overwritten, and forget its gradients."""
        if self._leaf is not None:
            self.given = self._leaf * 1
            return
        self.given.grad = None
        if self._layer is not None:
            self._layer.zero_grad()

    def __call__(self):
        """Return the loss, after its backward pass, and the gradient of logits that were given."""
        loss = self._forward(self.given)
        if self._leaf is not None:
            import torch

            return loss, torch.autograd.grad(loss, self.given)[0]
        loss.backward()
        return loss, self.given.grad

    def check(self):
        """Raise an AssertionError unless loss and gradient are torch's in float64."""
        import torch

        self.prepare()
        loss, gradient = self()
        loss = loss.detach().double()
        self.prepare()
        rtol, atol = (2e-2, 2e-2) if self.given.dtype == torch.bfloat16 else (1e-4, 1e-4)
        with torch.no_grad():
            logits = self.given if self._layer is None else self._layer(self.given)
            rows = slice(0, max(1, 2**22 // logits[0].numel()))
            total = math.prod(self.target.shape)
            losses = [
                torch.nn.functional.cross_entropy(part.double(), target, reduction="sum")
                for part, target in zip(logits.split(rows.stop), self.target.split(rows.stop), strict=True)
            ]
            torch.testing.assert_close(loss, sum(losses) / total, rtol=rtol, atol=0)
            if self._layer is None:
                expected = logits[rows].double().softmax(1)
                expected.scatter_add_(1, self.target[rows].unsqueeze(1), -torch.ones_like(expected[:, :1]))
                expected /= total
                scale = float(expected.abs().median())
                torch.testing.assert_close(
                    gradient[rows].double(), expected, rtol=10 * rtol, atol=atol * scale
                )
        self.prepare()


class Worker:
    """A contender with the case that it is at."""

    def __init__(self, name, n_threads):
        import torch

        import cyce

        self._name = name
        self._call = None
        torch.set_num_threads(n_threads)
        cyce.set_num_threads(n_threads)
        package = cyce if name.startswith("cyce") else torch
        self.versions = {package.__name__: package.__version__}

    def prepare(self, case):
        """Make the tensors, check the answers; return the memory that a call takes beyond them."""
        self._call = Call(case, self._name)
        self._call.check()
        before = clear_peak()
        self._call()
        peak = None if before is None else memory("VmHWM") - before
        self.round(0.0)
        return peak

    def round(self, seconds):
        """Call for some time; return the shortest time of a call, in seconds."""
        return turns.shortest(self._call, seconds, before=self._call.prepare)


def main(arguments=None):
    """Run the bench; return the exit status: 1 if cyce was wrong or failed."""
    parser = tables.make_parser(
        "benchmarks.torch",
        "Time forward and backward passes in torch, with cyce's loss and with torch's.",
        rounds=5,
        seconds=0.5,
        contenders=CONTENDERS,
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    settings = parser.parse_args(arguments)
    run = tables.Run("benchmarks.torch", settings, arguments)
    run.begin_table("Forward and backward pass", ["", *settings.contenders])
    for case in settings.cases:
        run.time(case, [case], Worker, [CASES[case]], [settings.seconds])
    return run.end(
        f"Milliseconds, medians over {settings.rounds} rounds of each round's shortest call; in "
        "parentheses, how many times as long as cyce's; and the memory of a call beyond what was before"
    )


if __name__ == "__main__":
    sys.exit(main())
