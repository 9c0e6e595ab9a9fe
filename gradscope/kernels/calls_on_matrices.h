/* What Python calls for figures of whole matrices and of their rows and elements; included by kernels.c. */

/* Squared norms and projections of matrices, [count] each; their pieces, which threads share, need memory for two doubles each. */
static PyObject *readings(PyObject *self, PyObject *args)
{
    int vector, doubles, threads;
    const char *packed, *addresses;
    Py_ssize_t length, size, norms, projections, scratch;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy#y#nnn", &vector, &doubles, &threads, &packed, &length, &addresses, &size, &norms,
                          &projections, &scratch))
        return NULL;
    const ptrdiff_t count = length / (ptrdiff_t)sizeof(struct matrix);
    const struct matrix *const matrices = (const struct matrix *)packed;
    const struct place *const places = (const struct place *)addresses;
    if (!count || length % (ptrdiff_t)sizeof(struct matrix) || size != count * (ptrdiff_t)sizeof(struct place)) {
        PyErr_SetString(PyExc_ValueError, "matrices were expected, each of five numbers and four addresses");
        return NULL;
    }
    piece_function *const run = pieces[vector == 64][doubles != 0];
    double *const squares = ADDRESS(norms), *const along = ADDRESS(projections), *const parts = ADDRESS(scratch);
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (ptrdiff_t piece = 0; piece < matrices[count - 1].end; piece++) {
        ptrdiff_t low = 0, high = count - 1;
        while (low < high) {
            const ptrdiff_t middle = (low + high) / 2;
            if (piece < matrices[middle].end)
                high = middle;
            else
                low = middle + 1;
        }
        const struct matrix *const of = matrices + low;
        const ptrdiff_t first = (piece - of->begin) * of->height, last = first + of->height;
        run(of, places + low, first, last < of->rows ? last : of->rows, parts + 2 * piece);
    }
    for (ptrdiff_t i = 0; i < count; i++) {
        squares[i] = along[i] = 0;
        for (ptrdiff_t piece = matrices[i].begin; piece < matrices[i].end; piece++) {
            squares[i] += parts[2 * piece];
            along[i] += parts[2 * piece + 1];
        }
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Lengths and projections of the rows of two matrices of as many rows: [4, rows]. */
static PyObject *rows(PyObject *self, PyObject *args)
{
    struct rows of[2];
    int vector, doubles, threads;
    Py_ssize_t found, count, first, along_first, first_squares, second, along_second, second_squares;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiinnnnnnnnnnnn", &vector, &doubles, &threads, &found, &count, &first, &along_first,
                          &of[0].columns, &of[0].step, &first_squares, &second, &along_second, &of[1].columns, &of[1].step,
                          &second_squares))
        return NULL;
    of[0].squares = ADDRESS(first_squares);
    of[1].squares = ADDRESS(second_squares);
    rows_function *const run = rows_of[vector == 64][doubles != 0];
    of[0].numbers = ADDRESS(first);
    of[0].direction = ADDRESS(along_first);
    of[0].found = ADDRESS(found);
    of[1].numbers = ADDRESS(second);
    of[1].direction = ADDRESS(along_second);
    of[1].found = (char *)ADDRESS(found) + 2 * count * (doubles ? sizeof(double) : sizeof(float));
    of[0].rows = of[1].rows = count;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int share = 0; share < threads; share++)
        for (int which = 0; which < 2; which++)
            run(of + which, count * share / threads, count * (share + 1) / threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
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
