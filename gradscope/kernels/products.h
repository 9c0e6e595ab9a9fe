/* Per-sample weight gradients of linear layers and convolutions; included by every.h.
 *
 * A tile is squared, added up and forgotten in registers. Which sums meet in which order depends on the shapes and on how many
 * threads there are, never on which of them is first.
 */

/* Patches of a few channels, in panels: column (channel, kernel row, kernel column).
 *
 * `bordered` is memory for the image with its border, and a line more: that and the border are zero from the start.
 */
static TARGET void NAME(patches)(const struct products *of, const REAL *image, REAL *out, REAL *bordered)
{
    const ptrdiff_t area = of->kernel_rows * of->kernel_columns, step = of->column_stride;
    const ptrdiff_t wide = of->width + 2 * of->column_padding, high = of->height + 2 * of->row_padding;
    for (ptrdiff_t channel = 0; channel < of->channels; channel++)
        for (ptrdiff_t row = 0; row < of->height; row++)
            memcpy(
                bordered + (channel * high + row + of->row_padding) * wide + of->column_padding,
                image + channel * of->channel_step + row * of->row_step, of->width * sizeof(REAL));
    for (ptrdiff_t first = 0; first < of->columns; first += LANES) {
        REAL *to = out + first / WIDTH * of->positions * WIDTH + first % WIDTH;
        for (ptrdiff_t y = 0; y < of->lines; y++, to += of->length * WIDTH) {
            const REAL *from[LANES];
            for (ptrdiff_t lane = 0; lane < LANES; lane++) {
                const ptrdiff_t column = first + lane, offset = column % area;
                const ptrdiff_t line = column / area * high + y * of->row_stride + offset / of->kernel_columns * of->row_dilation;
                from[lane] = bordered + of->channels * high * wide;
                if (column < of->columns)
                    from[lane] = bordered + line * wide + offset % of->kernel_columns * of->column_dilation;
            }
            ptrdiff_t x = 0;
            if (step == 1)
                for (; x + LANES <= of->length; x += LANES)
                    NAME(turn)(from, x, to + x * WIDTH, WIDTH);
            for (; x < of->length; x++)
                for (ptrdiff_t lane = 0; lane < LANES; lane++)
                    to[x * WIDTH + lane] = from[lane][x * step];
        }
    }
    /* The second half of the last panel, where the first one held all that was left. */
    for (ptrdiff_t t = 0; (of->columns - 1) % WIDTH < LANES && t < of->positions; t++)
        *(VECTOR *)(out + (of->panels - 1) * of->positions * WIDTH + t * WIDTH + LANES) = (VECTOR){0};
}

/* An image in blocks of WIDTH channels, with its border: [block][row][column][channel]. The border is zero from the start. */
static TARGET void NAME(blocked)(const struct products *of, const REAL *image, REAL *out)
{
    const ptrdiff_t wide = of->width + 2 * of->column_padding, high = of->height + 2 * of->row_padding;
    for (ptrdiff_t channel = 0; channel < of->channels; channel += WIDTH, out += high * wide * WIDTH) {
        const ptrdiff_t own = of->channels - channel < WIDTH ? of->channels - channel : WIDTH;
        for (ptrdiff_t row = 0; row < of->height; row++)
            NAME(turned)(
                image + channel * of->channel_step + row * of->row_step, of->channel_step, own, of->width,
                out + ((row + of->row_padding) * wide + of->column_padding) * WIDTH, WIDTH, WIDTH);
    }
}

/* One thread's memory for some rows and some columns of all samples' gradients. */
struct NAME(work) {
    ptrdiff_t row, rows, column, columns; /* its part of each gradient */
    ptrdiff_t panels;
    REAL *inputs, *grads; /* of a few samples, laid out for tiles */
    REAL *total, *moment; /* [band, panels * WIDTH] */
    REAL *bordered;
    REAL *weights; /* <columns[i, t], right> of one sample */
    VECTOR *squares, *probes; /* of those samples, one for each lane */
    REAL *right, left[BAND];
};

/* The right direction in the order of the panels, zero where these hold nothing. */
static TARGET void NAME(direction)(const struct products *of, const struct NAME(work) *own)
{
    const REAL *right = (const REAL *)of->right + own->column;
    const ptrdiff_t area = of->kind == BLOCKS ? of->kernel_rows * of->kernel_columns : 1;
    const ptrdiff_t each = own->panels * WIDTH / area, channels = own->columns / area;
    memset(own->right, 0, own->panels * WIDTH * sizeof(REAL));
    for (ptrdiff_t offset = 0; offset < area; offset++)
        for (ptrdiff_t channel = 0; channel < channels; channel++)
            own->right[offset * each + channel] = right[channel * area + offset];
}

/* sums[r] = sum over t of grads[t][r], and the sum over r of left[r] * sum over t of weights[t] grads[t][r] if there are weights.
 *
 * From the grads as they came, so that this shares nothing with what tiles are made of.
 */
static TARGET double NAME(along_positions)(
    const struct products *of, const struct NAME(work) *own, const REAL *back, const REAL *weights, REAL *sums)
{
    double found = 0;
    ptrdiff_t r = 0;
    if (of->output_step == 1)
        for (; r + WIDTH <= own->rows; r += WIDTH) {
            VECTOR plain[2] = {{0}}, weighted[2] = {{0}};
            for (ptrdiff_t t = 0; t < of->positions; t++)
                for (int half = 0; half < 2; half++) {
                    const VECTOR here = *(const VECTOR *)(back + t * of->position_step + r + half * LANES);
                    plain[half] += here;
                    weighted[half] += (weights ? weights[t] : 0) * here;
                }
            for (int half = 0; half < 2; half++) {
                found += NAME(sum)(*(const VECTOR *)(own->left + r + half * LANES) * weighted[half]);
                if (sums)
                    *(VECTOR *)(sums + r + half * LANES) = plain[half];
            }
        }
    for (; r < own->rows; r++) {
        REAL plain = 0, weighted = 0;
        for (ptrdiff_t t = 0; t < of->positions; t++) {
            const REAL here = back[r * of->output_step + t * of->position_step];
            plain += here;
            weighted += (weights ? weights[t] : 0) * here;
        }
        found += (double)own->left[r] * (double)weighted;
        if (sums)
            sums[r] = plain;
    }
    return found;
}

/* Lay out samples [start, start + many); what follows from the grads alone is found on the way. */
static TARGET void NAME(lay)(
    const struct products *of, struct NAME(work) *own, ptrdiff_t start, ptrdiff_t many, double *probes)
{
    for (ptrdiff_t sample = start; sample < start + many; sample++) {
        const ptrdiff_t place = of->chosen ? of->chosen[sample] : sample;
        const REAL *image = (const REAL *)of->inputs + place * of->input_step;
        const REAL *back = (const REAL *)of->grads + place * of->grad_step + own->row * of->output_step;
        REAL *input = own->inputs + (sample - start) * of->packed, *grad = own->grads + (sample - start) * of->positions * of->band;
        if (of->kind == OUTER)
            NAME(packed_rows)(image + own->column, of->row_step, of->positions, own->columns, WIDTH, input);
        else if (of->kind == PATCHES)
            NAME(patches)(of, image, input, own->bordered);
        else
            NAME(blocked)(of, image, input);
        if (of->output_step == 1)
            NAME(packed_rows)(back, of->position_step, of->positions, own->rows, ROWS, grad);
        else
            NAME(packed)(back, of->position_step, of->output_step, of->positions, own->rows, ROWS, grad);
        for (ptrdiff_t t = 0; of->factors && t < of->positions; t++)
            own->weights[t] = NAME(dot)(
                image + own->column + t * of->row_step, (const REAL *)of->right + own->column, own->columns);
        REAL *sums = of->sums && !own->column ? (REAL *)of->sums + sample * of->outputs + own->row : NULL;
        if (of->factors || sums) {
            const double along = NAME(along_positions)(of, own, back, of->factors ? own->weights : NULL, sums);
            if (of->factors)
                probes[sample] = along;
        }
    }
}

/* ROWS rows and a panel of the gradients of the samples that are laid out. */
static TARGET void NAME(panel)(
    const struct products *of, const struct NAME(work) *own, ptrdiff_t row, ptrdiff_t panel, ptrdiff_t many)
{
    VECTOR tile[ROWS][2], added[ROWS][2], squared[ROWS][2];
    const VECTOR *near = (const VECTOR *)(own->right + panel * WIDTH);
    ptrdiff_t place = panel * of->positions, step = WIDTH, jump = 0, lines = 1, length = of->positions;
    if (of->kind == BLOCKS) {
        const ptrdiff_t wide = of->width + 2 * of->column_padding, high = of->height + 2 * of->row_padding;
        const ptrdiff_t each = of->panels / (of->kernel_rows * of->kernel_columns), offset = panel / each;
        place = panel % each * high * wide + offset / of->kernel_columns * of->row_dilation * wide
            + offset % of->kernel_columns * of->column_dilation;
        step = of->column_stride * WIDTH;
        jump = of->row_stride * wide * WIDTH;
        lines = of->lines;
        length = of->length;
    }
#pragma GCC unroll 16
    for (int k = 0; k < ROWS; k++)
        added[k][0] = added[k][1] = squared[k][0] = squared[k][1] = (VECTOR){0};
    for (ptrdiff_t i = 0; i < many; i++) {
        NAME(tile)(
            own->grads + i * of->positions * of->band + row * of->positions, ROWS, own->inputs + i * of->packed + place * WIDTH,
            step, jump, lines, length, tile);
        VECTOR sum = own->squares[i];
#pragma GCC unroll 16
        for (int k = 0; k < ROWS; k++)
            sum += tile[k][0] * tile[k][0] + tile[k][1] * tile[k][1];
        own->squares[i] = sum;
        if (of->right && !of->factors) {
            VECTOR lower = {0}, upper = {0};
#pragma GCC unroll 16
            for (int k = 0; k < ROWS; k++) {
                lower += own->left[row + k] * tile[k][0];
                upper += own->left[row + k] * tile[k][1];
            }
            own->probes[i] += lower * near[0] + upper * near[1];
        }
        if (of->total)
#pragma GCC unroll 16
            for (int k = 0; k < ROWS; k++) {
                added[k][0] += tile[k][0];
                added[k][1] += tile[k][1];
            }
        if (of->moment)
#pragma GCC unroll 16
            for (int k = 0; k < ROWS; k++) {
                squared[k][0] += tile[k][0] * tile[k][0];
                squared[k][1] += tile[k][1] * tile[k][1];
            }
    }
    for (int k = 0; k < ROWS; k++)
        for (int half = 0; half < 2; half++) {
            const ptrdiff_t at = (row + k) * own->panels * WIDTH + panel * WIDTH + half * LANES;
            if (of->total)
                *(VECTOR *)(own->total + at) += added[k][half];
            if (of->moment)
                *(VECTOR *)(own->moment + at) += squared[k][half];
        }
}

/* From the order of the panels to that of the parameter; past the cache where nobody will read it soon. */
static TARGET void NAME(placed)(
    const struct products *of, const struct NAME(work) *own, const REAL *from, REAL *out, int past_the_cache)
{
    const ptrdiff_t area = of->kind == BLOCKS ? of->kernel_rows * of->kernel_columns : 1;
    const ptrdiff_t each = own->panels * WIDTH / area, channels = own->columns / area;
    for (ptrdiff_t r = 0; r < own->rows; r++, from += own->panels * WIDTH) {
        REAL *const to = out + (own->row + r) * of->columns + own->column;
        /* The inputs are not needed any more, and an image has more pixels than a kernel. */
        REAL *const line = past_the_cache ? own->inputs : to;
        if (area > 1)
            for (ptrdiff_t offset = 0; offset < area; offset++)
                for (ptrdiff_t channel = 0; channel < channels; channel++)
                    line[channel * area + offset] = from[offset * each + channel];
        if (past_the_cache)
            NAME(stored)(area > 1 ? line : from, own->columns, to);
        else if (area == 1)
            memcpy(to, from, channels * sizeof(REAL));
    }
    if (past_the_cache)
        _mm_sfence();
}

/* A piece of all samples' gradients, of->band rows by of->part columns: what it adds to squares and probes, [samples] each. */
static TARGET void NAME(piece_of_products)(
    const struct products *of, ptrdiff_t row, ptrdiff_t column, void *scratch, double *squares, double *probes)
{
    struct NAME(work) own = {.row = row, .column = column, .panels = of->panels};
    own.rows = of->outputs - row < of->band ? of->outputs - row : of->band;
    own.columns = of->columns - column < of->part ? of->columns - column : of->part;
    if (of->kind == OUTER)
        own.panels = (own.columns + WIDTH - 1) / WIDTH;
    const ptrdiff_t size = of->band * of->panels * WIDTH;
    own.squares = (VECTOR *)scratch;
    own.probes = own.squares + of->chunk;
    own.inputs = (REAL *)(own.probes + of->chunk);
    own.grads = own.inputs + of->chunk * of->packed;
    own.total = own.grads + of->chunk * of->positions * of->band;
    own.moment = own.total + size;
    own.right = own.moment + size;
    own.weights = own.right + of->panels * WIDTH;
    own.bordered = own.weights + of->positions;
    if (of->kind == BLOCKS)
        memset(own.inputs, 0, of->chunk * of->packed * sizeof(REAL));
    memset(own.bordered, 0, of->border * sizeof(REAL));
    if (of->total)
        memset(own.total, 0, size * sizeof(REAL));
    if (of->moment)
        memset(own.moment, 0, size * sizeof(REAL));
    memset(squares, 0, of->samples * sizeof(double));
    memset(probes, 0, of->samples * sizeof(double));
    if (of->left)
        memcpy(own.left, (const REAL *)of->left + row, own.rows * sizeof(REAL));
    if (of->right && !of->factors)
        NAME(direction)(of, &own);
    for (ptrdiff_t start = 0; start < of->samples; start += of->chunk) {
        const ptrdiff_t many = of->samples - start < of->chunk ? of->samples - start : of->chunk;
        NAME(lay)(of, &own, start, many, probes);
        for (ptrdiff_t r = 0; r < own.rows; r += ROWS) {
            memset(own.squares, 0, 2 * of->chunk * sizeof(VECTOR));
            for (ptrdiff_t panel = 0; panel < own.panels; panel++)
                NAME(panel)(of, &own, r, panel, many);
            for (ptrdiff_t i = 0; i < many; i++) {
                squares[start + i] += NAME(sum)(own.squares[i]);
                if (of->right && !of->factors)
                    probes[start + i] += NAME(sum)(own.probes[i]);
            }
        }
    }
    if (of->total)
        NAME(placed)(of, &own, own.total, (REAL *)of->total, 0);
    if (of->moment)
        NAME(placed)(of, &own, own.moment, (REAL *)of->moment, 1);
}
