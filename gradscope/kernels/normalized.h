/* What samples add to the scale and the shift of a normalisation over the last dimension; included by every.h. */

/* Rows whose statistics are known before any of them is multiplied: sums are read and written once for all of them. */
#define TOGETHER 4

/* Sum over a row of (row[k] - from) or of its square. */
static inline TARGET __attribute__((always_inline)) double NAME(moment)(const REAL *row, ptrdiff_t size, REAL from, int squared)
{
    VECTOR sums[2] = {{0}};
    ptrdiff_t k = 0;
    for (; k + 2 * LANES <= size; k += 2 * LANES)
        for (int part = 0; part < 2; part++) {
            const VECTOR here = *(const VECTOR *)(row + k + part * LANES) - from;
            if (squared)
                sums[part] += here * here;
            else
                sums[part] += here;
        }
    double rest = 0;
    for (; k < size; k++)
        rest += squared ? (row[k] - from) * (row[k] - from) : row[k] - from;
    return NAME(sum)(sums[0] + sums[1]) + rest;
}

/* One sample's rows: scale[k] = sum over t of grads[t][k] (rows[t][k] - mean_t) / deviation_t, and shift[k] = sum over t of grads[t][k]. */
static TARGET void NAME(normalized)(const void *task, ptrdiff_t sample, void *scratch)
{
    const struct normalized *const of = (const struct normalized *)task;
    (void)scratch;
    const ptrdiff_t size = of->size;
    const REAL *rows = (const REAL *)of->rows + sample * of->row_step, *grads = (const REAL *)of->grads + sample * of->grad_step;
    REAL *scale = (REAL *)of->scale + sample * size, *shift = (REAL *)of->shift + sample * size;
    memset(scale, 0, size * sizeof(REAL));
    memset(shift, 0, size * sizeof(REAL));
    for (ptrdiff_t t = 0; t < of->positions; t += TOGETHER) {
        const int own = of->positions - t < TOGETHER ? (int)(of->positions - t) : TOGETHER;
        REAL means[TOGETHER] = {0}, factors[TOGETHER] = {0};
        const REAL *row[TOGETHER], *grad[TOGETHER];
        for (int i = 0; i < TOGETHER; i++) {
            /* A row that is not there is the first one again, whose factor is left at zero. */
            row[i] = rows + (t + (i < own ? i : 0)) * of->row_position;
            grad[i] = grads + (t + (i < own ? i : 0)) * of->grad_position;
            if (i >= own)
                continue;
            means[i] = of->centred ? (REAL)(NAME(moment)(row[i], size, 0, 0) / (double)size) : 0;
            factors[i] = (REAL)(1 / sqrt(NAME(moment)(row[i], size, means[i], 1) / (double)size + of->epsilon));
        }
        ptrdiff_t k = 0;
        if (own == TOGETHER)
            for (; k + LANES <= size; k += LANES) {
                VECTOR products = *(VECTOR *)(scale + k), sums = *(VECTOR *)(shift + k);
#pragma GCC unroll 4
                for (int i = 0; i < TOGETHER; i++) {
                    const VECTOR back = *(const VECTOR *)(grad[i] + k);
                    products += back * ((*(const VECTOR *)(row[i] + k) - means[i]) * factors[i]);
                    sums += back;
                }
                *(VECTOR *)(scale + k) = products;
                *(VECTOR *)(shift + k) = sums;
            }
        for (; k < size; k++)
            for (int i = 0; i < own; i++) {
                scale[k] += grad[i][k] * ((row[i][k] - means[i]) * factors[i]);
                shift[k] += grad[i][k];
            }
    }
}

#undef TOGETHER
