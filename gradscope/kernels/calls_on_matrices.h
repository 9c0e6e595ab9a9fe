/* What Python calls for figures of whole matrices and of their rows and elements; included by kernels.c. */

/* What one matrix is read for: its rows and columns, where it and its directions lie, and where a copy goes; 0 where these do not
 * fit together. */
static int place_of(
    PyObject *numbers, PyObject *left, PyObject *right, PyObject *copy, PyObject *dtype, struct matrix *matrix, struct place *at)
{
    const ptrdiff_t rows = count_of(left, names.numel), columns = count_of(right, names.numel);
    if (rows < 1 || columns < 1 || count_of(numbers, names.numel) != rows * columns || !lies_in_line(left, dtype, rows)
        || !lies_in_line(right, dtype, columns) || (copy && !lies_in_line(copy, dtype, rows * columns)))
        return 0;
    /* A vector is one row: the two directions change places. */
    const int turned = columns == 1;
    matrix->rows = turned ? columns : rows;
    matrix->columns = turned ? rows : columns;
    at->numbers = numbers_of(numbers);
    at->left = numbers_of(turned ? right : left);
    at->right = numbers_of(turned ? left : right);
    at->copy = copy ? numbers_of(copy) : NULL;
    return at->numbers && at->left && at->right && !copy == !at->copy;
}

/* Whether these are matrices that the kernel can read: contiguous, of this dtype; -1 after an error. */
static int are_matrices(PyObject *numbers, ptrdiff_t count, PyObject *dtype)
{
    int found = dtype != NULL;
    for (ptrdiff_t i = 0; found == 1 && i < count; i++) {
        PyObject *const one = PySequence_GetItem(numbers, i);
        found = one ? is_plain(one, dtype) : -1;
        if (found == 1)
            found = says(one, names.is_contiguous);
        Py_XDECREF(one);
    }
    return PyErr_Occurred() ? -1 : found;
}

/* What all of them are read for; threads share pieces of about `each` numbers. */
static int places_of(
    PyObject *numbers, PyObject *lefts, PyObject *rights, PyObject *copies, ptrdiff_t count, ptrdiff_t each, PyObject *dtype,
    struct matrix *matrices, struct place *places)
{
    ptrdiff_t end = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        struct matrix *const matrix = matrices + i;
        PyObject *own[4] = {PySequence_GetItem(numbers, i), PySequence_GetItem(lefts, i), PySequence_GetItem(rights, i),
                            copies == Py_None ? NULL : PySequence_GetItem(copies, i)};
        const int fits = own[0] && own[1] && own[2] && !own[3] == (copies == Py_None)
            && place_of(own[0], own[1], own[2], own[3], dtype, matrix, places + i);
        for (int k = 0; k < 4; k++)
            Py_XDECREF(own[k]);
        if (!fits)
            return 0;
        matrix->height = each > matrix->columns ? each / matrix->columns : 1;
        matrix->begin = end;
        matrix->end = end += (matrix->rows + matrix->height - 1) / matrix->height;
    }
    return 1;
}

/* found: squared norms and projections of matrices, [2, count]; a copy of each of them is written where asked for. Returns whether
 * they are matrices that the kernel can read. */
static PyObject *readings(PyObject *self, PyObject *args)
{
    int vector, threads;
    PyObject *numbers, *lefts, *rights, *copies;
    Py_ssize_t each, found;
    (void)self;
    if (!PyArg_ParseTuple(args, "iinOOOOn", &vector, &threads, &each, &numbers, &lefts, &rights, &copies, &found))
        return NULL;
    const ptrdiff_t count = PySequence_Size(numbers);
    if (count < 1 || PySequence_Size(lefts) != count || PySequence_Size(rights) != count
        || (copies != Py_None && PySequence_Size(copies) != count))
        return do_not_fit("readings");
    PyObject *first = PySequence_GetItem(numbers, 0), *dtype = first ? dtype_of(first) : NULL;
    Py_XDECREF(first);
    const int served = are_matrices(numbers, count, dtype);
    if (served != 1)
        return served < 0 ? NULL : PyBool_FromLong(0);
    struct matrix *const matrices = PyMem_Malloc(count * (sizeof(struct matrix) + sizeof(struct place)));
    struct place *const places = (struct place *)(matrices + count);
    if (!matrices)
        return PyErr_NoMemory();
    if (!places_of(numbers, lefts, rights, copies, count, each, dtype, matrices, places)) {
        PyMem_Free(matrices);
        return do_not_fit("readings");
    }
    const ptrdiff_t end = matrices[count - 1].end;
    double *const parts = PyMem_Malloc(end * 2 * sizeof(double));
    if (!parts) {
        PyMem_Free(matrices);
        return PyErr_NoMemory();
    }
    piece_function *const run = pieces[vector == 64][dtype == torch.float64];
    double *const squares = ADDRESS(found), *const along = squares + count;
    if (threads > end)
        threads = (int)end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (ptrdiff_t piece = 0; piece < end; piece++) {
        ptrdiff_t low = 0, high = count - 1;
        while (low < high) {
            const ptrdiff_t middle = (low + high) / 2;
            if (piece < matrices[middle].end)
                high = middle;
            else
                low = middle + 1;
        }
        const struct matrix *const of = matrices + low;
        const ptrdiff_t begin = (piece - of->begin) * of->height, last = begin + of->height;
        run(of, places + low, begin, last < of->rows ? last : of->rows, parts + 2 * piece);
    }
    for (ptrdiff_t i = 0; i < count; i++) {
        squares[i] = along[i] = 0;
        for (ptrdiff_t piece = matrices[i].begin; piece < matrices[i].end; piece++) {
            squares[i] += parts[2 * piece];
            along[i] += parts[2 * piece + 1];
        }
    }
    Py_END_ALLOW_THREADS
    PyMem_Free(parts);
    PyMem_Free(matrices);
    Py_RETURN_TRUE;
}

/* Whether these are rows that the kernel can read, of numbers that lie in line; -1 after an error. */
static int rows_of_tensor(PyObject *numbers, PyObject *dtype, struct rows *of)
{
    ptrdiff_t shape[2], steps[2];
    const int plain = dtype ? is_plain(numbers, dtype) : 0;
    if (plain != 1)
        return plain;
    if (!two(PyObject_GetAttr(numbers, names.shape), shape)
        || !two(PyObject_CallMethodObjArgs(numbers, names.stride, NULL), steps))
        return PyErr_Occurred() ? -1 : 0;
    of->rows = shape[0];
    of->columns = shape[1];
    of->step = steps[0];
    of->numbers = numbers_of(numbers);
    return of->numbers ? steps[1] == 1 || shape[1] == 1 : PyErr_Occurred() ? -1 : 0;
}

/* The direction that rows are looked at along, and memory for their squares, if any; 0 where these do not fit. */
static int look_along(PyObject *direction, PyObject *squares, PyObject *dtype, struct rows *of)
{
    if (!lies_in_line(direction, dtype, of->columns) || (squares && !lies_in_line(squares, dtype, of->rows * of->columns)))
        return 0;
    of->direction = numbers_of(direction);
    of->squares = squares ? numbers_of(squares) : NULL;
    return of->direction && !squares == !of->squares;
}

/* Lengths and projections of the rows of two matrices of as many rows, in one place of a memory [places, 4, rows]. Their numbers'
 * squares are written where there is a pair of tensors for them. Returns whether they are rows that the kernel can read. */
static PyObject *rows(PyObject *self, PyObject *args)
{
    struct rows of[2];
    int vector, threads;
    Py_ssize_t each, place;
    PyObject *memory, *given[4], *kept, *squares[2] = {NULL, NULL};
    (void)self;
    if (!PyArg_ParseTuple(args, "iinOnOOOOO", &vector, &threads, &each, &memory, &place, given, given + 1, given + 2, given + 3,
                          &kept))
        return NULL;
    if (kept != Py_None && !PyArg_ParseTuple(kept, "OO", squares, squares + 1))
        return NULL;
    PyObject *dtype = dtype_of(given[0]);
    for (int which = 0; which < 2; which++) {
        const int found = PyErr_Occurred() ? -1 : rows_of_tensor(given[2 * which], dtype, of + which);
        if (found != 1)
            return found < 0 ? NULL : PyBool_FromLong(0);
    }
    if (of[0].rows != of[1].rows || !look_along(given[1], squares[0], dtype, of)
        || !look_along(given[3], squares[1], dtype, of + 1))
        return do_not_fit("rows");
    const ptrdiff_t count = of[0].rows, places = count_of(memory, names.numel) / (4 * count);
    if (place < 0 || place >= places || !lies_in_line(memory, dtype, places * 4 * count) || !(of[0].found = numbers_of(memory)))
        return do_not_fit("rows");
    const int doubles = dtype == torch.float64;
    const size_t size = doubles ? sizeof(double) : sizeof(float);
    of[0].found = (char *)of[0].found + 4 * place * count * size;
    of[1].found = (char *)of[0].found + 2 * count * size;
    if (count * (of[0].columns + of[1].columns) < 2 * each)
        threads = 1;
    if (threads > count)
        threads = (int)count;
    rows_function *const run = rows_of[vector == 64][doubles];
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int share = 0; share < threads; share++)
        for (int which = 0; which < 2; which++)
            run(of + which, count * share / threads, count * (share + 1) / threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_TRUE;
}

/* Variance and signal of each element; threads share them, `each` at a time. */
static PyObject *elementwise(PyObject *self, PyObject *args)
{
    struct elements of;
    int vector, doubles, threads;
    Py_ssize_t count, each, mean, own, variance, signal;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiinnnnnnddd", &vector, &doubles, &threads, &count, &each, &mean, &own, &variance, &signal,
                          &of.weight_square, &of.variance_scale, &of.signal_scale))
        return NULL;
    of.first = ADDRESS(mean);
    of.second = ADDRESS(own);
    of.variance = ADDRESS(variance);
    of.signal = ADDRESS(signal);
    elements_function *const run = elementwise_of[vector == 64][doubles != 0];
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static) num_threads(threads) if (count > each)
    for (ptrdiff_t start = 0; start < count; start += each)
        run(&of, start, count - start < each ? count : start + each);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* found: the sum of above / below over each piece of `each` elements, and their number without 0 / 0, [pieces, 2]. */
static PyObject *ratios(PyObject *self, PyObject *args)
{
    struct elements of;
    int vector, doubles, threads;
    Py_ssize_t count, each, below, above, found;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiinnnnn", &vector, &doubles, &threads, &count, &each, &below, &above, &found))
        return NULL;
    of.first = ADDRESS(below);
    of.second = ADDRESS(above);
    ratios_function *const run = ratios_of[vector == 64][doubles != 0];
    double *const out = ADDRESS(found);
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static) num_threads(threads) if (count > each)
    for (ptrdiff_t start = 0; start < count; start += each)
        run(&of, start, count - start < each ? count : start + each, out + 2 * (start / each));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
