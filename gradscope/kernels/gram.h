/* Gram matrices of positions, of which no element reaches memory; included by every.h. */

/* weighted = sum over t of weights[t] row_t, and into the sample's place in `sums`, if there is any, the same without weights. */
static TARGET void NAME(weighted)(
    const REAL *rows, ptrdiff_t step, ptrdiff_t positions, ptrdiff_t size, const REAL *weights, REAL *weighted, REAL *sums,
    ptrdiff_t sample)
{
    REAL *const plain = sums ? sums + sample * size : NULL;
    memset(weighted, 0, size * sizeof(REAL));
    if (plain)
        memset(plain, 0, size * sizeof(REAL));
    for (ptrdiff_t t = 0; t < positions; t += 8) {
        const int own = positions - t < 8 ? (int)(positions - t) : 8;
        const REAL *from = rows + t * step;
        ptrdiff_t k = 0;
        if (own == 8 && plain)
            for (; k + LANES <= size; k += LANES) {
                VECTOR sum = *(VECTOR *)(plain + k), product = *(VECTOR *)(weighted + k);
#pragma GCC unroll 8
                for (int row = 0; row < 8; row++) {
                    const VECTOR here = *(const VECTOR *)(from + row * step + k);
                    sum += here;
                    product += weights[t + row] * here;
                }
                *(VECTOR *)(plain + k) = sum;
                *(VECTOR *)(weighted + k) = product;
            }
        for (int row = 0; row < own; row++)
            for (ptrdiff_t place = k; place < size; place++) {
                weighted[place] += weights[t + row] * from[row * step + place];
                if (plain)
                    plain[place] += from[row * step + place];
            }
    }
}

/* What lies along the directions, and the sums over positions of the second factor; `along` is memory for positions + second_size. */
static TARGET void NAME(gram_look)(const struct gram *of, ptrdiff_t sample, void *scratch)
{
    const REAL *first = (const REAL *)of->first + sample * of->first_step;
    const REAL *second = (const REAL *)of->second + sample * of->second_step;
    REAL *along = (REAL *)scratch;
    for (ptrdiff_t t = 0; t < of->positions; t++)
        along[t] = NAME(dot)(first + t * of->first_position, (const REAL *)of->right, of->first_size);
    NAME(weighted)(
        second, of->second_position, of->positions, of->second_size, along, along + of->positions, (REAL *)of->sums, sample);
    double square = 0, product = 0;
    NAME(read)(along + of->positions, (const REAL *)of->left, of->second_size, &square, &product);
    of->probes[sample] = product;
}

/* Both factors in panels of WIDTH positions, one after the other. */
static TARGET void NAME(gram_turn)(const struct gram *of, ptrdiff_t sample, void *scratch)
{
    const ptrdiff_t positions = of->positions, padded = (positions + WIDTH - 1) / WIDTH * WIDTH;
    const ptrdiff_t sizes[2] = {of->first_size, of->second_size}, steps[2] = {of->first_position, of->second_position};
    const REAL *factors[2] = {
        (const REAL *)of->first + sample * of->first_step, (const REAL *)of->second + sample * of->second_step};
    REAL *turned = (REAL *)scratch;
    for (int which = 0; which < 2; turned += padded * sizes[which++])
        for (ptrdiff_t t = 0; t < positions; t += WIDTH)
            NAME(turned)(
                factors[which] + t * steps[which], steps[which], positions - t < WIDTH ? positions - t : WIDTH, sizes[which],
                turned + t * sizes[which], WIDTH, WIDTH);
}

/* Panel `column` of <a_s, a_t><b_s, b_t> above and on the diagonal: what lies apart from it and within its tiles, and the sum of
 * the diagonal's roots. */
static TARGET void NAME(gram_column)(const struct gram *of, const void *scratch, ptrdiff_t panel, double found[3])
{
    const ptrdiff_t padded = (of->positions + WIDTH - 1) / WIDTH * WIDTH, column = panel * WIDTH;
    const ptrdiff_t sizes[2] = {of->first_size, of->second_size};
    const REAL *turned[2] = {(const REAL *)scratch, (const REAL *)scratch + padded * of->first_size};
    double apart = 0, own = 0, lengths = 0;
    for (ptrdiff_t row = 0; row < column + WIDTH && row < of->positions; row += ROWS) {
        VECTOR tiles[2][ROWS][2], sum = {0};
        for (int which = 0; which < 2; which++)
            NAME(tile)(
                turned[which] + row / WIDTH * WIDTH * sizes[which] + row % WIDTH, WIDTH, turned[which] + column * sizes[which],
                WIDTH, 0, 1, sizes[which], tiles[which]);
#pragma GCC unroll 16
        for (int k = 0; k < ROWS; k++)
            sum += tiles[0][k][0] * tiles[1][k][0] + tiles[0][k][1] * tiles[1][k][1];
        if (row < column) {
            apart += NAME(sum)(sum);
            continue;
        }
        own += NAME(sum)(sum);
        for (int k = 0; k < ROWS; k++) {
            const REAL *first = (const REAL *)tiles[0][k], *second = (const REAL *)tiles[1][k];
            const double size = (double)first[row - column + k] * (double)second[row - column + k];
            lengths += sqrt(size > 0 ? size : 0);
        }
    }
    found[0] = apart;
    found[1] = own;
    found[2] = lengths;
}
