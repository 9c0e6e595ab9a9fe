/* Per-sample weight gradients that are built in registers, reduced there and never written to memory.
 *
 * For x86-64 with AVX-512 or with AVX2 and FMA, chosen when the module is loaded. Everything that comes in was checked by the
 * Python side of this folder, which also lends the scratch memory; addresses come as integers.
 */

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if !defined(__x86_64__) || !defined(__GNUC__) || defined(__clang__)
#error "gradscope's kernels are written for x86-64 and GCC; without them torch's own operators do the work"
#endif

enum { OUTER, PATCHES, BLOCKS };

/* Rows of a gradient that a thread works on at once, at most. */
#define BAND 128

/* Gradients h_i = sum over positions of grads[i, t] (outer) columns[i, t]. Steps are in numbers, not in bytes. Where samples are
 * chosen, there are as many as were, and all that is found is theirs. */
struct products {
    const void *grads, *inputs;
    const int64_t *chosen; /* NULL where all are */
    void *moment, *total; /* [outputs, columns]; NULL where nobody asked */
    const void *left, *right; /* directions, for the outputs and for the columns; NULL where nobody asked */
    ptrdiff_t factors; /* whether what lies along them is found in the factors (outer) and not in the tiles */
    void *sums; /* of the grads over positions, [samples, outputs]; NULL where nobody asked */
    ptrdiff_t samples, positions, outputs, columns;
    ptrdiff_t grad_step, position_step, output_step;
    ptrdiff_t input_step, row_step; /* of a sample; of a position (outer) or of a row of the image */
    ptrdiff_t channel_step, channels, height, width;
    ptrdiff_t kernel_rows, kernel_columns, row_stride, column_stride, row_dilation, column_dilation, row_padding, column_padding;
    ptrdiff_t lines, length; /* rows and columns of output positions */
    ptrdiff_t kind, band, part, chunk, panels, packed, border;
};

/* A sample counts where it is chosen; what lies along the directions, and sums, are wanted of all. */
struct gram {
    const void *first, *second;
    const void *left, *right; /* directions, for the second factor and for the first; NULL where nobody asked */
    void *sums; /* of the second factor over positions, [samples, second_size]; NULL where nobody asked */
    double *squares, *uncancelled, *probes;
    ptrdiff_t samples, positions, first_size, second_size, first_step, second_step, first_position, second_position;
};

/* Of a convolution; grid_rows and grid_columns are the pixels of one phase, of which there are row_stride * column_stride. */
struct shifted {
    const void *inputs, *grads, *left, *right;
    const int64_t *chosen; /* of which squares are wanted; NULL where of all */
    double *squares, *uncancelled, *probes;
    ptrdiff_t samples, channels, height, width, outputs, lines, length;
    ptrdiff_t input_step, channel_step, row_step, grad_step, output_step, line_step;
    ptrdiff_t kernel_rows, kernel_columns, row_stride, column_stride, row_dilation, column_dilation, row_padding, column_padding;
    ptrdiff_t grid_rows, grid_columns;
};

struct normalized {
    const void *rows, *grads;
    void *scale, *shift; /* [samples, size] */
    double epsilon;
    ptrdiff_t samples, positions, size, row_step, row_position, grad_step, grad_position, centred;
};

/* A matrix that is looked at along two directions; pieces [begin, end) are its own, of `height` rows each. */
struct matrix {
    ptrdiff_t rows, columns, height, begin, end;
};

struct place {
    const void *numbers, *left, *right;
    void *copy; /* NULL where nobody asked */
};

struct rows {
    const void *numbers, *direction;
    void *found, *squares; /* the latter NULL where nobody asked */
    ptrdiff_t rows, columns, step;
};

/* What is written of numbers that are read: nothing, the same again, or their squares. */
enum { NOTHING_KEPT, COPIES, SQUARES };

/* Elements of a gradient and of the sum of its samples' squares; or of two matrices whose quotients are wanted. */
struct elements {
    const void *first, *second;
    void *variance, *signal;
    double weight_square, variance_scale, signal_scale;
};

#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma")))
#define ROWS 8
#define STREAM(to, vector) _mm512_stream_si512((__m512i *)(to), (__m512i)(vector))
#define REAL float
#define INTEGER int32_t
#define LANES 16
#define NAME(x) x##_float_512
#include "every.h"
#define REAL double
#define INTEGER int64_t
#define LANES 8
#define NAME(x) x##_double_512
#include "every.h"
#undef TARGET
#undef ROWS
#undef STREAM

#define TARGET __attribute__((target("avx2,fma")))
#define ROWS 4
#define STREAM(to, vector) _mm256_stream_si256((__m256i *)(to), (__m256i)(vector))
#define REAL float
#define INTEGER int32_t
#define LANES 8
#define NAME(x) x##_float_256
#include "every.h"
#define REAL double
#define INTEGER int64_t
#define LANES 4
#define NAME(x) x##_double_256
#include "every.h"

typedef void products_function(const struct products *, ptrdiff_t, ptrdiff_t, void *, double *, double *);
typedef void piece_function(const struct matrix *, const struct place *, ptrdiff_t, ptrdiff_t, double[2]);
typedef void elements_function(const struct elements *, ptrdiff_t, ptrdiff_t);
typedef void ratios_function(const struct elements *, ptrdiff_t, ptrdiff_t, double[2]);
typedef void rows_function(const struct rows *, ptrdiff_t, ptrdiff_t);
typedef void look_function(const struct gram *, ptrdiff_t, void *);
typedef void column_function(const struct gram *, const void *, ptrdiff_t, double[3]);
/* One sample of a task, in memory of its own. */
typedef void sample_function(const void *, ptrdiff_t, void *);

/* By bytes of a vector (32 or 64) and whether numbers are doubles. */
#define EACH(name) {{name##_float_256, name##_double_256}, {name##_float_512, name##_double_512}}
static products_function *const products_of[2][2] = EACH(piece_of_products);
static piece_function *const pieces[2][2] = EACH(piece);
static elements_function *const elementwise_of[2][2] = EACH(elementwise);
static ratios_function *const ratios_of[2][2] = EACH(ratios);
static rows_function *const rows_of[2][2] = EACH(rows);
static look_function *const gram_looks[2][2] = EACH(gram_look), *const gram_turns[2][2] = EACH(gram_turn);
static column_function *const gram_columns[2][2] = EACH(gram_column);
static sample_function *const shifted_of[2][2] = EACH(shifted);
static sample_function *const looked_of[2][2] = EACH(looked);
static sample_function *const normalizations[2][2] = EACH(normalized);

#define ADDRESS(x) ((void *)(intptr_t)(x))

static int thread(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* The numbers that Python packed for the rest of a struct; 0 where they are not as many as it has. */
static int filled(void *rest, size_t size, const char *numbers, Py_ssize_t length)
{
    if ((size_t)length != size) {
        PyErr_Format(PyExc_ValueError, "%zu bytes of sizes and steps were expected, not %zd", size, length);
        return 0;
    }
    memcpy(rest, numbers, size);
    return 1;
}

/* Whether what was chosen are numbers of samples. */
static int are_samples(const int64_t *chosen, ptrdiff_t count, ptrdiff_t samples)
{
    for (ptrdiff_t i = 0; chosen && i < count; i++)
        if (chosen[i] < 0 || chosen[i] >= samples) {
            PyErr_Format(PyExc_ValueError, "sample %lld was chosen of %zd", (long long)chosen[i], samples);
            return 0;
        }
    return 1;
}

/* All samples, shared out among threads, each of which has `each` bytes of scratch memory. */
static void run_samples(
    sample_function *run, const void *of, ptrdiff_t samples, int threads, Py_ssize_t scratch, Py_ssize_t each)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (ptrdiff_t sample = 0; sample < samples; sample++)
        run(of, sample, (char *)ADDRESS(scratch) + thread() * each);
}

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

/* Elements that are shared out among threads, a piece at a time. */
#define ELEMENTS 32768

/* Variance and signal of each element. */
static PyObject *elementwise(PyObject *self, PyObject *args)
{
    struct elements of;
    int vector, doubles, threads;
    Py_ssize_t count, mean, own, variance, signal;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiinnnnnddd", &vector, &doubles, &threads, &count, &mean, &own, &variance, &signal,
                          &of.weight_square, &of.variance_scale, &of.signal_scale))
        return NULL;
    of.first = ADDRESS(mean);
    of.second = ADDRESS(own);
    of.variance = ADDRESS(variance);
    of.signal = ADDRESS(signal);
    elements_function *const run = elementwise_of[vector == 64][doubles != 0];
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static) num_threads(threads) if (count > ELEMENTS)
    for (ptrdiff_t start = 0; start < count; start += ELEMENTS)
        run(&of, start, count - start < ELEMENTS ? count : start + ELEMENTS);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* found: the sum of above / below over each piece of elements, and their number without 0 / 0, [pieces, 2]. */
static PyObject *ratios(PyObject *self, PyObject *args)
{
    struct elements of;
    int vector, doubles, threads;
    Py_ssize_t count, below, above, found;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiinnnn", &vector, &doubles, &threads, &count, &below, &above, &found))
        return NULL;
    of.first = ADDRESS(below);
    of.second = ADDRESS(above);
    ratios_function *const run = ratios_of[vector == 64][doubles != 0];
    double *const out = ADDRESS(found);
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for schedule(static) num_threads(threads) if (count > ELEMENTS)
    for (ptrdiff_t start = 0; start < count; start += ELEMENTS)
        run(&of, start, count - start < ELEMENTS ? count : start + ELEMENTS, out + 2 * (start / ELEMENTS));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Bytes of the widest vectors that this processor has; 0 where it has neither kind. */
static PyObject *widest(PyObject *self, PyObject *none)
{
    (void)self;
    (void)none;
    int bytes = 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        bytes = 32;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512bw") && bytes)
        bytes = 64;
    return PyLong_FromLong(bytes);
}

static PyMethodDef methods[] = {
    {"products", products, METH_VARARGS, "Squared norms, sums and sums of squares of per-sample products."},
    {"gram", gram, METH_VARARGS, "Squared norms of sums of outer products, from Gram matrices."},
    {"shifted", shifted, METH_VARARGS, "Squared norms of convolutions' gradients, from Gram matrices of pixels."},
    {"normalized", normalized, METH_VARARGS, "What samples add to scale and shift of a normalisation over the last dimension."},
    {"readings", readings, METH_VARARGS, "Squared norms and projections of matrices."},
    {"elementwise", elementwise, METH_VARARGS, "Variance and signal of every element of a gradient."},
    {"ratios", ratios, METH_VARARGS, "Sums of the elements' quotients of two matrices."},
    {"rows", rows, METH_VARARGS, "Lengths and projections of the rows of two matrices."},
    {"widest", widest, METH_NOARGS, "Bytes of the widest vectors that this processor has."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModule_Create(&definition);
}
