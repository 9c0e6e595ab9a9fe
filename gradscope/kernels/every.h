/* The kernels for one type of number and one set of instructions; included once for each.
 *
 * Of the includer: REAL (the number), INTEGER (of the same size), LANES (numbers of a vector), ROWS (rows of a tile), STREAM (a
 * store past the cache), TARGET (the instructions) and NAME(x) (how this copy's names end). The first three and the last are
 * forgotten here.
 */

#include "vectors.h"
#include "readings.h"
#include "products.h"
#include "gram.h"
#include "shifted.h"
#include "looked.h"
#include "depthwise.h"
#include "normalized.h"
#include "elementwise.h"

#undef VECTOR
#undef PLACES
#undef WIDTH
#undef REAL
#undef INTEGER
#undef LANES
#undef NAME
