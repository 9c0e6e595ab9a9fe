/* What is asked of torch's tensors, through their Python attributes: nothing is linked, and any version of torch will do. */

/* Given by `meet`. */
static struct {
    PyObject *tensor, *float32, *float64, *strided, *is_wrapped;
} torch;

static struct {
    PyObject *dtype, *is_cpu, *layout, *is_neg, *numel, *is_contiguous, *data_ptr, *shape, *stride, *next_functions;
} names;

static int intern(PyObject **to, const char *name)
{
    return (*to = PyUnicode_InternFromString(name)) != NULL;
}

static int intern_names(void)
{
    return intern(&names.dtype, "dtype") && intern(&names.is_cpu, "is_cpu") && intern(&names.layout, "layout")
        && intern(&names.is_neg, "is_neg") && intern(&names.numel, "numel") && intern(&names.is_contiguous, "is_contiguous")
        && intern(&names.data_ptr, "data_ptr") && intern(&names.shape, "shape") && intern(&names.stride, "stride")
        && intern(&names.next_functions, "next_functions");
}

/* Tensor, float32, float64, strided, and the function that tells what a transform has wrapped. */
static PyObject *meet(PyObject *self, PyObject *args)
{
    PyObject *all[5];
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOO", all, all + 1, all + 2, all + 3, all + 4))
        return NULL;
    for (int i = 0; i < 5; i++)
        Py_INCREF(all[i]);
    memcpy(&torch, all, sizeof torch);
    Py_RETURN_NONE;
}

/* Whether an attribute is that object; -1 after an error. */
static int has(PyObject *of, PyObject *name, PyObject *value)
{
    PyObject *found = PyObject_GetAttr(of, name);
    Py_XDECREF(found);
    return found ? found == value : -1;
}

/* Whether a call of a function says so; -1 after an error. The result is let go of. */
static int truth(PyObject *result)
{
    const int found = result ? PyObject_IsTrue(result) : -1;
    Py_XDECREF(result);
    return found;
}

static int says(PyObject *of, PyObject *name)
{
    return truth(PyObject_CallMethodObjArgs(of, name, NULL));
}

/* A number that a method returns; -1 after an error. */
static Py_ssize_t count_of(PyObject *of, PyObject *name)
{
    PyObject *found = PyObject_CallMethodObjArgs(of, name, NULL);
    const Py_ssize_t count = found ? PyLong_AsSsize_t(found) : -1;
    Py_XDECREF(found);
    return count;
}

/* Where its numbers lie; NULL after an error, or where there are none. */
static void *numbers_of(PyObject *tensor)
{
    PyObject *found = PyObject_CallMethodObjArgs(tensor, names.data_ptr, NULL);
    void *address = found ? PyLong_AsVoidPtr(found) : NULL;
    Py_XDECREF(found);
    return address;
}

/* The entries of a tuple of two that is an attribute, or what a method returns; 0 where it is no such tuple. */
static int two(PyObject *found, ptrdiff_t entries[2])
{
    int fits = found && PyTuple_Check(found) && PyTuple_Size(found) == 2;
    for (int i = 0; fits && i < 2; i++) {
        entries[i] = PyLong_AsSsize_t(PyTuple_GetItem(found, i));
        fits = entries[i] >= 0;
    }
    Py_XDECREF(found);
    return fits;
}

/* Whether the kernels can read it: dense, of this dtype, on a CPU, not empty; -1 after an error. */
static int is_plain(PyObject *tensor, PyObject *dtype)
{
    if ((PyObject *)Py_TYPE(tensor) != torch.tensor)
        return 0;
    int found = has(tensor, names.dtype, dtype);
    if (found == 1)
        found = has(tensor, names.is_cpu, Py_True);
    if (found == 1)
        found = has(tensor, names.layout, torch.strided);
    if (found == 1 && (found = says(tensor, names.is_neg)) >= 0)
        found = !found;
    if (found == 1) {
        const Py_ssize_t count = count_of(tensor, names.numel);
        found = PyErr_Occurred() ? -1 : count > 0;
    }
    /* What a transform wraps has no memory of its own. */
    if (found == 1 && (found = truth(PyObject_CallFunctionObjArgs(torch.is_wrapped, tensor, NULL))) >= 0)
        found = !found;
    return found;
}

/* The dtype of a tensor, borrowed from torch, which keeps it; NULL where kernels have none for it, or after an error. */
static PyObject *dtype_of(PyObject *tensor)
{
    PyObject *found = PyObject_GetAttr(tensor, names.dtype);
    Py_XDECREF(found);
    return found && (found == torch.float32 || found == torch.float64) ? found : NULL;
}

static PyObject *all_served(PyObject *tensors, int lines)
{
    PyObject *dtype = PyTuple_Size(tensors) > 0 ? dtype_of(PyTuple_GetItem(tensors, 0)) : NULL;
    int found = dtype != NULL;
    for (Py_ssize_t i = 0; found == 1 && i < PyTuple_Size(tensors); i++) {
        found = is_plain(PyTuple_GetItem(tensors, i), dtype);
        if (found == 1 && lines)
            found = says(PyTuple_GetItem(tensors, i), names.is_contiguous);
    }
    return found < 0 || PyErr_Occurred() ? NULL : PyBool_FromLong(found);
}

/* Whether the kernels can read all of them: of one dtype, float32 or float64. */
static PyObject *serves(PyObject *self, PyObject *tensors)
{
    (void)self;
    return all_served(tensors, 0);
}

/* The same, and whether each is contiguous. */
static PyObject *serves_lines(PyObject *self, PyObject *tensors)
{
    (void)self;
    return all_served(tensors, 1);
}

/* Whether it is contiguous, on a CPU, of this dtype, and of so many numbers; raises nothing where it is not. */
static int lies_in_line(PyObject *tensor, PyObject *dtype, ptrdiff_t count)
{
    return has(tensor, names.dtype, dtype) == 1 && has(tensor, names.is_cpu, Py_True) == 1
        && says(tensor, names.is_contiguous) == 1 && count_of(tensor, names.numel) == count;
}

/* Refuse what a kernel would read or write beyond its memory. */
static void *do_not_fit(const char *kernel)
{
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "the kernel for %s was given tensors that do not fit together", kernel);
    return NULL;
}
