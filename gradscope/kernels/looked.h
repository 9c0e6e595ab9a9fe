/* What convolutions' gradients have in common with a direction, from one look at each factor; included by every.h. */

/* Offsets of the kernel that meet a channel together: their sums stay in registers. */
#define OFFSETS 12

/* <left, grads> at each position of one sample: a map of one channel. */
static TARGET void NAME(projected)(const struct shifted *of, const REAL *grads, REAL *map)
{
    const REAL *left = (const REAL *)of->left;
    /* Lines that follow each other are one. */
    const ptrdiff_t lines = of->line_step == of->length ? 1 : of->lines, length = of->length * of->lines / lines;
    memset(map, 0, of->lines * of->length * sizeof(REAL));
    for (ptrdiff_t output = 0; output < of->outputs; output += 4) {
        REAL weights[4] = {0};
        const REAL *rows[4];
        for (int k = 0; k < 4; k++) {
            const int there = output + k < of->outputs;
            weights[k] = there ? left[output + k] : 0;
            rows[k] = grads + (there ? output + k : output) * of->output_step;
        }
        for (ptrdiff_t y = 0; y < lines; y++)
            for (ptrdiff_t x = 0; x < length; x++) {
                const ptrdiff_t place = y * of->line_step + x;
                const REAL first = weights[0] * rows[0][place] + weights[1] * rows[1][place];
                map[y * length + x] += first + (weights[2] * rows[2][place] + weights[3] * rows[3][place]);
            }
    }
}

/* For each offset of the kernel: what stands at the position that meets a pixel there, zero where none does. */
static TARGET void NAME(placed_maps)(const struct shifted *of, const REAL *map, REAL *out)
{
    const ptrdiff_t area = of->kernel_rows * of->kernel_columns, pixels = of->height * of->width;
    memset(out, 0, area * pixels * sizeof(REAL));
    for (ptrdiff_t offset = 0; offset < area; offset++, out += pixels)
        for (ptrdiff_t y = 0; y < of->lines; y++) {
            const ptrdiff_t row = y * of->row_stride + offset / of->kernel_columns * of->row_dilation - of->row_padding;
            const ptrdiff_t along = offset % of->kernel_columns * of->column_dilation - of->column_padding;
            for (ptrdiff_t x = 0; row >= 0 && row < of->height && x < of->length; x++) {
                const ptrdiff_t column = x * of->column_stride + along;
                if (column >= 0 && column < of->width)
                    out[row * of->width + column] = map[y * of->length + x];
            }
        }
}

/* Sum over offsets of weights[offset] <image, maps[offset]>, of one channel and up to OFFSETS offsets. */
static inline TARGET __attribute__((always_inline)) double NAME(meet)(
    const REAL *image, const REAL *maps, ptrdiff_t pixels, const REAL *weights, const int count)
{
    VECTOR sums[OFFSETS], met = {0};
    REAL rest = 0;
    ptrdiff_t i = 0;
#pragma GCC unroll 12
    for (int offset = 0; offset < count; offset++)
        sums[offset] = (VECTOR){0};
    for (; i + LANES <= pixels; i += LANES) {
        const VECTOR here = *(const VECTOR *)(image + i);
#pragma GCC unroll 12
        for (int offset = 0; offset < count; offset++)
            sums[offset] += here * *(const VECTOR *)(maps + offset * pixels + i);
    }
    for (; i < pixels; i++)
        for (int offset = 0; offset < count; offset++)
            rest += weights[offset] * (image[i] * maps[offset * pixels + i]);
#pragma GCC unroll 12
    for (int offset = 0; offset < count; offset++)
        met += weights[offset] * sums[offset];
    return (double)NAME(sum)(met) + (double)rest;
}

/* <left x right, gradient> of one sample. */
static TARGET void NAME(looked)(const void *task, ptrdiff_t sample, void *scratch)
{
    const struct shifted *const of = (const struct shifted *)task;
    const ptrdiff_t area = of->kernel_rows * of->kernel_columns, pixels = of->height * of->width;
    const REAL *image = (const REAL *)of->inputs + sample * of->input_step, *weights = (const REAL *)of->right;
    REAL *map = (REAL *)scratch, *maps = map + of->lines * of->length;
    double found = 0;
    NAME(projected)(of, (const REAL *)of->grads + sample * of->grad_step, map);
    NAME(placed_maps)(of, map, maps);
    for (ptrdiff_t channel = 0; channel < of->channels; channel++, image += of->channel_step, weights += area) {
        ptrdiff_t offset = 0;
        for (; offset + OFFSETS <= area; offset += OFFSETS)
            found += NAME(meet)(image, maps + offset * pixels, pixels, weights + offset, OFFSETS);
        for (; offset + 9 <= area; offset += 9)
            found += NAME(meet)(image, maps + offset * pixels, pixels, weights + offset, 9);
        for (; offset + 3 <= area; offset += 3)
            found += NAME(meet)(image, maps + offset * pixels, pixels, weights + offset, 3);
        for (; offset < area; offset++)
            found += NAME(meet)(image, maps + offset * pixels, pixels, weights + offset, 1);
    }
    of->probes[sample] = found;
}

#undef OFFSETS
