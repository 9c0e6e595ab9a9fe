/* Gram matrices of a convolution's patches, summed from those of pixels over the kernel's shifts; included by every.h.
 *
 * Positions lie on a grid as wide as the pixels (of one phase, where there is a stride), so that each offset of the kernel is one
 * shift along the flattened grid. Positions that no kernel takes have no gradient.
 */

/* Numbers that one row of the flattened grid puts into panels of WIDTH places: [place / WIDTH][channels][place % WIDTH]. */
static TARGET void NAME(on_grid)(
    const REAL *from, ptrdiff_t step, ptrdiff_t count, ptrdiff_t place, ptrdiff_t channel, ptrdiff_t channels, REAL *out)
{
    while (count > 0) {
        const ptrdiff_t within = place % WIDTH, own = count < WIDTH - within ? count : WIDTH - within;
        REAL *to = out + (place / WIDTH * channels + channel) * WIDTH + within;
        if (step == 1)
            for (ptrdiff_t i = 0; i < own; i++)
                to[i] = from[i];
        else
            for (ptrdiff_t i = 0; i < own; i++)
                to[i] = from[i * step];
        from += own * step;
        place += own;
        count -= own;
    }
}

/* The pixels [row * stride + phase] of an image with its border. */
static TARGET void NAME(phase)(const struct shifted *of, const REAL *image, ptrdiff_t down, ptrdiff_t along, REAL *out)
{
    const ptrdiff_t step = of->column_stride;
    /* The first and the last column of the grid that lie inside the image. */
    const ptrdiff_t before = of->column_padding - along, first = before > 0 ? (before + step - 1) / step : 0;
    const ptrdiff_t most = of->width + before > 0 ? (of->width + before - 1) / step + 1 : 0;
    const ptrdiff_t end = most < of->grid_columns ? most : of->grid_columns;
    for (ptrdiff_t channel = 0; channel < of->channels; channel++)
        for (ptrdiff_t row = 0; row < of->grid_rows; row++) {
            const ptrdiff_t y = row * of->row_stride + down - of->row_padding;
            if (y >= 0 && y < of->height && first < end)
                NAME(on_grid)(
                    image + channel * of->channel_step + y * of->row_step + first * step - before, step, end - first,
                    row * of->grid_columns + first, channel, of->channels, out);
        }
}

/* The upper triangle, in whole tiles, of the Gram matrix of `count` places. */
static TARGET void NAME(grams)(const REAL *packed, ptrdiff_t channels, ptrdiff_t count, ptrdiff_t across, REAL *out)
{
    for (ptrdiff_t column = 0; column < count; column += WIDTH)
        for (ptrdiff_t row = 0; row < column + WIDTH && row < count; row += ROWS) {
            VECTOR tile[ROWS][2];
            NAME(tile)(
                packed + row / WIDTH * channels * WIDTH + row % WIDTH, WIDTH, packed + column * channels, WIDTH, 0, 1, channels,
                tile);
            for (int k = 0; k < ROWS; k++)
                for (int half = 0; half < 2; half++)
                    *(VECTOR *)(out + (row + k) * across + column + half * LANES) = tile[k][half];
        }
}

/* Sum over s, t of <b_s, b_t><patch_s, patch_t> of one sample, and the same without cancellation. */
static TARGET void NAME(shifted)(const void *task, ptrdiff_t number, void *scratch)
{
    const struct shifted *const of = (const struct shifted *)task;
    const ptrdiff_t sample = of->chosen ? of->chosen[number] : number;
    const ptrdiff_t across = (of->grid_rows * of->grid_columns + WIDTH - 1) / WIDTH * WIDTH;
    const ptrdiff_t positions = (of->lines - 1) * of->grid_columns + of->length;
    const ptrdiff_t padded = (positions + WIDTH - 1) / WIDTH * WIDTH, area = of->kernel_rows * of->kernel_columns;
    REAL *const back = (REAL *)scratch, *const pixels = back + padded * of->outputs;
    const REAL **const shifts = (const REAL **)(pixels + across * of->channels);
    REAL *gram = (REAL *)(shifts + area);
    const REAL *grads = (const REAL *)of->grads + sample * of->grad_step;
    memset(back, 0, padded * of->outputs * sizeof(REAL));
    for (ptrdiff_t output = 0; output < of->outputs; output++)
        for (ptrdiff_t y = 0; y < of->lines; y++)
            NAME(on_grid)(
                grads + output * of->output_step + y * of->line_step, 1, of->length, y * of->grid_columns, output, of->outputs,
                back);
    for (ptrdiff_t down = 0; down < of->row_stride; down++)
        for (ptrdiff_t along = 0; along < of->column_stride; along++) {
            int used = 0;
            for (ptrdiff_t offset = 0; offset < area; offset++) {
                const ptrdiff_t y = offset / of->kernel_columns * of->row_dilation;
                const ptrdiff_t x = offset % of->kernel_columns * of->column_dilation;
                if (y % of->row_stride != down || x % of->column_stride != along)
                    continue;
                used = 1;
                shifts[offset] = gram + (y / of->row_stride * of->grid_columns + x / of->column_stride) * (across + 1);
            }
            if (!used)
                continue;
            memset(pixels, 0, across * of->channels * sizeof(REAL));
            NAME(phase)(of, (const REAL *)of->inputs + sample * of->input_step, down, along, pixels);
            /* What lies below the triangle or beyond the grid is met by zeros: it must not be what is not a number. */
            memset(gram, 0, (across + ROWS) * across * sizeof(REAL));
            NAME(grams)(pixels, of->channels, of->grid_rows * of->grid_columns, across, gram);
            gram += (across + ROWS) * across;
        }
    double apart = 0, own = 0, lengths = 0;
    for (ptrdiff_t column = 0; column < positions; column += WIDTH)
        for (ptrdiff_t row = 0; row < column + WIDTH && row < positions; row += ROWS) {
            VECTOR tile[ROWS][2], patches[ROWS][2], sum = {0};
            NAME(tile)(
                back + row / WIDTH * of->outputs * WIDTH + row % WIDTH, WIDTH, back + column * of->outputs, WIDTH, 0, 1,
                of->outputs, tile);
#pragma GCC unroll 16
            for (int k = 0; k < ROWS; k++)
                patches[k][0] = patches[k][1] = (VECTOR){0};
            for (ptrdiff_t offset = 0; offset < area; offset++)
#pragma GCC unroll 16
                for (int k = 0; k < ROWS; k++) {
                    const REAL *from = shifts[offset] + (row + k) * across + column;
                    patches[k][0] += *(const VECTOR *)from;
                    patches[k][1] += *(const VECTOR *)(from + LANES);
                }
#pragma GCC unroll 16
            for (int k = 0; k < ROWS; k++) {
                patches[k][0] *= tile[k][0];
                patches[k][1] *= tile[k][1];
                sum += patches[k][0] + patches[k][1];
            }
            if (row < column) {
                apart += NAME(sum)(sum);
                continue;
            }
            for (int k = 0; k < ROWS && row + k < positions; k++) {
                const REAL *met = (const REAL *)patches[k];
                const ptrdiff_t self = row - column + k;
                own += met[self];
                lengths += sqrt(met[self] > 0 ? (double)met[self] : 0);
                for (ptrdiff_t place = self + 1; place < WIDTH; place++)
                    apart += met[place];
            }
        }
    of->squares[number] = own + 2 * apart;
    of->uncancelled[number] = lengths * lengths;
}
