"""torch.compile, torch.export and the operators that they see."""

import pytest
import torch
import torch._dynamo

import cyce.torch as CT
from torch_losses import HALVES, LOGITS, TARGET, TORCH

# Compilers take seconds.
pytestmark = pytest.mark.integration

COMPILED = {
    "cross_entropy": lambda x: CT.cross_entropy(2 * x, TARGET, label_smoothing=0.1),
    "none": lambda x: CT.cross_entropy(2 * x, TARGET, reduction="none").exp().sum(),
    "extensions": lambda x: CT.cross_entropy(2 * x, TARGET, z_loss=0.1, axis=-1),
    "nll_loss": lambda x: CT.nll_loss(2 * x, TARGET),
    "binary": lambda x: CT.binary_cross_entropy_with_logits(2 * x, x.detach()),
    "kl_div": lambda x: CT.kl_div(2 * x, x.detach().exp(), reduction="sum"),
    "linear": lambda x: CT.linear_cross_entropy(2 * x, x, TARGET),
    "modules": lambda x: CT.CrossEntropyLoss()(2 * x, TARGET),
}

OPERATORS = {
    "cross_entropy": (TARGET, None, None, "mean", -100, 0.1, 1, None, "nan", 0.0, None, 1.0),
    "cross_entropy of each": (TARGET, None, None, "none", -100, 0.0, 1, None, "nan", 0.0, None, 1.0),
    "nll_loss": (TARGET, None, "sum", -100),
    "binary_cross_entropy_with_logits": (LOGITS.sigmoid(), None, None, "none"),
    "kl_div": (LOGITS.softmax(1), "sum", False),
}

# Of a function of one matrix, for two of them.
TRANSFORMED = {
    "vmap": torch.func.vmap,
    "grad": lambda f: lambda x: torch.func.grad(f)(x[0]),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x[0],), (x[1],))[1],
    "hessian": lambda f: lambda x: torch.func.hessian(f)(x[0]),
    "gradients of samples": lambda f: torch.func.vmap(torch.func.grad(f)),
}


class Model(torch.nn.Module):
    def forward(self, x, target):
        return CT.cross_entropy(x, target)


class TestCompilers:
    def compare(self, call, backend):
        torch._dynamo.reset()
        graphs = []

        def look_and_compile(graph, inputs):
            graphs.append(graph.code)
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

        compiled = torch.compile(call, fullgraph=True, backend=look_and_compile)
        results = []
        for function in (compiled, call):
            x = LOGITS.clone().requires_grad_()
            loss = function(x)
            loss.backward()
            results.append((loss.detach(), x.grad))
        torch.testing.assert_close(*results)
        (graph,) = graphs
        assert ("torch.ops.cyce" in graph) == (call is not COMPILED["linear"])

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("call", COMPILED.values(), ids=COMPILED)
    def test_without_a_graph_break(self, call):
        self.compare(call, "aot_eager")

    @pytest.mark.integration
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("call", COMPILED.values(), ids=COMPILED)
    def test_inductor(self, call):
        self.compare(call, "inductor")

    @pytest.mark.filterwarnings("ignore")
    def test_dynamic_shapes(self):
        torch._dynamo.reset()
        compiled = torch.compile(CT.cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (3, 4, 7):
                x, target = torch.randn(n, 5, requires_grad=True), torch.randint(0, 5, (n,))
                torch.testing.assert_close(compiled(x, target), TORCH["cross_entropy"](x, target))

    @pytest.mark.filterwarnings("ignore")
    def test_errors_of_compiled_calls(self):
        torch._dynamo.reset()
        compiled = torch.compile(CT.cross_entropy, fullgraph=True, backend="aot_eager")
        with pytest.raises(IndexError, match="Target 3 is out of bounds"):
            compiled(LOGITS, torch.tensor([0, 1, 3]))

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("wants_gradient", [True, False])
    @pytest.mark.parametrize("name", OPERATORS)
    def test_operators(self, name, wants_gradient):
        operator = getattr(torch.ops.cyce, name.partition(" ")[0])
        x = LOGITS.clone().requires_grad_(wants_gradient)
        torch.library.opcheck(operator, (x, *OPERATORS[name], wants_gradient))

    @pytest.mark.filterwarnings("ignore")
    def test_export(self):
        exported = torch.export.export(Model(), (LOGITS, TARGET))
        torch.testing.assert_close(exported.module()(LOGITS, TARGET), CT.cross_entropy(LOGITS, TARGET))

    @pytest.mark.filterwarnings("ignore")
    def test_second_derivatives_of_compiled_calls_are_refused(self):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: CT.cross_entropy(x, TARGET), fullgraph=True, backend="eager")
        x = LOGITS.clone().requires_grad_()
        with pytest.raises(RuntimeError, match="a compiled or exported loss has no second derivative"):
            torch.autograd.grad(compiled(x), x, create_graph=True)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("dtype", HALVES)
    def test_compiled_autocast(self, dtype):
        def call(x):
            with torch.autocast("cpu", dtype=dtype):
                return CT.cross_entropy(x, target, reduction="sum")

        torch.manual_seed(0)
        x, target = torch.randn(20000, 100).to(dtype), torch.zeros(20000, dtype=torch.int64)
        torch._dynamo.reset()
        loss = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, call(x))

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)
    def test_transforms_inside(self, transformed):
        torch._dynamo.reset()
        x = torch.stack([LOGITS, LOGITS + 1])
        compiled = torch.compile(
            transformed(lambda y: CT.cross_entropy(y, TARGET)), fullgraph=True, backend="aot_eager"
        )
        expected = transformed(lambda y: TORCH["cross_entropy"](y, TARGET))
        torch.testing.assert_close(compiled(x), expected(x))

    @pytest.mark.filterwarnings("ignore")
    def test_an_exported_call_that_is_differentiated(self):
        exported = torch.export.export(Model(), (LOGITS, TARGET))
        x = LOGITS.clone().requires_grad_()
        exported.module()(x, TARGET).backward()
        y = LOGITS.clone().requires_grad_()
        TORCH["cross_entropy"](y, TARGET).backward()
        torch.testing.assert_close(x.grad, y.grad)
