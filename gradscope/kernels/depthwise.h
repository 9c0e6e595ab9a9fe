/* Gradients of filters that read one channel each, of every sample; included by every.h. */

/* Offsets of the kernel whose sums are in registers together. */
#define AT_ONCE 8

/* One sample. A channel's image is laid out with its zeros around it, and gradients on the same grid, with zeros where the kernel
 * does not stop: each offset's sum is then one product of two lines of numbers. */
static TARGET void NAME(depthwise)(const void *task, ptrdiff_t sample, void *scratch)
{
    const struct depthwise *const of = (const struct depthwise *)task;
    const ptrdiff_t pitch = of->width + 2 * of->column_padding, area = of->kernel_rows * of->kernel_columns;
    const ptrdiff_t filters = of->outputs / of->channels;
    REAL *const image = (REAL *)scratch, *const grid = image + of->padded;
    /* Where each offset of the kernel begins to read; the numbers behind the grads are lent for it. */
    ptrdiff_t *const offsets = (ptrdiff_t *)(grid + of->span);
    for (ptrdiff_t offset = 0; offset < area; offset++)
        offsets[offset] = offset / of->kernel_columns * of->row_dilation * pitch + offset % of->kernel_columns * of->column_dilation;
    /* What lies between is written by nobody. */
    memset(image, 0, (size_t)(of->padded + of->span) * sizeof(REAL));
    for (ptrdiff_t channel = 0; channel < of->channels; channel++) {
        const REAL *const pixels = (const REAL *)of->inputs + sample * of->input_step + channel * of->channel_step;
        for (ptrdiff_t row = 0; row < of->height; row++) {
            REAL *const to = image + (row + of->row_padding) * pitch + of->column_padding;
            const REAL *const from = pixels + row * of->row_step;
            if (of->column_step == 1)
                memcpy(to, from, of->width * sizeof(REAL));
            else
                for (ptrdiff_t column = 0; column < of->width; column++)
                    to[column] = from[column * of->column_step];
        }
        for (ptrdiff_t filter = 0; filter < filters; filter++) {
            const ptrdiff_t output = channel * filters + filter;
            const REAL *const grads = (const REAL *)of->grads + sample * of->grad_step + output * of->output_step;
            REAL *const found = (REAL *)of->gradients + (sample * of->outputs + output) * area;
            for (ptrdiff_t line = 0; line < of->lines; line++) {
                REAL *const to = grid + line * of->row_stride * pitch;
                const REAL *const from = grads + line * of->line_step;
                if (of->column_stride == 1 && of->position_step == 1)
                    memcpy(to, from, of->length * sizeof(REAL));
                else
                    for (ptrdiff_t position = 0; position < of->length; position++)
                        to[position * of->column_stride] = from[position * of->position_step];
            }
            for (ptrdiff_t first = 0; first < area; first += AT_ONCE) {
                const REAL *at[AT_ONCE];
                VECTOR sums[AT_ONCE] = {{0}};
                /* An offset that is not there is the first one again. */
#pragma GCC unroll 8
                for (ptrdiff_t i = 0; i < AT_ONCE; i++)
                    at[i] = image + offsets[first + i < area ? first + i : first];
                for (ptrdiff_t place = 0; place < of->span; place += LANES) {
                    const VECTOR back = *(const VECTOR *)(grid + place);
#pragma GCC unroll 8
                    for (int i = 0; i < AT_ONCE; i++)
                        sums[i] += back * *(const VECTOR *)(at[i] + place);
                }
                /* By constant numbers alone, so that they are in registers. */
#pragma GCC unroll 8
                for (ptrdiff_t i = 0; i < AT_ONCE; i++)
                    if (first + i < area)
                        found[first + i] = (REAL)NAME(sum)(sums[i]);
            }
        }
    }
}

#undef AT_ONCE
