/* What Python calls for figures of samples; included by kernels.c. */

/* found: squares and probes of each piece, [2, pieces, samples]. */
static PyObject *products(PyObject *self, PyObject *args)
{
    struct products of;
    int vector, doubles, threads;
    Py_ssize_t grads, inputs, moment, total, left, right, sums, found, scratch, each, chosen, all, length;
    const char *numbers;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy#nnnnnnnnnnnnn", &vector, &doubles, &threads, &numbers, &length, &grads, &inputs, &moment,
                          &total, &left, &right, &of.factors, &sums, &found, &scratch, &each, &chosen, &all)
        || !filled(&of.samples, sizeof of - offsetof(struct products, samples), numbers, length)
        || !are_samples(of.chosen = ADDRESS(chosen), of.samples, all))
        return NULL;
    of.grads = ADDRESS(grads);
    of.inputs = ADDRESS(inputs);
    of.moment = ADDRESS(moment);
    of.total = ADDRESS(total);
    of.left = ADDRESS(left);
    of.right = ADDRESS(right);
    of.sums = ADDRESS(sums);
    products_function *const run = products_of[vector == 64][doubles != 0];
    const ptrdiff_t parts = (of.columns + of.part - 1) / of.part, count = (of.outputs + of.band - 1) / of.band * parts;
    double *const squares = ADDRESS(found), *const probes = squares + count * of.samples;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (ptrdiff_t piece = 0; piece < count; piece++)
        run(&of, piece / parts * of.band, piece % parts * of.part, (char *)ADDRESS(scratch) + thread() * each,
            squares + piece * of.samples, probes + piece * of.samples);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* The panels of one sample's Gram matrices together. */
static void sum_panels(const struct gram *of, ptrdiff_t sample, const double *parts, ptrdiff_t panels)
{
    double apart = 0, own = 0, lengths = 0;
    for (ptrdiff_t panel = 0; panel < panels; panel++, parts += 3) {
        apart += parts[0];
        own += parts[1];
        lengths += parts[2];
    }
    of->squares[sample] = own + 2 * apart;
    of->uncancelled[sample] = lengths * lengths;
}

/* found: squares, the same without cancellation, and probes, [3, samples], and memory for 3 * panels * (samples, or `count`).
 *
 * Squares are those of the `count` samples that are `chosen` (all, where this is 0), and not numbers elsewhere. Where there are
 * fewer of them than threads (`apart`), threads share panels, and each such sample has `each` bytes of scratch memory; otherwise a
 * thread has. `aside` bytes more are every thread's. Returns how many squares are no more than `least` of what they would be
 * without cancellation.
 */
static PyObject *gram(PyObject *self, PyObject *args)
{
    struct gram of;
    int vector, doubles, threads, apart;
    Py_ssize_t first, second, left, right, sums, found, scratch, each, aside, chosen, count, panels, length;
    double least;
    const char *numbers;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiiy#nnnnnnnnnnnnd", &vector, &doubles, &threads, &apart, &numbers, &length, &first, &second,
                          &left, &right, &sums, &found, &scratch, &each, &aside, &chosen, &count, &panels, &least)
        || !filled(&of.samples, sizeof of - offsetof(struct gram, samples), numbers, length))
        return NULL;
    of.first = ADDRESS(first);
    of.second = ADDRESS(second);
    of.left = ADDRESS(left);
    of.right = ADDRESS(right);
    of.sums = ADDRESS(sums);
    of.squares = ADDRESS(found);
    of.uncancelled = of.squares + of.samples;
    of.probes = of.uncancelled + of.samples;
    double *const parts = of.probes + of.samples;
    const int wide = vector == 64, kind = doubles != 0;
    look_function *const look = gram_looks[wide][kind], *const turn = gram_turns[wide][kind];
    column_function *const column = gram_columns[wide][kind];
    const int64_t *const index = ADDRESS(chosen);
    ptrdiff_t lost = 0;
    if (!are_samples(index, count, of.samples))
        return NULL;
    for (ptrdiff_t i = 0; i < of.samples; i++)
        of.squares[i] = of.uncancelled[i] = NAN;
    for (ptrdiff_t i = 0; i < count; i++)
        of.uncancelled[index ? index[i] : i] = 0;
    char *const memory = ADDRESS(scratch);
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads)
    {
        char *const own = memory + (apart ? count * each + thread() * aside : thread() * (each + aside));
        if (!apart) {
            /* What is read for the directions is in cache for the squares. */
#pragma omp for schedule(dynamic, 1) nowait
            for (ptrdiff_t i = 0; i < count; i++) {
                const ptrdiff_t sample = index ? index[i] : i;
                if (of.left)
                    look(&of, sample, own + each);
                turn(&of, sample, own);
                for (ptrdiff_t panel = 0; panel < panels; panel++)
                    column(&of, own, panel, parts + 3 * (i * panels + panel));
            }
        } else {
#pragma omp for schedule(dynamic, 1)
            for (ptrdiff_t i = 0; i < count; i++)
                turn(&of, index ? index[i] : i, memory + i * each);
            /* The longest first. */
#pragma omp for schedule(dynamic, 1) nowait
            for (ptrdiff_t task = 0; task < count * panels; task++) {
                const ptrdiff_t panel = panels - 1 - task / count, i = task % count;
                column(&of, memory + i * each, panel, parts + 3 * (i * panels + panel));
            }
        }
        if (of.left && (apart || count < of.samples))
#pragma omp for schedule(dynamic, 1)
            for (ptrdiff_t sample = 0; sample < of.samples; sample++)
                if (apart || isnan(of.uncancelled[sample]))
                    look(&of, sample, own + (apart ? 0 : each));
    }
    for (ptrdiff_t i = 0; i < count; i++) {
        const ptrdiff_t sample = index ? index[i] : i;
        sum_panels(&of, sample, parts + 3 * i * panels, panels);
        lost += !(of.squares[sample] > least * of.uncancelled[sample]);
    }
    Py_END_ALLOW_THREADS
    return PyLong_FromSsize_t(lost);
}

/* found: squares, and the same without cancellation, [2, count]. With directions: what lies along them, [samples], instead. */
static PyObject *shifted(PyObject *self, PyObject *args)
{
    struct shifted of;
    int vector, doubles, threads;
    Py_ssize_t inputs, grads, left, right, found, scratch, each, chosen, count, length;
    const char *numbers;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy#nnnnnnnnn", &vector, &doubles, &threads, &numbers, &length, &inputs, &grads, &left, &right,
                          &found, &scratch, &each, &chosen, &count)
        || !filled(&of.samples, sizeof of - offsetof(struct shifted, samples), numbers, length)
        || !are_samples(of.chosen = ADDRESS(chosen), count, of.samples))
        return NULL;
    of.inputs = ADDRESS(inputs);
    of.grads = ADDRESS(grads);
    of.left = ADDRESS(left);
    of.right = ADDRESS(right);
    of.squares = of.probes = ADDRESS(found);
    of.uncancelled = of.squares + count;
    Py_BEGIN_ALLOW_THREADS
    run_samples((left ? looked_of : shifted_of)[vector == 64][doubles != 0], &of, count, threads, scratch, each);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Every sample's gradient of filters that read one channel each. */
static PyObject *depthwise(PyObject *self, PyObject *args)
{
    struct depthwise of;
    int vector, doubles, threads;
    Py_ssize_t inputs, grads, gradients, scratch, each, length;
    const char *numbers;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiy#nnnnn", &vector, &doubles, &threads, &numbers, &length, &inputs, &grads, &gradients,
                          &scratch, &each)
        || !filled(&of.samples, sizeof of - offsetof(struct depthwise, samples), numbers, length))
        return NULL;
    of.inputs = ADDRESS(inputs);
    of.grads = ADDRESS(grads);
    of.gradients = ADDRESS(gradients);
    Py_BEGIN_ALLOW_THREADS
    run_samples(depthwise_of[vector == 64][doubles != 0], &of, of.samples, threads, scratch, each);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* What samples add to the scale and to the shift of a normalisation over the last dimension. */
static PyObject *normalized(PyObject *self, PyObject *args)
{
    struct normalized of;
    int vector, doubles, threads;
    Py_ssize_t rows, grads, scale, shift;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiinnnndnnnnnnnn", &vector, &doubles, &threads, &rows, &grads, &scale, &shift, &of.epsilon,
                          &of.samples, &of.positions, &of.size, &of.row_step, &of.row_position, &of.grad_step, &of.grad_position,
                          &of.centred))
        return NULL;
    of.rows = ADDRESS(rows);
    of.grads = ADDRESS(grads);
    of.scale = ADDRESS(scale);
    of.shift = ADDRESS(shift);
    Py_BEGIN_ALLOW_THREADS
    run_samples(normalizations[vector == 64][doubles != 0], &of, of.samples, threads, 0, 0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
