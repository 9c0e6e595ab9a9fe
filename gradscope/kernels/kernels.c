/* Per-sample weight gradients that are built in registers, reduced there and never written to memory.
 *
 * For x86-64 with AVX-512 or with AVX2 and FMA, chosen when the module is loaded. What comes in as integers, addresses
 * among them, was checked by the Python side of this folder, which also lends the scratch memory; what comes in as tensors is
 * checked here.
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

#include "tasks.h"

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
static sample_function *const depthwise_of[2][2] = EACH(depthwise);
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

#include "tensors.h"
#include "graph.h"
#include "calls_on_samples.h"
#include "calls_on_matrices.h"

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
    {"depthwise", depthwise, METH_VARARGS, "Per-sample gradients of filters that read one channel each."},
    {"normalized", normalized, METH_VARARGS, "What samples add to scale and shift of a normalisation over the last dimension."},
    {"readings", readings, METH_VARARGS, "Squared norms and projections of matrices."},
    {"elementwise", elementwise, METH_VARARGS, "Variance and signal of every element of a gradient."},
    {"ratios", ratios, METH_VARARGS, "Sums of the elements' quotients of two matrices."},
    {"rows", rows, METH_VARARGS, "Lengths and projections of the rows of two matrices."},
    {"meet", meet, METH_VARARGS, "What is compared with tensors' attributes: torch's own objects."},
    {"serves", serves, METH_VARARGS, "Whether the kernels can read these tensors."},
    {"serves_lines", serves_lines, METH_VARARGS, "Whether the kernels can read these tensors, which are contiguous."},
    {"walk", walk, METH_VARARGS, "The nodes of an autograd graph and their names."},
    {"widest", widest, METH_NOARGS, "Bytes of the widest vectors that this processor has."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return intern_names() ? PyModule_Create(&definition) : NULL;
}
