/* Lengths and projections of rows, which are read once; included by every.h. */

/* Numbers whose squares are added up in REAL before the sum goes on in double. */
#define BLOCK 1024

/* Adds |row|^2 and <row, direction> of `length` numbers; `kept` is memory for as many. */
static inline TARGET __attribute__((always_inline)) void NAME(read_and_keep)(
    const REAL *row, const REAL *direction, ptrdiff_t length, double *square, double *along, REAL *kept, const int how)
{
    for (ptrdiff_t start = 0; start < length; start += BLOCK) {
        const ptrdiff_t end = start + BLOCK < length ? start + BLOCK : length;
        VECTOR squares[4] = {{0}}, products[4] = {{0}};
        ptrdiff_t i = start;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
#pragma GCC unroll 4
            for (int part = 0; part < 4; part++) {
                const VECTOR here = *(const VECTOR *)(row + i + part * LANES);
                squares[part] += here * here;
                products[part] += here * *(const VECTOR *)(direction + i + part * LANES);
                if (how == COPIES)
                    NAME(store)(kept + i + part * LANES, here);
                if (how == SQUARES)
                    *(VECTOR *)(kept + i + part * LANES) = here * here;
            }
        for (; i + LANES <= end; i += LANES) {
            const VECTOR here = *(const VECTOR *)(row + i);
            squares[0] += here * here;
            products[0] += here * *(const VECTOR *)(direction + i);
            if (how == COPIES)
                NAME(store)(kept + i, here);
            if (how == SQUARES)
                *(VECTOR *)(kept + i) = here * here;
        }
        REAL rest[2] = {0, 0};
        for (; i < end; i++) {
            rest[0] += row[i] * row[i];
            rest[1] += row[i] * direction[i];
            if (how)
                kept[i] = how == COPIES ? row[i] : row[i] * row[i];
        }
        *square += NAME(sum)((squares[0] + squares[1]) + (squares[2] + squares[3])) + rest[0];
        *along += NAME(sum)((products[0] + products[1]) + (products[2] + products[3])) + rest[1];
    }
}

static inline TARGET __attribute__((always_inline)) void NAME(read)(
    const REAL *row, const REAL *direction, ptrdiff_t length, double *square, double *along)
{
    NAME(read_and_keep)(row, direction, length, square, along, NULL, NOTHING_KEPT);
}

/* <row, direction>. */
static inline TARGET __attribute__((always_inline)) REAL NAME(dot)(const REAL *row, const REAL *direction, ptrdiff_t length)
{
    VECTOR sums[2] = {{0}};
    REAL rest = 0;
    ptrdiff_t k = 0;
    for (; k + WIDTH <= length; k += WIDTH)
        for (int half = 0; half < 2; half++)
            sums[half] += *(const VECTOR *)(row + k + half * LANES) * *(const VECTOR *)(direction + k + half * LANES);
    for (; k < length; k++)
        rest += row[k] * direction[k];
    return (REAL)NAME(sum)(sums[0] + sums[1]) + rest;
}

/* Some rows of a matrix: |.|^2 of all of it, and left' matrix right; and a copy, where there is memory for one. */
static TARGET void NAME(piece)(
    const struct matrix *of, const struct place *at, ptrdiff_t first, ptrdiff_t last, double found[2])
{
    const REAL *left = (const REAL *)at->left, *right = (const REAL *)at->right;
    found[0] = found[1] = 0;
    for (ptrdiff_t row = first; row < last; row++) {
        const REAL *numbers = (const REAL *)at->numbers + row * of->columns;
        double along = 0;
        if (at->copy)
            NAME(read_and_keep)(numbers, right, of->columns, found, &along, (REAL *)at->copy + row * of->columns, COPIES);
        else
            NAME(read)(numbers, right, of->columns, found, &along);
        found[1] += along * left[row];
    }
    if (at->copy)
        _mm_sfence();
}

/* |row| and <row, direction> of rows [first, last); lengths first, then what lies along the direction, `rows` of each. Their squares
 * number by number too, where there is memory for them. */
static TARGET void NAME(rows)(const struct rows *of, ptrdiff_t first, ptrdiff_t last)
{
    REAL *lengths = (REAL *)of->found, *along = lengths + of->rows;
    for (ptrdiff_t row = first; row < last; row++) {
        const REAL *numbers = (const REAL *)of->numbers + row * of->step;
        double square = 0, product = 0;
        if (of->squares)
            NAME(read_and_keep)(
                numbers, (const REAL *)of->direction, of->columns, &square, &product, (REAL *)of->squares + row * of->columns,
                SQUARES);
        else
            NAME(read)(numbers, (const REAL *)of->direction, of->columns, &square, &product);
        lengths[row] = (REAL)sqrt(square);
        along[row] = (REAL)product;
    }
}

#undef BLOCK
