/* Variance and signal of every element; included by every.h. */

/* Of elements [first, last). All in double, since the two terms nearly cancel where signal dominates. */
static TARGET void NAME(elementwise)(const struct elements *of, ptrdiff_t first, ptrdiff_t last)
{
    const REAL *mean = (const REAL *)of->first, *own = (const REAL *)of->second;
    REAL *variance = (REAL *)of->variance, *signal = (REAL *)of->signal;
    for (ptrdiff_t i = first; i < last; i++) {
        const double mean_square = (double)mean[i] * (double)mean[i], own_square = (double)own[i];
        signal[i] = (REAL)((mean_square - own_square) * of->signal_scale);
        variance[i] = (REAL)((own_square - of->weight_square * mean_square) * of->variance_scale);
    }
}

/* The sum of second / first, and how many there are; without those that are 0 / 0. */
static TARGET void NAME(ratios)(const struct elements *of, ptrdiff_t first, ptrdiff_t last, double found[2])
{
    const REAL *below = (const REAL *)of->first, *above = (const REAL *)of->second;
    double sums[LANES] = {0}, counts[LANES] = {0};
    ptrdiff_t i = first;
    for (; i + LANES <= last; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const double under = (double)below[i + lane], over = (double)above[i + lane];
            const int still = under == 0 && over == 0;
            sums[lane] += still ? 0 : over / under;
            counts[lane] += still ? 0 : 1;
        }
    for (; i < last; i++) {
        const int still = below[i] == 0 && above[i] == 0;
        sums[0] += still ? 0 : (double)above[i] / (double)below[i];
        counts[0] += still ? 0 : 1;
    }
    found[0] = found[1] = 0;
    for (int lane = 0; lane < LANES; lane++) {
        found[0] += sums[lane];
        found[1] += counts[lane];
    }
}
