// What the kernels are asked for, and how: a plain C interface, which recsys_embed/native/library.py has as well.
//
// Shapes: L lanes, B samples, W width, M occurrences, V vectors. Rows count within a lane's table; -1 is absent.
// `level` is an instruction set's: 0 the processor's baseline, 1 AVX2, 2 AVX-512.

#pragma once

#include <cstdint>

#if defined(_WIN32)
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

#define ABI 7  // library.py has the same number: it changes with anything below

constexpr int64_t FINE = -1, NO_MEMORY = -0x7FFFFFFFFFFFFFFF;

enum Numbering { AS_THEY_ARE = 0, HASHES = 1, DIGITS = 2 };

enum Rule { SGD = 0, ADAGRAD = 1, ROWWISE_ADAGRAD = 2, LAZY_ADAM = 3 };

// The bags that are asked for: rows [L, B], or jagged with offsets [L * B + 1] and perhaps factors [M].
struct Request {
    const void* weights;  // the store: rows of all its tables, one below the other
    const int64_t* starts;  // of each lane: the first row of its table in the store,
    const int64_t* sizes;  // how many rows the table has,
    const float* scales;
    const float* midpoints;  // and what its integers stand for
    int64_t lanes, batch, width;
    const void* rows;  // int64 where wide, else int32
    int64_t wide;
    int64_t count;  // M
    const int64_t* offsets;
    const float* factors;
};

// Every `number` lanes are the slots of one id, `apart` from each other: 1 where they lie side by side, or else as many
// as there are vectors, V = L / number. Their rows become one vector, by products or sums. Alone, a slot is the vector.
struct Slots {
    int64_t number, apart, products;
};

// Ids of several lanes, of which a read makes their row numbers: those of each feature in a row of its own, as many
// lanes in turn as there are slots; or of bags, all ids for each slot in turn, with a lane for each feature.
struct Source {
    const void* ids;  // [features, B], or of bags [count]; int64 where wide, else int32
    int64_t wide, count;
    int64_t step;  // from the ids of one feature to those of the next
    int64_t numbering;
    const int64_t* constants;  // [2, features, slots]: see Address
    int64_t features, slots;
};

// Ids of which row numbers are made by two constants: of a hash its seed and the number of rows, of a digit its divisor
// and its base. Three axes, the last of them long; `strides` count elements, and are 0 where an axis is repeated.
struct Address {
    const void* ids;  // int64 where wide, else int32
    int64_t wide, digits;  // digits: else hashes
    const int64_t* constants[2];
    int64_t* rows;  // contiguous
    int64_t sizes[3], strides[3], constant_strides[2][3];
};

// Vectors made of the rows of several slots [N, S, W]; or the gradients of rows that are multiplied, by those of the
// vectors [N, W].
struct Combination {
    const float* slots;
    const float* gradient;  // none: vectors are asked for
    float* out;
    int64_t products;  // else sums
    int64_t count, width, number;  // N, W, S
};

// Products of all pairs of a sample's vectors: of one before the others, perhaps, which is given out as well.
struct Pairs {
    const float* first;  // [B, D], or none
    const float* others;  // [B, count, D]
    float* out;  // [B, step]: D floats of the first vector, the products, and zeros
    int64_t batch, count, width, step;
};

struct PairsGradient {
    const float* gradient;  // [B, step]
    float* of_first;  // [B, D], or none
    float* of_others;  // [B, count, D]
};

PUBLIC int64_t recsys_embed_abi();

// The best instruction set that this processor has code for: 0 its baseline, 1 AVX2, 2 AVX-512.
PUBLIC int64_t recsys_embed_level();

// A read and an update return -1; or the first occurrence whose row the table does not have, -2 - bag where offsets do
// not rise from 0 to M there, or NO_MEMORY. No row is read or changed then, save where memory ends meanwhile.

// Vectors go to `out`, float or bf16, `step` numbers apart from sample to sample, and the rows of products to `kept`.
// With `count` sources, whose lanes together are the request's, the int32 row numbers are made first.
PUBLIC int64_t recsys_embed_read(
    int64_t level, int64_t threads, int64_t type, const Request* asked, const Slots* slots, const Source* sources,
    int64_t count, void* out, int64_t step, int64_t bf16, float* kept, int64_t stream);

PUBLIC int64_t recsys_embed_update(
    int64_t level, int64_t threads, int64_t type, const Request* asked, const Slots* slots, const float* kept,
    void* weights, float* state, const float* gradient, int64_t rule, float rate, float eps, float first_news,
    float second_news, int64_t step, const int64_t* seeds, const int64_t* order, const int64_t* bounds,
    int64_t tables);

// The first place of `ids` whose id is not one of [0, its feature's size), or -1: of a matrix [features, batch], where
// those of a feature lie `step` from those of the one before, or of bags with offsets [features * batch + 1].
PUBLIC int64_t recsys_embed_first_outside(
    int64_t level, int64_t threads, const void* ids, int64_t wide, int64_t features, int64_t batch, int64_t step,
    const int64_t* offsets, const int64_t* sizes);

// The rows of all ids. Constants are positive but for seeds, and rows and bases below 2^31.
PUBLIC void recsys_embed_address(int64_t level, int64_t threads, const Address* asked);

PUBLIC void recsys_embed_combine(int64_t level, int64_t threads, const Combination* asked);

// Whether there was memory. Without `by` the products are asked for, else the gradients of the vectors.
PUBLIC int64_t recsys_embed_pairs(int64_t level, int64_t threads, const Pairs* asked, const PairsGradient* by);
