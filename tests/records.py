"""Records of arguments for the kernels, made from keywords."""

from cyce.kernels.arguments import CrossEntropyArguments, ElementwiseArguments


def _filled(record, fields):
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def of_classes(**fields):
    """Return the arguments of a kernel over classes; others are unset."""
    return _filled(CrossEntropyArguments(), fields)


def of_elements(**fields):
    """Return the arguments of an elementwise kernel; others are unset."""
    return _filled(ElementwiseArguments(), fields)
