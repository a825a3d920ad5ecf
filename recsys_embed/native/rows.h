// Reading and updating rows, written once and compiled for each instruction set in a namespace of its own.
//
// kernels.cpp includes this file several times; it includes nothing itself. Floating-point contraction is off and sums
// have a fixed order, so that every instruction set, and any number of threads, gives the same bits.
//
// Shapes: L lanes, B samples, W width, M occurrences, V vectors. Rows count within a lane's table; -1 is absent.

// --- stored types --------------------------------------------------------------------------------------------

struct Fp32 {
    using Stored = float;
    static constexpr bool rounds = false;
    static float load(Stored value, float, float) { return value; }
    static Stored add(Stored value, float change, float, float) { return value + change; }
};

// What stored + change becomes, as a multiple of the spacing of half floats around it: see tables/rounding.py.
template <int BITS, int LEAST>
static inline float add_half(float value, float change, float noise, float largest) {
    float sum = value + change;
    sum = sum > largest ? largest : sum < -largest ? -largest : sum;
    int exponent = int(bits_of(sum) >> 23 & 255) - 127;
    if (exponent < LEAST) exponent = LEAST;
    float unit = float_of(uint32_t(exponent + 127) << 23) * float_of(uint32_t(127 - BITS) << 23);
    float steps = sum / unit, whole = __builtin_floorf(steps);
    sum = (whole + (steps - whole > noise ? 1.0f : 0.0f)) * unit;
    return sum > largest ? largest : sum < -largest ? -largest : sum;
}

struct Bf16 {
    using Stored = uint16_t;
    static constexpr bool rounds = true;
    static float load(Stored value, float, float) { return float_of(uint32_t(value) << 16); }
    static Stored add(Stored value, float change, float noise, float) {
        return Stored(bits_of(add_half<7, -126>(load(value, 0, 0), change, noise, float_of(0x7F7F0000u))) >> 16);
    }
};

struct Fp16 {
    using Stored = uint16_t;
    static constexpr bool rounds = true;
    static float load(Stored value, float, float) {
        uint32_t magnitude = uint32_t(value & 0x7FFF) << 13;
        float scaled = float_of(magnitude) * float_of(0x77800000u);  // 2^112, which makes up for the exponents' biases
        uint32_t bits = magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : bits_of(scaled);
        return float_of(bits | uint32_t(value & 0x8000) << 16);
    }
    // The sum is one of the half floats already: no bit is lost here.
    static Stored add(Stored value, float change, float noise, float) {
        float sum = add_half<10, -14>(load(value, 0, 0), change, noise, 65504.0f);
        uint32_t magnitude = bits_of(sum) & 0x7FFFFFFFu;
        float scaled = float_of(magnitude) * float_of(0x07800000u);  // 2^-112
        uint32_t half = magnitude > 0x7F800000u ? 0x7E00u : bits_of(scaled) >> 13;
        return Stored(half | (bits_of(sum) >> 16 & 0x8000u));
    }
};

template <class INTEGER, int LOW, int HIGH>
struct Grid {
    using Stored = INTEGER;
    static constexpr bool rounds = true;
    static float load(Stored value, float scale, float midpoint) { return float(value) * scale + midpoint; }
    static Stored add(Stored value, float change, float noise, float scale) {
        float steps = change / scale, whole = __builtin_floorf(steps);
        float sum = whole + (steps - whole > noise ? 1.0f : 0.0f) + float(value);
        sum = sum > HIGH ? HIGH : sum > LOW ? sum : float(LOW);  // what is not a number becomes LOW
        return Stored(sum);
    }
};

// --- what is asked for ---------------------------------------------------------------------------------------

INLINE int64_t lane_of(const Slots& slots, int64_t vector, int64_t slot) {
    return (slots.apart == 1 ? vector * slots.number : vector) + slot * slots.apart;
}

static inline int64_t row_at(const Request& asked, int64_t place) {
    return asked.wide ? static_cast<const int64_t*>(asked.rows)[place] : static_cast<const int32_t*>(asked.rows)[place];
}

// The first place of [begin, end) whose number is not one of [low, size), or -1.
template <class INDEX, class UNSIGNED>
INLINE int64_t first_outside(const INDEX* numbers, int64_t begin, int64_t end, int64_t low, int64_t size) {
    UNSIGNED most = 0;  // what is below `low` is above all others
    for (int64_t i = begin; i < end; i++) {
        const UNSIGNED above = UNSIGNED(numbers[i]) - UNSIGNED(low);
        most = above > most ? above : most;
    }
    constexpr uint64_t half = uint64_t(1) << (8 * sizeof(INDEX) - 1);
    const uint64_t limit = uint64_t(size) < half ? uint64_t(size - low) : half - uint64_t(low);
    if (begin < end && uint64_t(most) >= limit)
        for (int64_t i = begin; i < end; i++)
            if (int64_t(numbers[i]) < low || int64_t(numbers[i]) >= size) return i;
    return -1;
}

static int64_t outside(const void* numbers, bool wide, int64_t begin, int64_t end, int64_t low, int64_t size) {
    if (wide) return first_outside<int64_t, uint64_t>(static_cast<const int64_t*>(numbers), begin, end, low, size);
    return first_outside<int32_t, uint32_t>(static_cast<const int32_t*>(numbers), begin, end, low, size);
}

// The first occurrence of a lane whose row its table does not have, or -1; offsets that do not rise are -2 - their bag.
// Of rows that are made of ids, made later.
static int64_t check_lane(const Request& asked, int64_t lane, const LaneIds* ids) {
    int64_t begin = lane * asked.batch, end = begin + asked.batch;
    if (asked.offsets) {
        const int64_t* offsets = asked.offsets;
        for (int64_t bag = begin; bag < end; bag++)
            if (offsets[bag] < 0 || offsets[bag] > offsets[bag + 1] || offsets[bag + 1] > asked.count) return -2 - bag;
        begin = offsets[begin];
        end = offsets[end];
    }
    const int64_t size = asked.sizes[lane];
    if (ids && begin < end && (begin < ids->origin || end > ids->origin + ids->count)) return begin;
    if (ids && ids->numbering != AS_THEY_ARE) {
        const bool fine = ids->second >= 1 && ids->second <= size && (ids->numbering == HASHES || ids->first >= 1);
        return fine || begin == end ? -1 : begin;
    }
    if (!ids) return outside(asked.rows, asked.wide, begin, end, -1, size);
    const int64_t found = outside(ids->ids, ids->wide, begin - ids->origin, end - ids->origin, -1, size);
    return found < 0 ? -1 : found + ids->origin;
}

// Fetch `width` values that lie `at` values from the base: anywhere, for nothing is read.
template <int WRITE, class T>
INLINE void fetch(const T* base, int64_t at, int64_t width) {
    const int64_t bytes = width * int64_t(sizeof(T));
    const auto* line = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(base) + uintptr_t(at) * sizeof(T));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at, WRITE);
    if (bytes % 64) __builtin_prefetch(line + bytes - 1, WRITE);
}

template <class V>
struct Piece {
    using Vector = V;
};

// Calls `each` for places along a row, with the type of the vector that begins there.
template <class EACH>
INLINE void along(int64_t width, const EACH& each) {
    int64_t c = 0;
    for (; c + 16 <= width; c += 16) each(c, Piece<Float16>{});
    for (; c + 4 <= width; c += 4) each(c, Piece<Float4>{});
    for (int64_t rest = width % 4; rest > 0; rest--) each(c++, Piece<float>{});
}

// Loops over a row are functions of their own: `restrict` lets the compiler keep a row in registers.

template <class S>
INLINE void copy_row(
    float* __restrict to, const typename S::Stored* __restrict from, int64_t width, float scale, float midpoint) {
    if constexpr (!S::rounds) {
        memcpy(to, from, size_t(width) * sizeof(float));
        return;
    }
    INDEPENDENT
    for (int64_t c = 0; c < width; c++) to[c] = S::load(from[c], scale, midpoint);
}

template <class S>
INLINE void add_row(
    float* __restrict to, const typename S::Stored* __restrict from, int64_t width, float scale, float midpoint,
    float factor) {
    if constexpr (!S::rounds) {
        along(width, [&](int64_t c, auto piece) {
            typename decltype(piece)::Vector sum, added;
            memcpy(&sum, to + c, sizeof sum);
            memcpy(&added, from + c, sizeof added);
            sum += factor * added;
            memcpy(to + c, &sum, sizeof sum);
        });
        return;
    }
    INDEPENDENT
    for (int64_t c = 0; c < width; c++) to[c] += factor * S::load(from[c], scale, midpoint);
}

// --- memory --------------------------------------------------------------------------------------------------

template <class T>
struct Buffer {
    T* data = nullptr;
    int64_t room = 0;

    void reserve(int64_t size) {
        if (size <= room) return;
        int64_t more = size > 2 * room ? size : 2 * room;
        void* grown = realloc(data, size_t(more) * sizeof(T));
        if (!grown) throw OutOfMemory();
        data = static_cast<T*>(grown);
        room = more;
    }
    ~Buffer() { free(data); }
};

// Finds the distinct rows of a table, in the order of their first occurrence. Open addressing: a cell holds a row and
// its place among them. Of a table of few rows every row has a cell of its own.
//
// Whether a row is new is anybody's guess, and a wrong guess of the processor's costs more than all the rest: nothing
// branches on it, only on whether another row holds the cell, which is rare.
struct Finder {
    uint64_t* __restrict cells;
    uint32_t* __restrict rows;
    int64_t count, mask, shift;
    bool direct;

    INLINE_MEMBER int32_t place_of(uint32_t row) {
        int64_t cell = direct ? int64_t(row) : int64_t(uint64_t(row) * SCATTER >> shift);
        uint64_t held = cells[cell];
        uint64_t taken = uint64_t(held != EMPTY) & uint64_t(uint32_t(held >> 32) != row);
        OPAQUE(taken);
        if (__builtin_expect(taken != 0, 0)) do {
                cell = (cell + 1) & mask;
                held = cells[cell];
            } while (held != EMPTY && uint32_t(held >> 32) != row);
        uint64_t fresh = held == EMPTY;
        OPAQUE(fresh);
        const uint64_t place = (uint64_t(count) & (0 - fresh)) | (held & 0xFFFFFFFFu & (fresh - 1));
        cells[cell] = uint64_t(row) << 32 | place;
        rows[count] = row;
        count += int64_t(fresh);
        return int32_t(place);
    }
};

// Its memory.
struct Distinct {
    Buffer<uint64_t> cells;
    Buffer<uint32_t> rows;

    // For so many occurrences of rows below `size`, at most.
    Finder finder(int64_t occurrences, int64_t size) {
        int64_t bits = 6;
        while (int64_t(1) << bits < 4 * occurrences) bits++;
        const bool direct = size <= int64_t(1) << bits;
        const int64_t room = direct ? size : int64_t(1) << bits;
        cells.reserve(room);
        memset(cells.data, 0xFF, size_t(room) * sizeof(uint64_t));
        rows.reserve(occurrences + 1);
        return {cells.data, rows.data, 0, room - 1, 64 - bits, direct};
    }
};

// Rows with their places in about rising order, by one counting sort of their leading bits: neighbouring rows are
// updated about twice as fast as scattered ones.
struct Rising {
    Buffer<uint64_t> pairs;

    void sort(const uint32_t* rows, int64_t count, int64_t size) {
        int shift = 0;
        while ((size - 1) >> shift >= BUCKETS) shift++;
        int64_t ends[BUCKETS] = {};
        for (int64_t p = 0; p < count; p++) ends[rows[p] >> shift]++;
        for (int64_t bucket = 0, begin = 0; bucket < BUCKETS; bucket++) {
            const int64_t inside = ends[bucket];
            ends[bucket] = begin;
            begin += inside;
        }
        pairs.reserve(count);
        for (int64_t p = 0; p < count; p++) {
            const uint32_t row = rows[p];
            pairs.data[ends[row >> shift]++] = uint64_t(row) << 32 | uint64_t(p);
        }
    }

    uint32_t row(int64_t at) const { return uint32_t(pairs.data[at] >> 32); }
    uint32_t place(int64_t at) const { return uint32_t(pairs.data[at]); }
};

// A thread keeps its memory: no pages are asked for anew in every step.
struct Scratch {
    Distinct distinct;
    Rising rising;
    Buffer<int64_t> block;
    Buffer<int32_t> places;
    Buffer<float> sums;
    Buffer<float> noise;
};

static Scratch& scratch() {
    static thread_local Scratch own;
    return own;
}

// --- reading -------------------------------------------------------------------------------------------------

// Samples [first, last) of one lane, a row each.
template <class S, int WIDTH>
static void read_rows(const Request& asked, const Reading& to, int64_t lane, int64_t first, int64_t last) {
    const int64_t width = WIDTH ? WIDTH : asked.width;
    const auto* table = static_cast<const typename S::Stored*>(asked.weights) + asked.starts[lane] * width;
    const float scale = asked.scales[lane], midpoint = asked.midpoints[lane];
    const int64_t begin = lane * asked.batch;
    float* out = static_cast<float*>(to.out) + first * to.step + lane * width;
    for (int64_t b = first; b < last; b++, out += to.step) {
        if (b + AHEAD < last) fetch<0>(table, row_at(asked, begin + b + AHEAD) * width, width);
        int64_t row = row_at(asked, begin + b);
        if (row < 0) {
            for (int64_t c = 0; c < width; c++) out[c] = 0;
            continue;
        }
        const auto* stored = table + row * width;
        if (!S::rounds && to.stream) {
            for (int64_t c = 0; c < width; c += 16) STREAM_64(out + c, reinterpret_cast<const float*>(stored) + c);
        } else {
            copy_row<S>(out, stored, width, scale, midpoint);
        }
    }
}

// Bags of samples [first, last) of one lane: the sums of their rows, perhaps weighted.
template <class S, int WIDTH>
static void read_bags(const Request& asked, const Reading& to, int64_t lane, int64_t first, int64_t last) {
    const int64_t width = WIDTH ? WIDTH : asked.width;
    const auto* table = static_cast<const typename S::Stored*>(asked.weights) + asked.starts[lane] * width;
    const float scale = asked.scales[lane], midpoint = asked.midpoints[lane];
    const int64_t* offsets = asked.offsets + lane * asked.batch;
    const int64_t end = offsets[last];
    float* out = static_cast<float*>(to.out) + first * to.step + lane * width;
    for (int64_t b = first; b < last; b++, out += to.step) {
        for (int64_t c = 0; c < width; c++) out[c] = 0;
        for (int64_t i = offsets[b]; i < offsets[b + 1]; i++) {
            if (i + AHEAD < end) fetch<0>(table, row_at(asked, i + AHEAD) * width, width);
            int64_t row = row_at(asked, i);
            if (row < 0) continue;
            add_row<S>(out, table + row * width, width, scale, midpoint, asked.factors ? asked.factors[i] : 1.0f);
        }
    }
}

// A row to the row of a vector, times it or added to it.
template <bool PRODUCTS>
INLINE void combine_row(float* __restrict vector, const float* __restrict row, int64_t width) {
    along(width, [&](int64_t c, auto piece) {
        typename decltype(piece)::Vector whole, other;
        memcpy(&whole, vector + c, sizeof whole);
        memcpy(&other, row + c, sizeof other);
        if constexpr (PRODUCTS) whole *= other;
        else whole += other;
        memcpy(vector + c, &whole, sizeof whole);
    });
}

INLINE void write_row(float* __restrict to, const float* __restrict row, int64_t width, bool stream) {
    if (stream)
        for (int64_t c = 0; c < width; c += 16) STREAM_64(to + c, row + c);
    else
        memcpy(to, row, size_t(width) * sizeof(float));
}

// To the nearest bf16, of two the even one.
INLINE void round_row(uint16_t* __restrict to, const float* __restrict row, int64_t width) {
    INDEPENDENT
    for (int64_t c = 0; c < width; c++) {
        const uint32_t bits = bits_of(row[c]);
        const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
        to[c] = uint16_t((bits & 0x7FFFFFFFu) > 0x7F800000u ? bits >> 16 | 0x40u : rounded);
    }
}

// Vectors of samples [first, last), each made of the rows, or bags, of its slots. Slots alone are read by it as bf16.
template <class S, int WIDTH>
static void read_slots(const Request& asked, const Reading& to, int64_t vector, int64_t first, int64_t last) {
    const int64_t width = WIDTH ? WIDTH : asked.width, number = to.slots.number;
    const int64_t* offsets = asked.offsets;
    Scratch& own = scratch();
    own.sums.reserve(2 * width);
    float *const whole = own.sums.data, *const held = whole + width;
    for (int64_t b = first; b < last; b++) {
        for (int64_t slot = 0; slot < number; slot++) {
            const int64_t lane = lane_of(to.slots, vector, slot), begin = lane * asked.batch;
            const auto* table = static_cast<const typename S::Stored*>(asked.weights) + asked.starts[lane] * width;
            const float scale = asked.scales[lane], midpoint = asked.midpoints[lane];
            const float* row = held;
            if (offsets) {
                const int64_t end = offsets[begin + last];
                memset(held, 0, size_t(width) * sizeof(float));
                for (int64_t i = offsets[begin + b]; i < offsets[begin + b + 1]; i++) {
                    if (i + AHEAD < end) fetch<0>(table, row_at(asked, i + AHEAD) * width, width);
                    if (row_at(asked, i) < 0) continue;
                    const auto* stored = table + row_at(asked, i) * width;
                    add_row<S>(held, stored, width, scale, midpoint, asked.factors ? asked.factors[i] : 1.0f);
                }
            } else {
                if (b + AHEAD < last) fetch<0>(table, row_at(asked, begin + b + AHEAD) * width, width);
                const int64_t at = row_at(asked, begin + b);
                if (at < 0)
                    memset(held, 0, size_t(width) * sizeof(float));
                else if constexpr (S::rounds)
                    copy_row<S>(held, table + at * width, width, scale, midpoint);
                else
                    row = table + at * width;
            }
            if (to.kept) write_row(to.kept + (b * asked.lanes + lane) * width, row, width, to.stream);
            if (slot == 0)
                memcpy(whole, row, size_t(width) * sizeof(float));
            else if (to.slots.products)
                combine_row<true>(whole, row, width);
            else
                combine_row<false>(whole, row, width);
        }
        if (to.bf16)
            round_row(static_cast<uint16_t*>(to.out) + b * to.step + vector * width, whole, width);
        else
            write_row(static_cast<float*>(to.out) + b * to.step + vector * width, whole, width, to.stream);
    }
}

// --- updating ------------------------------------------------------------------------------------------------

// Sixteen sums side by side, then a tree: the same order on every instruction set.
INLINE float squares(const float* values, int64_t width) {
    Float16 sums = {};
    int64_t c = 0;
    for (; c + 16 <= width; c += 16) {
        Float16 line;
        memcpy(&line, values + c, sizeof line);
        sums += line * line;
    }
    if (c < width) {
        Float16 line = {};
        memcpy(&line, values + c, size_t(width - c) * sizeof(float));
        sums += line * line;
    }
    Float8 eight[2];
    memcpy(eight, &sums, sizeof eight);
    eight[0] += eight[1];
    Float4 four[2];
    memcpy(four, eight, sizeof four);
    four[0] += four[1];
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

static inline void draw_noise(float* noise, uint64_t key, int64_t width) {
    for (int64_t pair = 0; 2 * pair < width; pair++) {
        uint64_t bits = mix(key + uint64_t(pair));
        noise[2 * pair] = (float(int32_t(bits & NOISE_MASK)) + 0.5f) * NOISE_UNIT;
        noise[2 * pair + 1] = (float(int32_t(bits >> 32 & NOISE_MASK)) + 0.5f) * NOISE_UNIT;
    }
}

template <class S>
static inline void apply_adagrad(
    const Updating& by, typename S::Stored* __restrict weights, float* __restrict state, const float* __restrict gradient,
    const float* __restrict noise, int64_t width, float scale) {
    INDEPENDENT
    for (int64_t c = 0; c < width; c++) {
        float sum = state[c] + gradient[c] * gradient[c];
        state[c] = sum;
        float change = gradient[c] / (__builtin_sqrtf(sum) + by.eps) * by.rate;
        weights[c] = S::add(weights[c], change, S::rounds ? noise[c] : 0, scale);
    }
}

// Adam whose moments decay only in steps that read the row: the first moments, and the second ones after them.
template <class S>
static inline void apply_adam(
    const Updating& by, typename S::Stored* __restrict weights, float* __restrict first, float* __restrict second,
    const float* __restrict gradient, const float* __restrict noise, int64_t width, float scale) {
    INDEPENDENT
    for (int64_t c = 0; c < width; c++) {
        float mean = first[c] + (gradient[c] - first[c]) * by.news[0];
        float square = second[c] + (gradient[c] * gradient[c] - second[c]) * by.news[1];
        first[c] = mean;
        second[c] = square;
        float change = mean / (__builtin_sqrtf(square) + by.eps) * by.rate;
        weights[c] = S::add(weights[c], change, S::rounds ? noise[c] : 0, scale);
    }
}

template <class S>
INLINE void apply(
    const Updating& by, typename S::Stored* __restrict weights, float* __restrict state, const float* __restrict gradient,
    const float* __restrict noise, int64_t width, float scale) {
    float divisor = 1;
    if (by.rule == ROWWISE_ADAGRAD) {
        float sum = *state + squares(gradient, width) / float(width);
        *state = sum;
        divisor = __builtin_sqrtf(sum) + by.eps;
    }
    if constexpr (!S::rounds) {
        along(width, [&](int64_t c, auto piece) {
            typename decltype(piece)::Vector sum, change;
            memcpy(&sum, weights + c, sizeof sum);
            memcpy(&change, gradient + c, sizeof change);
            sum += change / divisor * by.rate;
            memcpy(weights + c, &sum, sizeof sum);
        });
        return;
    }
    INDEPENDENT
    for (int64_t c = 0; c < width; c++)
        weights[c] = S::add(weights[c], gradient[c] / divisor * by.rate, S::rounds ? noise[c] : 0, scale);
}

// Calls `each` with the row, the sample, the lane and the factor of occurrences of a table's rows: those in places
// [first, last), which are samples where each bag holds one row, and else bags, lane by lane.
template <class EACH>
INLINE void visit(
    const Request& asked, const Updating& by, int64_t table, int64_t first, int64_t last, const EACH& each) {
    const int64_t* lanes = by.order + by.bounds[table];
    const int64_t count = by.bounds[table + 1] - by.bounds[table];
    if (!asked.offsets && count == 1) {
        const int64_t lane = lanes[0];
        for (int64_t b = first; b < last; b++) each(row_at(asked, lane * asked.batch + b), b, lane, 1.0f);
        return;
    }
    if (!asked.offsets) {
        // Rows of lanes lie so far apart that they drive each other out of a cache: each is read for several samples.
        Buffer<int64_t>& block = scratch().block;
        block.reserve(BLOCK * count);
        for (int64_t begin = first; begin < last; begin += BLOCK) {
            const int64_t samples = last - begin < BLOCK ? last - begin : BLOCK;
            for (int64_t l = 0; l < count; l++)
                for (int64_t s = 0; s < samples; s++)
                    block.data[s * count + l] = row_at(asked, lanes[l] * asked.batch + begin + s);
            for (int64_t s = 0; s < samples; s++)
                for (int64_t l = 0; l < count; l++) each(block.data[s * count + l], begin + s, lanes[l], 1.0f);
        }
        return;
    }
    for (int64_t l = 0; l < count; l++, first -= asked.batch, last -= asked.batch) {
        const int64_t* offsets = asked.offsets + lanes[l] * asked.batch;
        for (int64_t b = first > 0 ? first : 0; b < last && b < asked.batch; b++)
            for (int64_t i = offsets[b]; i < offsets[b + 1]; i++)
                each(row_at(asked, i), b, lanes[l], asked.factors ? asked.factors[i] : 1.0f);
    }
}

// How many places there are.
INLINE int64_t places_of(const Request& asked, const Updating& by, int64_t table) {
    return asked.offsets ? asked.batch * (by.bounds[table + 1] - by.bounds[table]) : asked.batch;
}

INLINE int64_t part_of(int64_t row, int64_t parts) {
    return int64_t(uint64_t(uint32_t(uint64_t(row) * GOLDEN)) * uint64_t(parts) >> 32);
}

// How many occurrences in places [first, last) fall into each part of a table, added to `counts`.
static void count_parts(
    const Request& asked, const Updating& by, int64_t table, int64_t first, int64_t last, int64_t parts,
    int64_t* counts) {
    visit(asked, by, table, first, last, [&](int64_t row, int64_t, int64_t, float) {
        if (row >= 0) counts[part_of(row, parts)]++;
    });
}

// These occurrences, each where the last one of its part ended; `ends` move on.
static void deal_parts(
    const Request& asked, const Updating& by, int64_t table, int64_t first, int64_t last, int64_t parts, int64_t* ends,
    Occurrence* dealt) {
    visit(asked, by, table, first, last, [&](int64_t row, int64_t b, int64_t lane, float factor) {
        if (row >= 0) dealt[ends[part_of(row, parts)]++] = {uint32_t(row), uint32_t(b * asked.lanes + lane), factor};
    });
}

// The gradients of bags that are vectors.
struct OfVectors {
    const Request& asked;
    const Updating& by;
    int64_t width;

    INLINE_MEMBER int64_t of(int64_t bag) const { return bag; }
    INLINE_MEMBER int64_t of(int64_t b, int64_t lane) const { return b * asked.lanes + lane; }
    INLINE_MEMBER void fetch_later(int64_t bag) const { fetch<0>(by.gradient, bag * width, width); }

    INLINE_MEMBER void add(float* sums, int64_t bag, float factor) const {
        add_row<Fp32>(sums, by.gradient + bag * width, width, 1, 0, factor);
    }
};

// The gradients of bags that are slots of vectors: of sums those of the vectors, of products times the other slots.
struct OfSlots {
    const Request& asked;
    const Updating& by;
    int64_t width;

    struct Bag {
        int64_t vector, first, slot;  // first: the bag of the vector's first slot
    };

    INLINE_MEMBER Bag of(int64_t bag) const {
        const int64_t b = bag <= UINT32_MAX ? int64_t(uint32_t(bag) / uint32_t(asked.lanes)) : bag / asked.lanes;
        return of(b, bag - b * asked.lanes);
    }

    INLINE_MEMBER Bag of(int64_t b, int64_t lane) const {
        const int64_t slot = by.slot_of[lane], first = lane - slot * by.slots.apart;
        return {b * by.vectors + by.vector_of[lane], b * asked.lanes + first, slot};
    }

    INLINE_MEMBER void fetch_later(const Bag& bag) const {
        fetch<0>(by.gradient, bag.vector * width, width);
        for (int64_t s = 0; by.kept && s < by.slots.number; s++)
            if (s != bag.slot) fetch<0>(by.kept, (bag.first + s * by.slots.apart) * width, width);
    }

    INLINE_MEMBER void add(float* __restrict sums, const Bag& bag, float factor) const {
        const float* gradient = by.gradient + bag.vector * width;
        const float* kept = by.kept ? by.kept + bag.first * width : nullptr;
        along(width, [&](int64_t c, auto piece) {
            typename decltype(piece)::Vector sum, change, other;
            memcpy(&change, gradient + c, sizeof change);
            for (int64_t s = 0; kept && s < by.slots.number; s++) {
                if (s == bag.slot) continue;
                memcpy(&other, kept + s * by.slots.apart * width + c, sizeof other);
                change *= other;
            }
            memcpy(&sum, sums + c, sizeof sum);
            sum += factor * change;
            memcpy(sums + c, &sum, sizeof sum);
        });
    }
};

// All occurrences of a table's rows, as they are asked for.
struct Asked {
    const Request& asked;
    const Updating& by;
    int64_t table;

    int64_t count() const { return by.occurrences[table]; }

    // Calls `each` with the row, the bag as `gradients` knows it, the factor, and a bag that comes later.
    template <class GRADIENTS, class EACH>
    INLINE_MEMBER void every(const GRADIENTS& gradients, const EACH& each) const {
        const int64_t places = places_of(asked, by, table);
        visit(asked, by, table, 0, places, [&](int64_t row, int64_t b, int64_t lane, float factor) {
            each(row, gradients.of(b, lane), factor, gradients.of(b + NEXT, lane));
        });
    }
};

// Those that were dealt to a part.
struct Dealt {
    const Occurrence *first, *last;

    int64_t count() const { return last - first; }

    template <class GRADIENTS, class EACH>
    INLINE_MEMBER void every(const GRADIENTS& gradients, const EACH& each) const {
        for (const Occurrence* one = first; one < last; one++) {
            const Occurrence* later = last - one > NEXT ? one + NEXT : one;
            each(one->row, gradients.of(one->bag), one->factor, gradients.of(later->bag));
        }
    }
};

// Rows of one table: their gradients summed in the order of occurrence, then each updated once.
template <class S, int WIDTH, class OCCURRENCES, class GRADIENTS>
INLINE void update_from(const Request& asked, const Updating& by, int64_t table, const OCCURRENCES& occurrences) {
    const int64_t width = WIDTH ? WIDTH : asked.width, lane = by.order[by.bounds[table]];
    Scratch& own = scratch();
    Finder distinct = own.distinct.finder(occurrences.count(), asked.sizes[lane]);
    own.places.reserve(occurrences.count());
    int32_t* place = own.places.data;
    const GRADIENTS gradients{asked, by, width};
    occurrences.every(gradients, [&](int64_t row, const auto&, float, const auto&) {
        *place++ = row >= 0 ? distinct.place_of(uint32_t(row)) : -1;
    });

    own.sums.reserve(distinct.count * width);
    float* const sums = own.sums.data;
    memset(sums, 0, size_t(distinct.count * width) * sizeof(float));
    place = own.places.data;
    occurrences.every(gradients, [&](int64_t, const auto& bag, float factor, const auto& later) {
        gradients.fetch_later(later);
        if (*place >= 0) gradients.add(sums + *place * width, bag, factor);
        place++;
    });

    const int64_t widths[] = {0, width, 1, 2 * width}, held = widths[by.rule];  // of the state, by rule
    auto* weights = static_cast<typename S::Stored*>(by.weights) + asked.starts[lane] * width;
    float* state = by.state + asked.starts[lane] * held;
    const uint64_t seed = mix(by.seeds[lane] + by.step);
    own.noise.reserve(width + 1);
    own.rising.sort(distinct.rows, distinct.count, asked.sizes[lane]);
    for (int64_t at = 0; at < distinct.count; at++) {
        if (at + AHEAD < distinct.count) {
            const int64_t next = own.rising.row(at + AHEAD);
            fetch<1>(weights, next * width, width);
            fetch<1>(state, next * held, held);
        }
        const int64_t row = own.rising.row(at), sum = own.rising.place(at) * width;
        if (S::rounds) draw_noise(own.noise.data, mix(seed + uint64_t(row)), width);
        const float scale = asked.scales[lane];
        auto* const there = weights + row * width;
        float* const mine = state + row * held;
        if (by.rule == ADAGRAD)
            apply_adagrad<S>(by, there, mine, sums + sum, own.noise.data, asked.width, scale);
        else if (by.rule == LAZY_ADAM)
            apply_adam<S>(by, there, mine, mine + width, sums + sum, own.noise.data, asked.width, scale);
        else
            apply<S>(by, there, mine, sums + sum, own.noise.data, width, scale);
    }
}

// Those that were dealt, or all.
template <class S, int WIDTH, class GRADIENTS>
static void update_rows(
    const Request& asked, const Updating& by, int64_t table, const Occurrence* first, const Occurrence* last) {
    if (first)
        update_from<S, WIDTH, Dealt, GRADIENTS>(asked, by, table, Dealt{first, last});
    else
        update_from<S, WIDTH, Asked, GRADIENTS>(asked, by, table, Asked{asked, by, table});
}

// --- combining -----------------------------------------------------------------------------------------------

template <bool PRODUCTS>
INLINE void combine_part(const Combination& asked, int64_t first, int64_t last) {
    const int64_t width = asked.width, number = asked.number;
    for (int64_t i = first; i < last; i++) {
        const float* rows = asked.slots + i * number * width;
        along(width, [&](int64_t c, auto piece) {
            using Vector = typename decltype(piece)::Vector;
            Vector whole, factor;
            if (!asked.gradient) {
                memcpy(&whole, rows + c, sizeof whole);
                for (int64_t s = 1; s < number; s++) {
                    memcpy(&factor, rows + s * width + c, sizeof factor);
                    if constexpr (PRODUCTS) whole *= factor;
                    else whole += factor;
                }
                memcpy(asked.out + i * width + c, &whole, sizeof whole);
                return;
            }
            for (int64_t s = 0; s < number; s++) {
                memcpy(&whole, asked.gradient + i * width + c, sizeof whole);
                for (int64_t other = 0; other < number; other++) {
                    if (other == s) continue;
                    memcpy(&factor, rows + other * width + c, sizeof factor);
                    whole *= factor;
                }
                memcpy(asked.out + (i * number + s) * width + c, &whole, sizeof whole);
            }
        });
    }
}

// Vectors [first, last), or the gradients of rows that are multiplied.
static void combine_rows(const Combination& asked, int64_t first, int64_t last) {
    if (asked.products || asked.gradient)
        combine_part<true>(asked, first, last);
    else
        combine_part<false>(asked, first, last);
}

// --- addressing ----------------------------------------------------------------------------------------------

static inline int64_t hash_row(uint64_t value, uint64_t seed, uint64_t rows) {
    return int64_t((mix(value + seed) >> 32) * rows >> 32);
}

// Rounds down and takes the sign of the divisor, as torch does.
static inline int64_t digit(int64_t value, int64_t divisor, int64_t base) {
    int64_t quotient = value / divisor;
    quotient -= value % divisor < 0;
    int64_t rest = quotient % base;
    return rest < 0 ? rest + base : rest;
}

constexpr int64_t CHUNK = 256;
constexpr int64_t EXACT = int64_t(1) << 31;

// Quotients of whole numbers below 2^31: of doubles, rounding never reaches the next whole number, so that the part
// before the point is exact.
template <class ID, class ROW>
INLINE void digits_below_2_31(
    ROW* __restrict out, const ID* __restrict ids, int64_t count, double divisor, double base) {
    INDEPENDENT
    for (int64_t i = 0; i < count; i++) {
        const auto quotient = int32_t(double(int32_t(ids[i])) / divisor);
        const auto turns = int32_t(double(quotient) / base);
        out[i] = quotient - int32_t(double(turns) * base);
    }
}

// Of ids with the same two constants.
template <class ID, class ROW>
INLINE void number_ids(
    ROW* __restrict out, const ID* __restrict ids, int64_t count, int64_t numbering, int64_t x, int64_t y) {
    if (numbering == AS_THEY_ARE) {
        INDEPENDENT
        for (int64_t i = 0; i < count; i++) out[i] = ROW(ids[i]);
        return;
    }
    if (numbering == HASHES) {
        INDEPENDENT
        for (int64_t i = 0; i < count; i++)
            out[i] = ROW(hash_row(uint64_t(int64_t(ids[i])), uint64_t(x), uint64_t(y)));
        return;
    }
    for (int64_t begin = 0; begin < count; begin += CHUNK) {
        const int64_t end = begin + CHUNK < count ? begin + CHUNK : count;
        int64_t bits = 0;
        for (int64_t i = begin; i < end; i++) bits |= int64_t(ids[i]);
        if (bits >= 0 && bits < EXACT && x < EXACT && y < EXACT)
            digits_below_2_31(out + begin, ids + begin, end - begin, double(x), double(y));
        else
            for (int64_t i = begin; i < end; i++) out[i] = ROW(digit(int64_t(ids[i]), x, y));
    }
}

// The row numbers of a lane's occurrences [first, last).
static void number_lane(const LaneIds& of, int32_t* rows, int64_t first, int64_t last) {
    if (of.wide)
        number_ids(
            rows + first, static_cast<const int64_t*>(of.ids) + (first - of.origin), last - first, of.numbering,
            of.first, of.second);
    else
        number_ids(
            rows + first, static_cast<const int32_t*>(of.ids) + (first - of.origin), last - first, of.numbering,
            of.first, of.second);
}

template <class ID>
INLINE void address_part(const Address& asked, int64_t line, int64_t first, int64_t last) {
    const int64_t a = line / asked.sizes[1], b = line % asked.sizes[1];
    const ID* ids = static_cast<const ID*>(asked.ids) + a * asked.strides[0] + b * asked.strides[1];
    const int64_t *one = asked.constants[0] + a * asked.constant_strides[0][0] + b * asked.constant_strides[0][1],
                  *other = asked.constants[1] + a * asked.constant_strides[1][0] + b * asked.constant_strides[1][1];
    const int64_t step = asked.strides[2], steps[2] = {asked.constant_strides[0][2], asked.constant_strides[1][2]};
    int64_t* __restrict out = asked.rows + line * asked.sizes[2];
    if (step == 1 && steps[0] == 0 && steps[1] == 0) {
        number_ids(out + first, ids + first, last - first, asked.digits ? DIGITS : HASHES, *one, *other);
        return;
    }
    for (int64_t i = first; i < last; i++) {
        const auto id = int64_t(ids[i * step]);
        const int64_t x = one[i * steps[0]], y = other[i * steps[1]];
        out[i] = asked.digits ? digit(id, x, y) : hash_row(uint64_t(id), uint64_t(x), uint64_t(y));
    }
}

// The rows of places [first, last) of one line, of all lines of the first two axes.
static void address_line(const Address& asked, int64_t line, int64_t first, int64_t last) {
    if (asked.wide)
        address_part<int64_t>(asked, line, first, last);
    else
        address_part<int32_t>(asked, line, first, last);
}

// --- by type and width ---------------------------------------------------------------------------------------

template <class S, int WIDTH>
static constexpr Kernels kernels() {
    return {
        check_lane, number_lane, read_rows<S, WIDTH>, read_bags<S, WIDTH>, read_slots<S, WIDTH>,
        count_parts, deal_parts, update_rows<S, WIDTH, OfVectors>, update_rows<S, WIDTH, OfSlots>};
}

// Common widths of fp32 have code of their own.
static Kernels select(int type, int64_t width) {
    switch (type) {
        case 0:
            switch (width) {
                case 4: return kernels<Fp32, 4>();
                case 8: return kernels<Fp32, 8>();
                case 16: return kernels<Fp32, 16>();
                case 32: return kernels<Fp32, 32>();
                case 64: return kernels<Fp32, 64>();
                default: return kernels<Fp32, 0>();
            }
        case 1: return kernels<Fp16, 0>();
        case 2: return kernels<Bf16, 0>();
        case 3: return kernels<Grid<int8_t, -128, 127>, 0>();
        default: return kernels<Grid<int16_t, -32768, 32767>, 0>();
    }
}
