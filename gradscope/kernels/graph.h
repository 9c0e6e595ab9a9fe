/* The walk over an autograd graph, through the Python attributes of its nodes; included by kernels.c. */

/* Pushes the nodes that one node's gradient flows on to; 0 after an error. */
static int push_sources(PyObject *node, PyObject ***stack, Py_ssize_t *count, Py_ssize_t *room)
{
    PyObject *nexts = PyObject_GetAttr(node, names.next_functions);
    const Py_ssize_t edges = nexts ? PyTuple_Size(nexts) : -1;
    int fits = edges >= 0;
    if (fits && *count + edges > *room) {
        PyObject **const more = PyMem_Realloc(*stack, 2 * (*count + edges) * sizeof(PyObject *));
        if (more) {
            *stack = more;
            *room = 2 * (*count + edges);
        } else {
            PyErr_NoMemory();
            fits = 0;
        }
    }
    for (Py_ssize_t i = 0; fits && i < edges; i++) {
        PyObject *const edge = PyTuple_GetItem(nexts, i), *const source = edge ? PyTuple_GetItem(edge, 0) : NULL;
        fits = source != NULL;
        if (fits && source != Py_None) {
            Py_INCREF(source);
            (*stack)[(*count)++] = source;
        }
    }
    Py_XDECREF(nexts);
    return fits;
}

/* Appends a number; 0 after an error. */
static int append_place(PyObject *list, Py_ssize_t place)
{
    PyObject *number = PyLong_FromSsize_t(place);
    const int fits = number && PyList_Append(list, number) == 0;
    Py_XDECREF(number);
    return fits;
}

/* walk(outputs, names): the nodes that a list of nodes leads to, as keys in the order of the walk; their names; and which of them
 * need a closer look.
 *
 * `names` has what there is to say of each type of node: its name; None, where it leads on to nothing; Ellipsis, where its nodes
 * need a closer look, for which they stand in the place of their names. Returns None as soon as a node is of no type in it.
 */
static PyObject *walk(PyObject *self, PyObject *args)
{
    PyObject *outputs, *known;
    (void)self;
    if (!PyArg_ParseTuple(args, "OO", &outputs, &known))
        return NULL;
    Py_ssize_t count = PyList_Size(outputs), room = count + 64;
    PyObject **stack = count < 0 ? NULL : PyMem_Malloc(room * sizeof(PyObject *));
    if (!stack)
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        stack[i] = PyList_GetItem(outputs, i);
        Py_INCREF(stack[i]);
    }
    PyObject *nodes = PyDict_New(), *found = PyList_New(0), *closer = PyList_New(0), *name = Py_None;
    int fits = nodes && found && closer;
    while (fits && name && count) {
        PyObject *const node = stack[--count];
        const int seen = PyDict_Contains(nodes, node);
        fits = seen >= 0;
        if (fits && !seen && (name = PyDict_GetItemWithError(known, (PyObject *)Py_TYPE(node))) && name != Py_None)
            fits = PyDict_SetItem(nodes, node, Py_None) == 0
                && PyList_Append(found, name == Py_Ellipsis ? node : name) == 0
                && (name != Py_Ellipsis || append_place(closer, PyList_Size(found) - 1))
                && push_sources(node, &stack, &count, &room);
        Py_DECREF(node);
    }
    while (count)
        Py_DECREF(stack[--count]);
    PyMem_Free(stack);
    PyObject *result = NULL;
    if (!PyErr_Occurred()) {
        result = fits && name ? PyTuple_Pack(3, nodes, found, closer) : Py_None;
        if (result == Py_None)
            Py_INCREF(result);
    }
    Py_XDECREF(nodes);
    Py_XDECREF(found);
    Py_XDECREF(closer);
    return result;
}
