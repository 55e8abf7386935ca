"""What one call of `distill` compares, in named fields: two sets of logits on the same positions."""
from cyce.kernels.arrays cimport Operand


cdef enum Formula:
    FORWARD
    REVERSE
    JENSEN_SHANNON
    PRODUCT


cdef struct Comparison:
    # What one call computes. Pointers that do not apply are NULL, as is `grad.start`.
    Formula formula
    Py_ssize_t n_positions
    Py_ssize_t n_classes
    Operand student
    Operand teacher
    const Operand* class_mask       # of PRODUCT; see call.pxd
    Operand grad
    double temperature
    double beta
    const char* counts              # (n_positions,): whether a position counts; 0 is what the others get
    const double* scale             # (n_positions,): factor of the gradient
    double* value_out               # (n_positions,)
