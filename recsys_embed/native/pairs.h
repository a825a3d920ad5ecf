// Products of all pairs of a sample's vectors, and their gradients, written once and compiled for each instruction set.
//
// kernels.cpp includes this file after rows.h, in the same namespaces; it includes nothing itself.
//
// Shapes: V vectors of width D a sample, P = V(V - 1)/2 pairs. Row v of the lower triangle begins at v(v - 1)/2.

// Rows of a matrix that are computed together, so that one sum need not wait for the other.
constexpr int64_t TOGETHER = 4;

INLINE int64_t rounded_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// The vector before the others, where there is one, is number 0.
INLINE const float* vector_at(const Pairs& asked, int64_t b, int64_t v) {
    if (asked.first && v == 0) return asked.first + b * asked.width;
    return asked.others + (b * asked.count + v - (asked.first != nullptr)) * asked.width;
}

// Samples [first, last): the first vector, the products, and zeros.
static void multiply_pairs(const Pairs& asked, int64_t first, int64_t last) {
    const int64_t width = asked.width, own = asked.first ? width : 0, vectors = asked.count + (own > 0);
    const int64_t across = rounded_up(vectors, 16), down = rounded_up(vectors, TOGETHER);
    const int64_t pairs = vectors * (vectors - 1) / 2;
    Scratch& memory = scratch();
    memory.sums.reserve((width + down) * across + pairs + 16);
    float* const turned = memory.sums.data;  // [D, V], filled up with zeros
    float* const gram = turned + width * across;  // [V, V], of which the lower triangle is computed
    float* const line = gram + down * across;  // its rows, one behind the other
    memset(turned, 0, size_t(width * across) * sizeof(float));
    for (int64_t b = first; b < last; b++) {
        for (int64_t v = 0; v < vectors; v++) {
            const float* from = vector_at(asked, b, v);
            for (int64_t d = 0; d < width; d++) turned[d * across + v] = from[d];
        }
        for (int64_t v = 0; v < vectors; v += TOGETHER) {
            const float* left[TOGETHER];  // beyond the last one, it again
            for (int64_t k = 0; k < TOGETHER; k++)
                left[k] = vector_at(asked, b, v + k < vectors ? v + k : vectors - 1);
            for (int64_t begin = 0; begin < v + TOGETHER - 1; begin += 16) {
                Float16 sums[TOGETHER] = {}, right;
                for (int64_t d = 0; d < width; d++) {
                    memcpy(&right, turned + d * across + begin, sizeof right);
                    for (int64_t k = 0; k < TOGETHER; k++) sums[k] += left[k][d] * right;
                }
                for (int64_t k = 0; k < TOGETHER; k++)
                    memcpy(gram + (v + k) * across + begin, &sums[k], sizeof sums[k]);
            }
        }
        float* to = line;
        for (int64_t v = 1; v < vectors; to += v++)  // what is written too far is written again by the next row
            for (int64_t begin = 0; begin < v; begin += 16) memcpy(to + begin, gram + v * across + begin, 64);
        float* const out = asked.out + b * asked.step;
        if (own) memcpy(out, vector_at(asked, b, 0), size_t(own) * sizeof(float));
        memcpy(out + own, line, size_t(pairs) * sizeof(float));
        memset(out + own + pairs, 0, size_t(asked.step - own - pairs) * sizeof(float));
    }
}

// The gradients of the vectors of samples [first, last), by those of the output.
static void multiply_back(const Pairs& asked, const PairsGradient& by, int64_t first, int64_t last) {
    const int64_t width = asked.width, own = asked.first ? width : 0, vectors = asked.count + (own > 0);
    const int64_t across = rounded_up(vectors, TOGETHER);
    Scratch& memory = scratch();
    memory.sums.reserve(vectors * across);
    float* const gram = memory.sums.data;  // [V, V], symmetric, with zeros in the diagonal and beyond
    memset(gram, 0, size_t(vectors * across) * sizeof(float));
    for (int64_t b = first; b < last; b++) {
        const float *gradient = by.gradient + b * asked.step, *row = gradient + own;
        for (int64_t v = 1; v < vectors; row += v++)
            for (int64_t w = 0; w < v; w++) gram[v * across + w] = gram[w * across + v] = row[w];
        for (int64_t v = 0; v < vectors; v += TOGETHER)
            along(width, [&](int64_t c, auto piece) {
                typename decltype(piece)::Vector sums[TOGETHER] = {}, other;
                if (own && v == 0) memcpy(&sums[0], gradient + c, sizeof other);
                for (int64_t w = 0; w < vectors; w++) {
                    memcpy(&other, vector_at(asked, b, w) + c, sizeof other);
                    for (int64_t k = 0; k < TOGETHER; k++) sums[k] += gram[w * across + v + k] * other;
                }
                for (int64_t k = 0; k < TOGETHER && v + k < vectors; k++) {
                    float* out = own && v + k == 0
                        ? by.of_first + b * width
                        : by.of_others + (b * asked.count + v + k - (own > 0)) * width;
                    memcpy(out + c, &sums[k], sizeof other);
                }
            });
    }
}
