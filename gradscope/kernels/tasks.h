/* What the kernels are told; included by kernels.c. */

enum { OUTER, PATCHES, BLOCKS };

/* Rows of a gradient that a thread works on at once, at most. */
#define BAND 128

/* Gradients h_i = sum over positions of grads[i, t] (outer) columns[i, t]. Steps are in numbers, not in bytes. Where samples are
 * chosen, there are as many as were, and all that is found is theirs. */
struct products {
    const void *grads, *inputs;
    const int64_t *chosen; /* NULL where all are */
    void *moment, *total; /* [outputs, columns]; NULL where nobody asked */
    const void *left, *right; /* directions, for the outputs and for the columns; NULL where nobody asked */
    ptrdiff_t factors; /* whether what lies along them is found in the factors (outer) and not in the tiles */
    void *sums; /* of the grads over positions, [samples, outputs]; NULL where nobody asked */
    ptrdiff_t samples, positions, outputs, columns;
    ptrdiff_t grad_step, position_step, output_step;
    ptrdiff_t input_step, row_step; /* of a sample; of a position (outer) or of a row of the image */
    ptrdiff_t channel_step, channels, height, width;
    ptrdiff_t kernel_rows, kernel_columns, row_stride, column_stride, row_dilation, column_dilation, row_padding, column_padding;
    ptrdiff_t lines, length; /* rows and columns of output positions */
    ptrdiff_t kind, band, part, chunk, panels, packed, border;
};

/* A sample counts where it is chosen; what lies along the directions, and sums, are wanted of all. */
struct gram {
    const void *first, *second;
    const void *left, *right; /* directions, for the second factor and for the first; NULL where nobody asked */
    void *sums; /* of the second factor over positions, [samples, second_size]; NULL where nobody asked */
    double *squares, *uncancelled, *probes;
    ptrdiff_t samples, positions, first_size, second_size, first_step, second_step, first_position, second_position;
};

/* Of a convolution; grid_rows and grid_columns are the pixels of one phase, of which there are row_stride * column_stride. */
struct shifted {
    const void *inputs, *grads, *left, *right;
    const int64_t *chosen; /* of which squares are wanted; NULL where of all */
    double *squares, *uncancelled, *probes;
    ptrdiff_t samples, channels, height, width, outputs, lines, length;
    ptrdiff_t input_step, channel_step, row_step, grad_step, output_step, line_step;
    ptrdiff_t kernel_rows, kernel_columns, row_stride, column_stride, row_dilation, column_dilation, row_padding, column_padding;
    ptrdiff_t grid_rows, grid_columns;
};

/* Of a convolution whose filters read one channel each; steps in numbers. */
struct depthwise {
    const void *inputs, *grads;
    void *gradients; /* [samples, outputs, kernel_rows * kernel_columns] */
    ptrdiff_t samples, channels, height, width, outputs, lines, length;
    ptrdiff_t input_step, channel_step, row_step, column_step, grad_step, output_step, line_step, position_step;
    ptrdiff_t kernel_rows, kernel_columns, row_stride, column_stride, row_dilation, column_dilation, row_padding, column_padding;
    ptrdiff_t padded, span; /* numbers of an image with its zeros, and of gradients on its grid, in whole vectors */
};

struct normalized {
    const void *rows, *grads;
    void *scale, *shift; /* [samples, size] */
    double epsilon;
    ptrdiff_t samples, positions, size, row_step, row_position, grad_step, grad_position, centred;
};

/* A matrix that is looked at along two directions; pieces [begin, end) are its own, of `height` rows each. */
struct matrix {
    ptrdiff_t rows, columns, height, begin, end;
};

struct place {
    const void *numbers, *left, *right;
    void *copy; /* NULL where nobody asked */
};

struct rows {
    const void *numbers, *direction;
    void *found, *squares; /* the latter NULL where nobody asked */
    ptrdiff_t rows, columns, step;
};

/* What is written of numbers that are read: nothing, the same again, or their squares. */
enum { NOTHING_KEPT, COPIES, SQUARES };

/* Elements of a gradient and of the sum of its samples' squares; or of two matrices whose quotients are wanted. */
struct elements {
    const void *first, *second;
    void *variance, *signal;
    double weight_square, variance_scale, signal_scale;
};
