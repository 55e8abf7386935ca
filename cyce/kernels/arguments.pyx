"""What the facade hands to a kernel: records with named fields.

A module of its own, because all levels take the same records.
"""
from libc.math cimport INFINITY


cdef class CrossEntropyArguments:
    """Arguments of the kernels over classes, after all checks; see arguments.pyi for the fields.

    An assignment is all that a field costs, so that small calls set what is not at its default.
    """

    def __cinit__(self):
        self.ignore_index = -100
        self.temperature = 1
        self.upstream = 1
        self.hessian_factor = 1
        self.hessian_floor = -INFINITY
        self.num_threads = 1

    def copy(self):
        """Return a record with the same fields."""
        cdef CrossEntropyArguments other = CrossEntropyArguments.__new__(CrossEntropyArguments)
        other.logits = self.logits
        other.axis = self.axis
        other.target = self.target
        other.target_logit = self.target_logit
        other.probabilities = self.probabilities
        other.chosen = self.chosen
        other.chosen_mass = self.chosen_mass
        other.class_mask = self.class_mask
        other.weight = self.weight
        other.ignore_index = self.ignore_index
        other.label_smoothing = self.label_smoothing
        other.sample_weight = self.sample_weight
        other.mean = self.mean
        other.normalizer = self.normalizer
        other.zero_if_empty = self.zero_if_empty
        other.z_loss = self.z_loss
        other.is_focal = self.is_focal
        other.gamma = self.gamma
        other.poly1 = self.poly1
        other.softcap = self.softcap
        other.temperature = self.temperature
        other.upstream = self.upstream
        other.grad_output = self.grad_output
        other.loss_out = self.loss_out
        other.grad_out = self.grad_out
        other.hessian_out = self.hessian_out
        other.hessian_factor = self.hessian_factor
        other.hessian_floor = self.hessian_floor
        other.vector = self.vector
        other.stats_out = self.stats_out
        other.chosen_out = self.chosen_out
        other.entropy_grad = self.entropy_grad
        other.entropy_out = self.entropy_out
        other.first_class = self.first_class
        other.n_all_classes = self.n_all_classes
        other.num_threads = self.num_threads
        return other


cdef class DistillationArguments:
    """Arguments of the kernel that compares two sets of logits; see arguments.pyi for the fields."""

    def __cinit__(self):
        self.temperature = 1
        self.num_threads = 1


cdef class ElementwiseArguments:
    """Arguments of the kernels of single elements, after all checks; see arguments.pyi for the fields."""

    def __cinit__(self):
        self.divisor = 1
        self.upstream = 1
        self.hessian_factor = 1
        self.hessian_floor = -INFINITY
        self.num_threads = 1
