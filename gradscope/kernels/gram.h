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

/* Sum over s, t of <a_s, a_t><b_s, b_t> of one sample, and the same without cancellation: (sum over t of |a_t||b_t|)^2. */
static TARGET void NAME(gram)(const void *task, ptrdiff_t sample, void *scratch)
{
    const struct gram *const of = (const struct gram *)task;
    const ptrdiff_t positions = of->positions, padded = (positions + WIDTH - 1) / WIDTH * WIDTH;
    const ptrdiff_t sizes[2] = {of->first_size, of->second_size};
    const REAL *factors[2] = {
        (const REAL *)of->first + sample * of->first_step, (const REAL *)of->second + sample * of->second_step};
    const ptrdiff_t steps[2] = {of->first_position, of->second_position};
    REAL *turned[2] = {(REAL *)scratch, (REAL *)scratch + padded * of->first_size};
    if (of->left) {
        /* What the factors are turned from is read for the probe as well, and for the sums over positions. */
        REAL *along = of->squares ? turned[1] + padded * of->second_size : (REAL *)scratch;
        for (ptrdiff_t t = 0; t < positions; t++)
            along[t] = NAME(dot)(factors[0] + t * steps[0], (const REAL *)of->right, sizes[0]);
        NAME(weighted)(factors[1], steps[1], positions, sizes[1], along, along + padded, (REAL *)of->sums, sample);
        double square = 0, product = 0;
        NAME(read)(along + padded, (const REAL *)of->left, sizes[1], &square, &product);
        of->probes[sample] = product;
    }
    if (!of->squares)
        return;
    for (int which = 0; which < 2; which++)
        for (ptrdiff_t t = 0; t < padded; t += WIDTH)
            NAME(turned)(
                factors[which] + t * steps[which], steps[which], positions - t < WIDTH ? positions - t : WIDTH, sizes[which],
                turned[which] + t * sizes[which], WIDTH, WIDTH);
    double apart = 0, own = 0, lengths = 0;
    for (ptrdiff_t column = 0; column < padded; column += WIDTH)
        for (ptrdiff_t row = 0; row < column + WIDTH && row < positions; row += ROWS) {
            VECTOR tiles[2][ROWS][2], sum = {0};
            for (int which = 0; which < 2; which++)
                NAME(tile)(
                    turned[which] + row / WIDTH * WIDTH * sizes[which] + row % WIDTH, WIDTH,
                    turned[which] + column * sizes[which], WIDTH, 0, 1, sizes[which], tiles[which]);
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
    of->squares[sample] = own + 2 * apart;
    of->uncancelled[sample] = lengths * lengths;
}
