"""Arrays as the kernels see them: buffers of any strides, checked where they enter.

An `Operand` has its classes along one axis. The other axes, in C order, are its positions.
"""
from cyce.kernels.machine cimport check

cdef extern from * nogil:
    """
    /* First character of a buffer's format that names the byte order of this machine. */
    static inline char cyce_own_byte_order(void)
    {
        const unsigned short one = 1;
        return *(const unsigned char *) &one ? '<' : '>';
    }
    """
    char cyce_own_byte_order() noexcept


cdef enum:
    # The limit of NumPy's arrays.
    MAX_DIMS = 64


cdef struct Positions:
    # Where the positions of an array are: in C order over dims.
    Py_ssize_t n
    Py_ssize_t lowest               # lowest and highest offset, in elements
    Py_ssize_t highest
    int n_dims
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t stride[MAX_DIMS]     # in elements


cdef struct Operand:
    # An array with the classes along one axis, or with positions alone. No array: start is NULL.
    char* start
    char format                     # see storage.pxd
    Py_ssize_t class_stride         # in elements
    Positions positions


cdef inline bint offsets_of(
    const Positions* positions, Py_ssize_t first, Py_ssize_t width, Py_ssize_t* offset_out
) noexcept nogil:
    """Offsets of `width` positions from number `first` on; returns whether they are neighbours in memory."""
    cdef int last = positions.n_dims - 1
    cdef Py_ssize_t step = positions.stride[last]
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t offset = 0, done = 0, run = 0
    cdef Py_ssize_t k
    cdef int dim
    check(first >= 0 and width >= 0 and first + width <= positions.n)
    for dim in range(last, 0, -1):
        index[dim] = first % positions.shape[dim]
        first //= positions.shape[dim]
        offset += index[dim] * positions.stride[dim]
    index[0] = first
    offset += first * positions.stride[0]
    while done < width:
        run = width - done
        if last > 0:
            run = min(run, positions.shape[last] - index[last])
        check(positions.lowest <= min(offset, offset + (run - 1) * step))
        check(positions.highest >= max(offset, offset + (run - 1) * step))
        for k in range(run):
            offset_out[done + k] = offset + k * step
        done += run
        index[last] += run
        offset += run * step
        dim = last
        while dim > 0 and index[dim] == positions.shape[dim]:
            offset += positions.stride[dim - 1] - positions.shape[dim] * positions.stride[dim]
            index[dim] = 0
            dim -= 1
            index[dim] += 1
    return width == 1 or (step == 1 and run == width)


cdef inline char format_of(const Py_buffer* view) noexcept:
    """Type code of an array in native byte order; a blank for any other."""
    cdef const char* text = view.format
    # NumPy also names the byte order of native arrays that are not aligned.
    if text[0] in (c"@", c"=", cyce_own_byte_order()):
        text += 1
    return text[0] if text[0] != 0 and text[1] == 0 else c" "


cdef inline char integer_format_of(const Py_buffer* view) except 0:
    """One of bhiqBHIQ, by signedness and size."""
    cdef char code = format_of(view)
    # Only the size of long differs between systems.
    if code == c"l":
        return c"q" if view.itemsize == 8 else c"i"
    if code == c"L":
        return c"Q" if view.itemsize == 8 else c"I"
    if code in (c"b", c"h", c"i", c"q", c"B", c"H", c"I", c"Q"):
        return code
    raise TypeError(f"kernel call: not a native integer array: format {view.format!r}")


cdef inline int expect(bint condition, str message, str name="") except -1:
    """Raise if the facade passed something that the kernels do not take."""
    if not condition:
        raise ValueError(f"kernel call: {name}{message}")
    return 0


cdef inline int place(Py_buffer* view, int axis, Operand* operand) except -1:
    """Describe an array whose classes lie along `axis`; -1 means no such axis.

    Neighbouring dims of the positions are merged where their strides allow.
    """
    cdef Positions* positions = &operand.positions
    cdef Py_ssize_t size, stride
    cdef int dim, last
    expect(view.ndim <= MAX_DIMS, "too many dimensions")
    expect(-1 <= axis < view.ndim, "no such axis")
    operand.start = <char*> view.buf
    operand.format = format_of(view)
    operand.class_stride = 1
    positions.n = 1
    positions.lowest = positions.highest = 0
    positions.n_dims = 0
    for dim in range(view.ndim):
        size = view.shape[dim]
        # The stride of an axis of size 1 is arbitrary.
        expect(
            size <= 1 or view.strides[dim] % view.itemsize == 0, "strides are no multiple of the item size"
        )
        stride = view.strides[dim] // view.itemsize if size > 1 else 0
        if dim == axis:
            operand.class_stride = stride
            continue
        positions.n *= size
        positions.lowest += min(<Py_ssize_t> 0, (size - 1) * stride)
        positions.highest += max(<Py_ssize_t> 0, (size - 1) * stride)
        if size == 1:
            continue
        last = positions.n_dims - 1
        if last >= 0 and positions.stride[last] == size * stride:
            positions.shape[last] *= size
            positions.stride[last] = stride
        else:
            positions.shape[last + 1] = size
            positions.stride[last + 1] = stride
            positions.n_dims += 1
    if positions.n_dims == 0:
        positions.n_dims = 1
        positions.shape[0] = 1
        positions.stride[0] = 0
    return 0


cdef inline Py_ssize_t n_elements(const Py_buffer* view) noexcept:
    """Number of elements of an array."""
    return view.len // view.itemsize


cdef inline bint same_shape(const Py_buffer* a, const Py_buffer* b) noexcept:
    """Whether two arrays have the same shape."""
    cdef int dim
    if a.ndim != b.ndim:
        return False
    for dim in range(a.ndim):
        if a.shape[dim] != b.shape[dim]:
            return False
    return True


cdef inline bint is_without_axis(const Py_buffer* array, int axis, const Py_buffer* other) noexcept:
    """Whether an array has such an axis, and the other one has the array's shape without it."""
    cdef int dim
    if axis >= array.ndim or other.ndim != array.ndim - 1:
        return False
    for dim in range(other.ndim):
        if other.shape[dim] != array.shape[dim if dim < axis else dim + 1]:
            return False
    return True


cdef inline bint is_aligned(const Py_buffer* view) noexcept:
    """Whether all elements are at multiples of their size."""
    cdef int dim
    if <size_t> view.buf % view.itemsize != 0:
        return False
    for dim in range(view.ndim):
        if view.shape[dim] > 1 and view.strides[dim] % view.itemsize != 0:
            return False
    return True


cdef inline bint overlap(const Py_buffer* a, const Py_buffer* b) noexcept:
    """Whether two C-contiguous arrays share memory."""
    return <char*> a.buf < <char*> b.buf + b.len and <char*> b.buf < <char*> a.buf + a.len
