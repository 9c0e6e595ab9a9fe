/* Tiles of products, and numbers laid where a tile wants them; included by every.h. */

#define WIDTH (2 * LANES)

typedef REAL NAME(vector) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INTEGER NAME(places) __attribute__((vector_size(LANES * sizeof(REAL))));
#define VECTOR NAME(vector)
#define PLACES NAME(places)

/* To memory that nobody reads soon: past the cache, which then need not fetch it first. Whoever has stored so ends with a fence. */
static inline TARGET __attribute__((always_inline)) void NAME(store)(REAL *to, VECTOR numbers)
{
    if ((intptr_t)to % sizeof numbers)
        *(VECTOR *)to = numbers;
    else
        STREAM(to, numbers);
}

static TARGET void NAME(stored)(const REAL *from, ptrdiff_t count, REAL *to)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= count; i += LANES)
        NAME(store)(to + i, *(const VECTOR *)(from + i));
    for (; i < count; i++)
        to[i] = from[i];
}

/* tile[r][c] = sum over positions of rows[r] * columns[c]; positions are `lines` lines of `length`. */
static inline TARGET __attribute__((always_inline)) void NAME(tile)(
    const REAL *rows, ptrdiff_t row_step, const REAL *columns, ptrdiff_t column_step, ptrdiff_t line_step,
    ptrdiff_t lines, ptrdiff_t length, VECTOR tile[ROWS][2])
{
    VECTOR sums[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
        sums[r][0] = sums[r][1] = (VECTOR){0};
    for (ptrdiff_t line = 0; line < lines; line++, columns += line_step) {
        const REAL *place = columns;
        for (ptrdiff_t t = 0; t < length; t++, place += column_step, rows += row_step) {
            const VECTOR left = *(const VECTOR *)place, right = *(const VECTOR *)(place + LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                sums[r][0] += rows[r] * left;
                sums[r][1] += rows[r] * right;
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        tile[r][0] = sums[r][0];
        tile[r][1] = sums[r][1];
    }
}

static inline TARGET __attribute__((always_inline)) double NAME(sum)(VECTOR lanes)
{
#pragma GCC unroll 16
    for (int half = LANES / 2; half; half /= 2) {
        PLACES swapped;
#pragma GCC unroll 16
        for (int lane = 0; lane < LANES; lane++)
            swapped[lane] = lane ^ half;
        lanes += __builtin_shuffle(lanes, swapped);
    }
    return lanes[0];
}

/* Turn LANES x LANES numbers round: out[k * step + r] = rows[r][k]. */
static inline TARGET __attribute__((always_inline)) void NAME(turn)(
    const REAL *const rows[LANES], ptrdiff_t first, REAL *out, ptrdiff_t step)
{
    VECTOR now[LANES], next[LANES];
    PLACES low, high;
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++) {
        low[lane] = lane / 2 + (lane % 2) * LANES;
        high[lane] = low[lane] + LANES / 2;
    }
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        now[r] = *(const VECTOR *)(rows[r] + first);
#pragma GCC unroll 4
    for (int stage = 1; stage < LANES; stage *= 2) {
#pragma GCC unroll 8
        for (int r = 0; r < LANES / 2; r++) {
            next[2 * r] = __builtin_shuffle(now[r], now[r + LANES / 2], low);
            next[2 * r + 1] = __builtin_shuffle(now[r], now[r + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++)
            now[r] = next[r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        *(VECTOR *)(out + r * step) = now[r];
}

/* out[k * step + r] = in[r * stride + k] for `rows` <= `width` rows of `length` numbers; zeros up to `width`, a multiple of LANES. */
static TARGET void NAME(turned)(
    const REAL *in, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t length, REAL *out, ptrdiff_t step, ptrdiff_t width)
{
    const ptrdiff_t whole = length - length % LANES;
    for (ptrdiff_t r = 0; r < width; r += LANES) {
        const ptrdiff_t own = rows - r < 0 ? 0 : rows - r < LANES ? rows - r : LANES;
        const REAL *from[LANES];
        ptrdiff_t k = 0;
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            from[lane] = in + (lane < own ? r + lane : 0) * stride;
        if (own == LANES)
            for (; k < whole; k += LANES)
                NAME(turn)(from, k, out + k * step + r, step);
        for (; k < length; k++)
            for (ptrdiff_t lane = 0; lane < LANES; lane++)
                out[k * step + r + lane] = lane < own ? from[lane][k] : 0;
    }
}

/* Panels of `width` numbers of each position, panel after panel: out[(j / width) * positions * width + t * width + j % width]. */
static TARGET void NAME(packed)(
    const REAL *in, ptrdiff_t position_step, ptrdiff_t step, ptrdiff_t positions, ptrdiff_t size, ptrdiff_t width, REAL *out)
{
    for (ptrdiff_t first = 0; first < size; first += width, out += positions * width) {
        const ptrdiff_t own = size - first < width ? size - first : width;
        for (ptrdiff_t t = 0; t < positions; t++) {
            const REAL *from = in + t * position_step + first * step;
            REAL *to = out + t * width;
            for (ptrdiff_t k = 0; k < own; k++)
                to[k] = from[k * step];
            for (ptrdiff_t k = own; k < width; k++)
                to[k] = 0;
        }
    }
}

/* The same of rows whose numbers lie next to each other; inlined, so that the width is a constant and whole panels are moved at once. */
static inline TARGET __attribute__((always_inline)) void NAME(packed_rows)(
    const REAL *in, ptrdiff_t position_step, ptrdiff_t positions, ptrdiff_t size, ptrdiff_t width, REAL *out)
{
    const ptrdiff_t whole = size - size % width;
    for (ptrdiff_t first = 0; first < whole; first += width, out += positions * width)
        for (ptrdiff_t t = 0; t < positions; t++)
            memcpy(out + t * width, in + t * position_step + first, width * sizeof(REAL));
    if (whole < size)
        NAME(packed)(in + whole, position_step, 1, positions, size - whole, width, out);
}
