// Reading and updating rows, written once and compiled for each instruction set in a namespace of its own.
//
// kernels.cpp includes this file several times; it includes nothing itself. Floating-point contraction is off and sums
// have a fixed order, so that every instruction set, and any number of threads, gives the same bits.
//
// Shapes: L lanes, B samples, W width, M occurrences. Rows count within a lane's table; -1 is absent.

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

static inline int64_t row_at(const Request& asked, int64_t place) {
    return asked.wide ? static_cast<const int64_t*>(asked.rows)[place] : static_cast<const int32_t*>(asked.rows)[place];
}

template <class INDEX>
static inline int64_t first_outside(const INDEX* rows, int64_t begin, int64_t end, int64_t size) {
    bool bad = false;
    for (int64_t i = begin; i < end; i++) bad |= (rows[i] < -1) | (int64_t(rows[i]) >= size);
    if (bad)
        for (int64_t i = begin; i < end; i++)
            if (rows[i] < -1 || int64_t(rows[i]) >= size) return i;
    return -1;
}

// The first occurrence of a lane whose row its table does not have, or -1; offsets that do not rise are -2 - their bag.
static int64_t check_lane(const Request& asked, int64_t lane) {
    int64_t begin = lane * asked.batch, end = begin + asked.batch;
    if (asked.offsets) {
        const int64_t* offsets = asked.offsets;
        for (int64_t bag = begin; bag < end; bag++)
            if (offsets[bag] < 0 || offsets[bag] > offsets[bag + 1] || offsets[bag + 1] > asked.count) return -2 - bag;
        begin = offsets[begin];
        end = offsets[end];
    }
    int64_t size = asked.sizes[lane];
    return asked.wide ? first_outside(static_cast<const int64_t*>(asked.rows), begin, end, size)
                      : first_outside(static_cast<const int32_t*>(asked.rows), begin, end, size);
}

static inline void fetch(const char* base, int64_t row, int64_t bytes) {
    const char* line = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(base) + uintptr_t(row * bytes));
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at);
    if (bytes % 64) __builtin_prefetch(line + bytes - 1);
}

// --- reading -------------------------------------------------------------------------------------------------

// Samples [first, last) of one lane, a row each.
template <class S, int WIDTH>
static void read_rows(const Request& asked, const Reading& to, int64_t lane, int64_t first, int64_t last) {
    const int64_t width = WIDTH ? WIDTH : asked.width, bytes = width * int64_t(sizeof(typename S::Stored));
    const auto* table = static_cast<const typename S::Stored*>(asked.weights) + asked.starts[lane] * width;
    const float scale = asked.scales[lane], midpoint = asked.midpoints[lane];
    const int64_t begin = lane * asked.batch, step = asked.lanes * width;
    float* out = to.out + first * step + lane * width;
    for (int64_t b = first; b < last; b++, out += step) {
        if (b + AHEAD < last)
            fetch(reinterpret_cast<const char*>(table), row_at(asked, begin + b + AHEAD), bytes);
        int64_t row = row_at(asked, begin + b);
        if (row < 0) {
            for (int64_t c = 0; c < width; c++) out[c] = 0;
            continue;
        }
        const auto* stored = table + row * width;
        if (!S::rounds && to.stream) {
            for (int64_t c = 0; c < width; c += 16) STREAM_64(out + c, reinterpret_cast<const float*>(stored) + c);
        } else {
            for (int64_t c = 0; c < width; c++) out[c] = S::load(stored[c], scale, midpoint);
        }
    }
}

// Bags of samples [first, last) of one lane: the sums of their rows, perhaps weighted.
template <class S, int WIDTH>
static void read_bags(const Request& asked, const Reading& to, int64_t lane, int64_t first, int64_t last) {
    const int64_t width = WIDTH ? WIDTH : asked.width, bytes = width * int64_t(sizeof(typename S::Stored));
    const auto* table = static_cast<const typename S::Stored*>(asked.weights) + asked.starts[lane] * width;
    const float scale = asked.scales[lane], midpoint = asked.midpoints[lane];
    const int64_t* offsets = asked.offsets + lane * asked.batch;
    const int64_t step = asked.lanes * width, end = offsets[last];
    float* out = to.out + first * step + lane * width;
    for (int64_t b = first; b < last; b++, out += step) {
        for (int64_t c = 0; c < width; c++) out[c] = 0;
        for (int64_t i = offsets[b]; i < offsets[b + 1]; i++) {
            if (i + AHEAD < end) fetch(reinterpret_cast<const char*>(table), row_at(asked, i + AHEAD), bytes);
            int64_t row = row_at(asked, i);
            if (row < 0) continue;
            const auto* stored = table + row * width;
            const float weight = asked.factors ? asked.factors[i] : 1.0f;
            for (int64_t c = 0; c < width; c++) out[c] += weight * S::load(stored[c], scale, midpoint);
        }
    }
}

// --- updating ------------------------------------------------------------------------------------------------

// Memory that grows and is kept by its thread: no pages are asked for anew in every step.
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

// A distinct row: where its first gradient lies, and, once there is a second, where their sum does.
struct Touched {
    int64_t first;
    int64_t sum;
    uint32_t row;
    float factor;
};

static constexpr int64_t NONE = -1;

// The distinct rows of a table in the order of their first occurrence, with their summed gradients. Open addressing:
// a cell holds a row and its place among the distinct ones. Of a table of few rows every row has a cell of its own.
struct Summed {
    Buffer<uint64_t> cells;
    Buffer<Touched> touched;
    Buffer<float> sums;
    Buffer<float> noise;
    Buffer<float> scaled;
    int64_t distinct, summed, mask;
    bool direct;

    void begin(int64_t expected, int64_t size) {
        int64_t room = 64;
        while (room < expected) room *= 2;
        direct = size <= 2 * room;
        mask = (direct ? size : room) - 1;
        cells.reserve(mask + 1);
        touched.reserve(room);
        memset(cells.data, 0xFF, size_t(mask + 1) * sizeof(uint64_t));
        distinct = summed = 0;
    }

    int64_t cell_of(uint32_t row) const {
        return direct ? int64_t(row) : int64_t(mix(row) & uint64_t(mask));
    }

    void grow() {
        mask = 2 * mask + 1;
        cells.reserve(mask + 1);
        memset(cells.data, 0xFF, size_t(mask + 1) * sizeof(uint64_t));
        for (int64_t place = 0; place < distinct; place++) {
            int64_t cell = cell_of(touched.data[place].row);
            while (cells.data[cell] != EMPTY) cell = (cell + 1) & mask;
            cells.data[cell] = uint64_t(touched.data[place].row) << 32 | uint64_t(place);
        }
    }

    template <int WIDTH>
    void add(const float* gradient, int64_t width, uint32_t row, int64_t at, float factor) {
        if (WIDTH) width = WIDTH;
        int64_t cell = cell_of(row);
        while (cells.data[cell] != EMPTY && uint32_t(cells.data[cell] >> 32) != row) cell = (cell + 1) & mask;
        if (cells.data[cell] == EMPTY) {
            cells.data[cell] = uint64_t(row) << 32 | uint64_t(distinct);
            touched.reserve(distinct + 1);
            touched.data[distinct++] = {at, NONE, row, factor};
            if (!direct && 2 * distinct > mask) grow();
            return;
        }
        Touched& known = touched.data[uint32_t(cells.data[cell])];
        const float* one = gradient + at;
        if (known.sum == NONE) {
            known.sum = summed;
            summed += width;
            sums.reserve(summed);
            const float* before = gradient + known.first;
            float* sum = sums.data + known.sum;
            for (int64_t c = 0; c < width; c++) sum[c] = before[c] * known.factor + one[c] * factor;
        } else {
            float* sum = sums.data + known.sum;
            for (int64_t c = 0; c < width; c++) sum[c] += one[c] * factor;
        }
    }
};

static Summed& scratch() {
    static thread_local Summed own;
    return own;
}

// Sixteen sums side by side, then a tree: the same order on every instruction set.
static inline float squares(const float* values, int64_t width) {
    float sums[16] = {};
    int64_t c = 0;
    for (; c + 16 <= width; c += 16)
        for (int i = 0; i < 16; i++) sums[i] += values[c + i] * values[c + i];
    for (int i = 0; c + i < width; i++) sums[i] += values[c + i] * values[c + i];
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

static inline void draw_noise(float* noise, uint64_t key, int64_t width) {
    for (int64_t pair = 0; 2 * pair < width; pair++) {
        uint64_t bits = mix(key + uint64_t(pair));
        noise[2 * pair] = (float(int32_t(bits & NOISE_MASK)) + 0.5f) * NOISE_UNIT;
        noise[2 * pair + 1] = (float(int32_t(bits >> 32 & NOISE_MASK)) + 0.5f) * NOISE_UNIT;
    }
}

template <class S, int WIDTH>
static inline void apply(
    const Updating& by, typename S::Stored* __restrict weights, float* __restrict state, const float* __restrict gradient,
    const float* __restrict noise, int64_t width, float scale) {
    if (WIDTH) width = WIDTH;
    if (by.rule == ADAGRAD) {
        for (int64_t c = 0; c < width; c++) {
            float sum = state[c] + gradient[c] * gradient[c];
            state[c] = sum;
            float change = gradient[c] / (__builtin_sqrtf(sum) + by.eps) * by.rate;
            weights[c] = S::add(weights[c], change, S::rounds ? noise[c] : 0, scale);
        }
        return;
    }
    float divisor = 1;
    if (by.rule == ROWWISE_ADAGRAD) {
        float sum = *state + squares(gradient, width) / float(width);
        *state = sum;
        divisor = __builtin_sqrtf(sum) + by.eps;
    }
    for (int64_t c = 0; c < width; c++)
        weights[c] = S::add(weights[c], gradient[c] / divisor * by.rate, S::rounds ? noise[c] : 0, scale);
}

// Rows of one table whose hash falls into a part of all: summed in the order of occurrence, then updated once.
template <class S, int WIDTH>
static void update_rows(const Request& asked, const Updating& by, int64_t table, uint64_t part, uint64_t parts) {
    Summed& summed = scratch();
    const int64_t width = WIDTH ? WIDTH : asked.width, bytes = width * int64_t(sizeof(typename S::Stored));
    const int64_t* lanes = by.order + by.bounds[table];
    const int64_t count = by.bounds[table + 1] - by.bounds[table];
    summed.begin(by.occurrences[table] / int64_t(parts), asked.sizes[lanes[0]]);
    auto add = [&](int64_t row, int64_t at, float factor) {
        if (row < 0 || (parts > 1 && (uint64_t(uint32_t(uint64_t(row) * GOLDEN)) * parts) >> 32 != part)) return;
        summed.add<WIDTH>(by.gradient, width, uint32_t(row), at, factor);
    };
    if (asked.offsets) {
        for (int64_t l = 0; l < count; l++) {
            const int64_t* offsets = asked.offsets + lanes[l] * asked.batch;
            for (int64_t b = 0; b < asked.batch; b++)
                for (int64_t i = offsets[b]; i < offsets[b + 1]; i++)
                    add(row_at(asked, i), (b * asked.lanes + lanes[l]) * width, asked.factors ? asked.factors[i] : 1);
        }
    } else {
        for (int64_t b = 0; b < asked.batch; b++)
            for (int64_t l = 0; l < count; l++)
                add(row_at(asked, lanes[l] * asked.batch + b), (b * asked.lanes + lanes[l]) * width, 1);
    }

    const int64_t start = asked.starts[lanes[0]];
    auto* weights = static_cast<typename S::Stored*>(by.weights) + start * width;
    const int64_t held = by.rule == ADAGRAD ? width : by.rule == ROWWISE_ADAGRAD ? 1 : 0;
    float* state = by.state + start * held;
    const float scale = asked.scales[lanes[0]];
    const uint64_t seed = mix(by.seeds[lanes[0]] + by.step);
    summed.noise.reserve(width + 1);
    summed.scaled.reserve(width);
    for (int64_t place = 0; place < summed.distinct; place++) {
        if (place + AHEAD < summed.distinct) {
            const Touched& next = summed.touched.data[place + AHEAD];
            fetch(reinterpret_cast<const char*>(weights), next.row, bytes);
            if (held) fetch(reinterpret_cast<const char*>(state), next.row, held * 4);
            if (next.sum == NONE) fetch(reinterpret_cast<const char*>(by.gradient + next.first), 0, width * 4);
        }
        const Touched& one = summed.touched.data[place];
        const float* gradient = by.gradient + one.first;
        if (one.sum != NONE) {
            gradient = summed.sums.data + one.sum;
        } else if (one.factor != 1) {
            for (int64_t c = 0; c < width; c++) summed.scaled.data[c] = gradient[c] * one.factor;
            gradient = summed.scaled.data;
        }
        if (S::rounds) draw_noise(summed.noise.data, mix(seed + one.row), width);
        apply<S, WIDTH>(
            by, weights + int64_t(one.row) * width, state + int64_t(one.row) * held, gradient, summed.noise.data, width,
            scale);
    }
}

// --- by type and width ---------------------------------------------------------------------------------------

template <class S, int WIDTH>
static constexpr Kernels kernels() {
    return {check_lane, read_rows<S, WIDTH>, read_bags<S, WIDTH>, update_rows<S, WIDTH>};
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
