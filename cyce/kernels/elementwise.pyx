"""Entry points of the kernels of single elements: binary losses, Kullback-Leibler divergence, sums.

Compiled once per instruction-set level, like cross_entropy.pyx. The formulas are in element_points.pxd, the
loops in element_passes.pxd and accumulation.pxd.
"""
from cpython.buffer cimport PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from libc.math cimport NAN
from libc.string cimport memset

from cyce.kernels.accumulation cimport add_array
from cyce.kernels.arguments cimport ElementwiseArguments
from cyce.kernels.arrays cimport Operand, expect, format_of, n_elements, place, same_shape
from cyce.kernels.call_scope cimport CallScope, close_scope, open_scope, take_threads, take_view
from cyce.kernels.element_passes cimport (
    BCE, BCE_WITH_LOGITS, FOCAL, KL, KL_OF_LOG, LOGSIGMOID, SHARE, SIGMOID, ElementCall, ElementLoss,
    copy_elements, may_stream, run_elements,
)
from cyce.kernels.storage cimport arithmetic_of, size_of


cdef int take_operand(object array, int flags, CallScope* scope, Operand* operand) except -1:
    """Take an array of the input's shape, in any storage, or None."""
    cdef Py_buffer* view
    if array is None:
        return 0
    view = take_view(array, PyBUF_STRIDES | flags, scope)
    place(view, -1, operand)
    expect(size_of(operand.format) > 0, "an operand is not floating point")
    expect(same_shape(view, &scope.views[0]), "an operand is not of the input's shape")
    return 0


cdef double evaluate(ElementLoss loss, ElementwiseArguments arguments) except? -1:
    """Sum of the losses / divisor; writes the outputs that are not None."""
    cdef CallScope scope
    cdef ElementCall call
    cdef double value = 0
    cdef bint is_wrong = False
    cdef int n_threads
    cdef char format
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        call.loss = loss
        take_operand(arguments.input, 0, &scope, &call.input)
        take_operand(arguments.target, 0, &scope, &call.target)
        take_operand(arguments.weight, 0, &scope, &call.weight)
        take_operand(arguments.pos_weight, 0, &scope, &call.pos_weight)
        take_operand(arguments.grad_output, 0, &scope, &call.grad_output)
        take_operand(arguments.loss_out, PyBUF_WRITABLE, &scope, &call.loss_out)
        take_operand(arguments.grad_out, PyBUF_WRITABLE, &scope, &call.grad_out)
        take_operand(arguments.hessian_out, PyBUF_WRITABLE, &scope, &call.hessian_out)
        take_operand(arguments.vector, 0, &scope, &call.vector)
        format = arithmetic_of(call.input.format)
        call.n_elements = call.input.positions.n
        call.grad_scale = arguments.upstream / arguments.divisor
        call.is_grad_new = arguments.is_grad_new
        call.streams = may_stream(&call)
        call.alpha = arguments.alpha
        call.gamma = arguments.gamma
        call.hessian_factor = arguments.hessian_factor
        call.hessian_floor = arguments.hessian_floor
        expect(
            call.hessian_out.start == NULL or loss == BCE_WITH_LOGITS or loss == FOCAL,
            "there is no Hessian of this loss",
        )
        expect(
            call.target.start != NULL or loss == SIGMOID or loss == LOGSIGMOID, "a loss needs a target"
        )
        if call.n_elements > 0:
            n_threads = take_threads(arguments.num_threads, call.n_elements // SHARE, &scope)
            with nogil:
                if format == c"f":
                    is_wrong = run_elements[float](&call, n_threads, &value, 0)
                else:
                    is_wrong = run_elements[double](&call, n_threads, &value, 0)
        if is_wrong:
            raise ValueError("not all elements are between 0 and 1")
        value = value / arguments.divisor if arguments.divisor != 0 else NAN
        # Round here: NumPy would warn of a loss that float32 cannot hold.
        return <double> <float> value if format == c"f" else value
    finally:
        close_scope(&scope)


def binary_cross_entropy_with_logits(ElementwiseArguments arguments not None):
    """Sum of the losses / divisor; writes the outputs that are not None.

    All arrays have input's shape, any strides and storage (see storage.pxd), and are native and aligned.
    grad_out may be input itself.
    """
    return evaluate(BCE_WITH_LOGITS, arguments)


def binary_cross_entropy(ElementwiseArguments arguments not None):
    """Compute the same from probabilities.

    Raises ValueError if an element of input or target is not in [0, 1], before grad_out is written unless it
    is new.
    """
    return evaluate(BCE, arguments)


def kl_div(ElementwiseArguments arguments not None):
    """Compute the same from log-probabilities and their targets."""
    return evaluate(KL, arguments)


def kl_div_of_log_target(ElementwiseArguments arguments not None):
    """Compute the same from log-probabilities and the logarithms of their targets."""
    return evaluate(KL_OF_LOG, arguments)


def sigmoid_focal_loss(ElementwiseArguments arguments not None):
    """Compute the same, modulated by how far a target is missed: alpha and gamma."""
    return evaluate(FOCAL, arguments)


def sigmoid(ElementwiseArguments arguments not None):
    """Write the logistic function to loss_out, and its gradient."""
    return evaluate(SIGMOID, arguments)


def logsigmoid(ElementwiseArguments arguments not None):
    """Write the logarithm of the logistic function to loss_out, and its gradient."""
    return evaluate(LOGSIGMOID, arguments)


def copy(source, target_out):
    """Copy an array to another one of its shape, in any storage and with any strides, rounded once."""
    cdef CallScope scope
    cdef Operand operand
    cdef Operand target
    open_scope(&scope)
    try:
        take_operand(source, 0, &scope, &operand)
        take_operand(target_out, PyBUF_WRITABLE, &scope, &target)
        with nogil:
            if arithmetic_of(operand.format) == c"f":
                copy_elements[float](&operand, &target, 0)
            else:
                copy_elements[double](&operand, &target, 0)
    finally:
        close_scope(&scope)


def accumulate(addend, total, lost):
    """Add an array to a total and to what its sum has lost so far, zeros at first; both are written to.

    addend, total: both float or both double; lost: as many elements, uint16 or float. All C-contiguous.
    """
    cdef CallScope scope
    cdef Py_buffer* addend_view
    cdef Py_buffer* total_view
    cdef Py_buffer* lost_view
    cdef Py_ssize_t n
    cdef char format
    open_scope(&scope)
    try:
        addend_view = take_view(addend, PyBUF_ND, &scope)
        total_view = take_view(total, PyBUF_ND | PyBUF_WRITABLE, &scope)
        lost_view = take_view(lost, PyBUF_ND | PyBUF_WRITABLE, &scope)
        n = n_elements(addend_view)
        format = format_of(addend_view)
        expect(format in (c"f", c"d"), "addend is neither float nor double")
        expect(n_elements(total_view) == n and format_of(total_view) == format, "total is not like addend")
        expect(n_elements(lost_view) == n, "lost is of another size")
        expect(format_of(lost_view) == (c"H" if format == c"f" else c"f"), "lost is of another precision")
        with nogil:
            if format == c"f":
                add_array[float](<const float*> addend_view.buf, n, <float*> total_view.buf, lost_view.buf)
            else:
                add_array[double](
                    <const double*> addend_view.buf, n, <double*> total_view.buf, lost_view.buf
                )
    finally:
        close_scope(&scope)
