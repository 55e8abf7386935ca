"""What the facade hands to a kernel: records with named fields, defined once, here.

Their types and defaults for Python stand in arguments.pyi and arguments.pyx.
"""
from libc.stdint cimport int64_t


cdef class CrossEntropyArguments:
    cdef public object logits
    cdef public int axis
    cdef public object target
    cdef public object target_logit
    cdef public object probabilities
    cdef public object chosen
    cdef public object chosen_mass
    cdef public object class_mask
    cdef public object weight
    cdef public int64_t ignore_index
    cdef public double label_smoothing
    cdef public object sample_weight
    cdef public bint mean
    cdef public double normalizer
    cdef public bint zero_if_empty
    cdef public double z_loss
    cdef public bint is_focal
    cdef public double gamma
    cdef public double poly1
    cdef public double softcap
    cdef public double temperature
    cdef public double upstream
    cdef public object grad_output
    cdef public object loss_out
    cdef public object grad_out
    cdef public object hessian_out
    cdef public double hessian_factor
    cdef public double hessian_floor
    cdef public object vector
    cdef public object stats_out
    cdef public object chosen_out
    cdef public object entropy_grad
    cdef public object entropy_out
    cdef public Py_ssize_t first_class
    cdef public Py_ssize_t n_all_classes
    cdef public int num_threads


cdef class DistillationArguments:
    cdef public object student
    cdef public object teacher
    cdef public int axis
    cdef public str formula
    cdef public double temperature
    cdef public double beta
    cdef public object class_mask
    cdef public object counts
    cdef public object scale
    cdef public object value_out
    cdef public object grad_out
    cdef public int num_threads


cdef class ElementwiseArguments:
    cdef public object input
    cdef public object target
    cdef public object weight
    cdef public object pos_weight
    cdef public double alpha
    cdef public double gamma
    cdef public double divisor
    cdef public double upstream
    cdef public object grad_output
    cdef public object loss_out
    cdef public object grad_out
    cdef public bint is_grad_new
    cdef public object hessian_out
    cdef public double hessian_factor
    cdef public double hessian_floor
    cdef public object vector
    cdef public int num_threads
