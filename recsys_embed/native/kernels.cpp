// The CPU kernels of recsys_embed: rows read into vectors, and updated by summed gradients.
//
// Called by ctypes, as interface.h says: neither Python nor torch is included, so that one build fits any of their
// versions.
// One binary holds the code of several instruction sets; the caller names the one to run.

#include "interface.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct OutOfMemory {};

// The ids of one lane, of which its row numbers are made.
struct LaneIds {
    const void* ids;  // of its occurrences from `origin` on
    int64_t wide, origin, count, numbering, first, second;
};

struct Reading {
    void* out;  // [B, V, W], of float or bf16
    int64_t step;  // numbers from one sample to the next
    bool bf16;
    bool stream;  // past the caches
    Slots slots;
    float* kept;  // [B, L, W]: where rows are kept as well, for the gradient of their product; or nowhere
};

struct Updating {
    void* weights;
    float* state;
    const float* gradient;  // [B, V, W]
    Slots slots;
    const float* kept;  // [B, L, W]: the rows that were read, where vectors are products
    int64_t vectors;  // V
    const int64_t *slot_of, *vector_of;  // of each lane, where vectors have several slots
    int rule;
    float rate, eps;  // rate: minus the learning rate
    float news[2];  // of lazy Adam: what of a gradient, and of its square, goes into the moments
    uint64_t step;
    const uint64_t* seeds;  // of each lane: its table's rounding noise
    const int64_t* order;  // lanes, table by table
    const int64_t* bounds;  // where each table's begin
    const int64_t* occurrences;  // of each table
};

// An occurrence of a row that is updated.
struct Occurrence {
    uint32_t row, bag;  // bag: sample by sample
    float factor;
};

struct Kernels {
    int64_t (*check)(const Request&, int64_t lane, const LaneIds*);
    void (*number)(const LaneIds&, int32_t* rows, int64_t first, int64_t last);
    void (*read)(const Request&, const Reading&, int64_t lane, int64_t first, int64_t last);
    void (*read_bags)(const Request&, const Reading&, int64_t lane, int64_t first, int64_t last);
    void (*read_slots)(const Request&, const Reading&, int64_t vector, int64_t first, int64_t last);
    void (*count)(
        const Request&, const Updating&, int64_t table, int64_t first, int64_t last, int64_t parts, int64_t* counts);
    void (*deal)(
        const Request&, const Updating&, int64_t table, int64_t first, int64_t last, int64_t parts, int64_t* ends,
        Occurrence* dealt);
    void (*update)(const Request&, const Updating&, int64_t table, const Occurrence* first, const Occurrence* last);
    void (*update_slots)(const Request&, const Updating&, int64_t table, const Occurrence* first, const Occurrence* last);
};

constexpr int64_t AHEAD = 16;  // rows that are fetched before they are needed
constexpr int64_t NEXT = 16;  // samples whose gradients are, or occurrences of a part
constexpr int64_t BLOCK = 16;  // samples whose rows are looked at together
constexpr int64_t BUCKETS = 2048;  // of the sort
constexpr int64_t NEAR = 1 << 20;  // bytes that a core keeps near it: of twice as many, dealing costs more than it saves
constexpr int64_t MOST_PARTS = 512;
constexpr uint64_t EMPTY = ~uint64_t(0);
constexpr uint64_t GOLDEN = 0x9E3779B1u;  // of the parts of a table
constexpr uint64_t SCATTER = 0xD6E8FEB86659FD93u;  // of cells: another one, as rows of a part begin alike by the former
constexpr uint64_t NOISE_MASK = (1u << 23) - 1;
constexpr float NOISE_UNIT = 1.0f / (1 << 23);

#define INLINE static inline __attribute__((always_inline, unused))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define OPAQUE(value) asm("" : "+r"(value))  // compilers make no branch of what they cannot see through

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Floats side by side, which every instruction set has, in one register or in several: of a row whose width is known
// when it is compiled, compilers unroll the loop before they would make vectors of it.
typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

// The finaliser of recsys_embed/hashing.py.
INLINE uint64_t mix(uint64_t bits) {
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define INDEPENDENT PRAGMA(clang loop vectorize(assume_safety))
#define TARGET_BEGIN(isa) PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define INDEPENDENT PRAGMA(GCC ivdep)
#define TARGET_BEGIN(isa) PRAGMA(GCC push_options) PRAGMA(GCC target(isa))
#define TARGET_END PRAGMA(GCC pop_options)
#endif

// A line of 64 bytes, past the caches; both ends are aligned to it.
namespace base {
#if defined(__x86_64__)
#define STREAM_64(to, from) \
    for (int q = 0; q < 16; q += 4) _mm_stream_ps((to) + q, _mm_loadu_ps((from) + q))
#else
#define STREAM_64(to, from) memcpy(to, from, 64)
#endif
#include "rows.h"
#include "pairs.h"
#undef STREAM_64
}  // namespace base

#if defined(__x86_64__)
TARGET_BEGIN("avx2,prfchw")
namespace avx2 {
#define STREAM_64(to, from)                              \
    (_mm256_stream_ps(to, _mm256_loadu_ps(from)), \
     _mm256_stream_ps((to) + 8, _mm256_loadu_ps((from) + 8)))
#include "rows.h"
#include "pairs.h"
#undef STREAM_64
}  // namespace avx2
TARGET_END

TARGET_BEGIN("avx2,prfchw,avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#define STREAM_64(to, from) _mm512_stream_ps(to, _mm512_loadu_ps(from))
#include "rows.h"
#include "pairs.h"
#undef STREAM_64
}  // namespace avx512
TARGET_END
#endif

// A function as it was compiled for an instruction set.
#if defined(__x86_64__)
#define AT_LEVEL(level, name) ((level) == 2 ? avx512::name : (level) == 1 ? avx2::name : base::name)
#else
#define AT_LEVEL(level, name) ((void)(level), base::name)
#endif

// --- threads -------------------------------------------------------------------------------------------------

// Tasks 0 to count - 1, each done by whichever thread comes first. What they write does not overlap.
template <class TASK>
struct Job {
    const TASK& task;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    static void work(void* job) {
        auto& self = *static_cast<Job*>(job);
        for (int64_t one; (one = self.next.fetch_add(1, std::memory_order_relaxed)) < self.count;) try {
                self.task(one);
            } catch (const OutOfMemory&) {
                self.failed = true;
            }
    }
};

#if defined(__linux__)
// Where torch has loaded OpenMP its threads are taken: others would contend with them for the cores.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
#endif

// Whether all tasks were done.
template <class TASK>
bool run(int64_t threads, int64_t count, const TASK& task) {
    Job<TASK> job{task, count};
    if (threads > count) threads = count;
    if (threads < 2) {
        Job<TASK>::work(&job);
        return !job.failed;
    }
#if defined(__linux__)
    if (GOMP_parallel) {
        GOMP_parallel(Job<TASK>::work, &job, unsigned(threads), 0);
        return !job.failed;
    }
#endif
    std::vector<std::thread> others;
    try {
        for (int64_t one = 1; one < threads; one++) others.emplace_back(Job<TASK>::work, &job);
    } catch (const std::exception&) {  // no more threads: those that there are do it
    }
    Job<TASK>::work(&job);
    for (auto& other : others) other.join();
    return !job.failed;
}

// A thread more than there is work for costs more than it saves.
int64_t worthwhile(int64_t threads, int64_t floats) {
    int64_t most = 1 + floats / 16384;
    return threads < most ? threads : most;
}

// Of row numbers, or of the ids that they are made of.
int64_t check(const Kernels& kernels, const Request& asked, const LaneIds* ids, int64_t threads) {
    if (asked.offsets) {
        const int64_t bags = asked.lanes * asked.batch;
        if (asked.offsets[0] != 0) return -2;
        if (asked.offsets[bags] != asked.count) return -2 - bags;
    }
    std::atomic<bool> fine{true};
    run(threads, asked.lanes, [&](int64_t lane) {
        if (kernels.check(asked, lane, ids ? ids + lane : nullptr) != FINE) fine = false;
    });
    for (int64_t lane = 0; !fine && lane < asked.lanes; lane++) {  // again, to name the first
        int64_t found = kernels.check(asked, lane, ids ? ids + lane : nullptr);
        if (found != FINE) return found;
    }
    return FINE;
}

// The lanes of all sources, one after another. Throws std::bad_alloc.
std::vector<LaneIds> lanes_of(const Request& asked, const Source* sources, int64_t count) {
    std::vector<LaneIds> lanes;
    lanes.reserve(size_t(asked.lanes));
    int64_t begin = 0;  // the first occurrence of the source
    for (const Source* one = sources; one < sources + count; one++) {
        const int64_t number = one->features * one->slots, size = one->wide ? 8 : 4;
        for (int64_t lane = 0; lane < number; lane++) {
            const int64_t feature = asked.offsets ? lane % one->features : lane / one->slots;
            const int64_t slot = asked.offsets ? lane / one->features : lane % one->slots;
            const int64_t at = feature * one->slots + slot;
            LaneIds ids{one->ids, one->wide, begin, one->count, one->numbering, 0, 0};
            if (asked.offsets)
                ids.origin += slot * one->count;
            else {
                ids.origin += lane * asked.batch;
                ids.count /= one->features;
                ids.ids = static_cast<const char*>(one->ids) + feature * one->step * size;
            }
            if (one->numbering != AS_THEY_ARE) {
                ids.first = one->constants[at];
                ids.second = one->constants[number + at];
            }
            lanes.push_back(ids);
        }
        begin += asked.offsets ? one->slots * one->count : number * asked.batch;
    }
    return lanes;
}

// A table's occurrences, dealt to parts by a hash of their row: several threads share them, and what a part needs stays
// near the core that updates it. Within a part they keep their order, so that no bit depends on the cut.
struct Cut {
    int64_t parts = 1, places = 0, chunks = 1;  // dealt chunk by chunk
    Occurrence* dealt = nullptr;
    std::vector<int64_t> ends;  // [chunks, parts and a gap]: first how many there are, in the end where each ended

    // Of a chunk; threads do not write to the same cache line.
    int64_t* ends_of(int64_t chunk) { return &ends[size_t(chunk * (parts + 8))]; }

    int64_t begin_of(int64_t part) { return part ? ends_of(chunks - 1)[part - 1] : 0; }

    void turn_counts_into_begins() {
        int64_t begin = 0;
        for (int64_t part = 0; part < parts; part++)
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                int64_t& one = ends_of(chunk)[part];
                const int64_t count = one;
                one = begin;
                begin += count;
            }
    }
};

// How each table is cut. Throws std::bad_alloc.
std::vector<Cut> cut(
    const Request& asked, const Updating& by, const Kernels& kernels, int64_t threads, int64_t tables) {
    std::vector<Cut> cuts(static_cast<size_t>(tables));
    struct Task {
        Cut* of;
        int64_t table, chunk;
    };
    std::vector<Task> tasks;
    int64_t all = 0;
    for (int64_t table = 0; table < tables; table++) {
        Cut& one = cuts[size_t(table)];
        const int64_t count = by.occurrences[table], size = asked.sizes[by.order[by.bounds[table]]];
        const int64_t distinct = count < size ? count : size;
        const int64_t share = asked.count / (2 * threads) + 1, shares = threads < 2 ? 1 : (count + share - 1) / share;
        const int64_t cells = 8 * (6 * count < size ? 6 * count : size), bytes = distinct * (4 * asked.width + 12) + cells;
        const int64_t near = bytes > 2 * NEAR ? bytes / NEAR : 1, parts = near > shares ? near : shares;
        one.parts = parts < MOST_PARTS ? parts : MOST_PARTS;
        if (one.parts <= 1 || asked.lanes * asked.batch > UINT32_MAX) {
            one.parts = 1;
            continue;
        }
        one.places = base::places_of(asked, by, table);
        one.chunks = threads < 2 ? 1 : 2 * threads;
        one.ends.resize(size_t(one.chunks * (one.parts + 8)));
        all += count;
        for (int64_t chunk = 0; chunk < one.chunks; chunk++) tasks.push_back({&one, table, chunk});
    }
    static thread_local std::vector<Occurrence> kept;
    if (kept.size() < size_t(all)) {
        kept.clear();
        kept.resize(size_t(all));
    }
    Occurrence* place = kept.data();
    for (int64_t table = 0; table < tables; table++)
        if (cuts[size_t(table)].parts > 1) {
            cuts[size_t(table)].dealt = place;
            place += by.occurrences[table];
        }
    for (const bool deal : {false, true}) {
        const bool done = run(threads, int64_t(tasks.size()), [&](int64_t task) {
            Cut& one = *tasks[size_t(task)].of;
            const int64_t table = tasks[size_t(task)].table, chunk = tasks[size_t(task)].chunk;
            const int64_t first = one.places * chunk / one.chunks, last = one.places * (chunk + 1) / one.chunks;
            if (deal)
                kernels.deal(asked, by, table, first, last, one.parts, one.ends_of(chunk), one.dealt);
            else
                kernels.count(asked, by, table, first, last, one.parts, one.ends_of(chunk));
        });
        if (!done) throw std::bad_alloc();
        for (Cut& one : cuts)
            if (one.parts > 1 && !deal) one.turn_counts_into_begins();
    }
    return cuts;
}

}  // namespace

// --- the interface --------------------------------------------------------------------------------------------


PUBLIC int64_t recsys_embed_abi() { return ABI; }

PUBLIC int64_t recsys_embed_level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

PUBLIC int64_t recsys_embed_read(
    int64_t level, int64_t threads, int64_t type, const Request* asked, const Slots* slots, const Source* sources,
    int64_t count, void* out, int64_t step, int64_t bf16, float* kept, int64_t stream) {
    const int64_t lanes = asked->lanes, batch = asked->batch;
    if (lanes == 0) return FINE;
    const Kernels kernels = AT_LEVEL(level, select)(int(type), asked->width);
    threads = worthwhile(threads, asked->count * asked->width);
    std::vector<LaneIds> made;
    try {
        made = lanes_of(*asked, sources, count);
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
    const LaneIds* const ids = count ? made.data() : nullptr;
    int64_t bad = check(kernels, *asked, ids, threads);
    if (bad != FINE || batch == 0) return bad;
    const bool whole_lines =
        !bf16 && asked->width % 16 == 0 && step % 16 == 0 &&
        (reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(kept)) % 64 == 0;
    const Reading reading{out, step, bf16 != 0, stream && whole_lines, *slots, kept};
    const int64_t vectors = lanes / slots->number, pieces = threads < 2 ? 1 : 1 + (4 * threads - 1) / vectors;
    const int64_t samples = (batch + pieces - 1) / pieces;
    const auto alone = asked->offsets ? kernels.read_bags : kernels.read;
    const auto kernel = slots->number > 1 || bf16 ? kernels.read_slots : alone;
    const bool done = run(threads, vectors * pieces, [&](int64_t task) {
        const int64_t first = task % pieces * samples, last = first + samples < batch ? first + samples : batch;
        if (first >= last) return;
        const int64_t vector = task / pieces;
        for (int64_t slot = 0; ids && slot < slots->number; slot++) {
            const int64_t lane = base::lane_of(*slots, vector, slot), begin = lane * batch;
            const int64_t from = asked->offsets ? asked->offsets[begin + first] : begin + first;
            const int64_t to = asked->offsets ? asked->offsets[begin + last] : begin + last;
            kernels.number(ids[lane], static_cast<int32_t*>(const_cast<void*>(asked->rows)), from, to);
        }
        kernel(*asked, reading, vector, first, last);
#if defined(__x86_64__)
        if (reading.stream) _mm_sfence();
#endif
    });
    return done ? FINE : NO_MEMORY;
}

PUBLIC int64_t recsys_embed_update(
    int64_t level, int64_t threads, int64_t type, const Request* asked, const Slots* slots, const float* kept,
    void* weights, float* state, const float* gradient, int64_t rule, float rate, float eps, float first_news,
    float second_news, int64_t step, const int64_t* seeds, const int64_t* order, const int64_t* bounds,
    int64_t tables) {
    try {
        const Kernels kernels = AT_LEVEL(level, select)(int(type), asked->width);
        threads = worthwhile(threads, asked->count * asked->width);
        int64_t bad = check(kernels, *asked, nullptr, threads);
        if (bad != FINE || asked->batch == 0) return bad;
        std::vector<int64_t> occurrences(static_cast<size_t>(tables));
        for (int64_t table = 0; table < tables; table++)
            for (int64_t place = bounds[table]; place < bounds[table + 1]; place++) {
                const int64_t first = order[place] * asked->batch, last = first + asked->batch;
                occurrences[size_t(table)] += asked->offsets ? asked->offsets[last] - asked->offsets[first] : asked->batch;
            }
        std::vector<int64_t> slot_of(static_cast<size_t>(asked->lanes)), vector_of(slot_of.size());
        const int64_t vectors = asked->lanes / slots->number;
        for (int64_t vector = 0; vector < vectors; vector++)
            for (int64_t slot = 0; slot < slots->number; slot++) {
                const auto lane = size_t(base::lane_of(*slots, vector, slot));
                slot_of[lane] = slot;
                vector_of[lane] = vector;
            }
        const Updating updating{
            weights, state, gradient, *slots, kept, vectors, slot_of.data(), vector_of.data(), int(rule), rate, eps,
            {first_news, second_news}, uint64_t(step), reinterpret_cast<const uint64_t*>(seeds), order, bounds,
            occurrences.data()};
        std::vector<Cut> cuts = cut(*asked, updating, kernels, threads, tables);
        struct Task {
            int64_t table;
            const Occurrence *first, *last;
        };
        std::vector<Task> tasks;
        for (int64_t table = 0; table < tables; table++) {
            Cut& one = cuts[size_t(table)];
            if (one.parts == 1) {
                tasks.push_back({table, nullptr, nullptr});
                continue;
            }
            for (int64_t part = 0; part < one.parts; part++) {
                const int64_t first = one.begin_of(part), last = one.begin_of(part + 1);
                if (first < last) tasks.push_back({table, one.dealt + first, one.dealt + last});
            }
        }
        const bool done = run(threads, int64_t(tasks.size()), [&](int64_t task) {
            const Task& one = tasks[size_t(task)];
            const auto kernel = slots->number > 1 ? kernels.update_slots : kernels.update;
            kernel(*asked, updating, one.table, one.first, one.last);
        });
        return done ? FINE : NO_MEMORY;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}

PUBLIC int64_t recsys_embed_first_outside(
    int64_t level, int64_t threads, const void* ids, int64_t wide, int64_t features, int64_t batch, int64_t step,
    const int64_t* offsets, const int64_t* sizes) {
    if (features == 0 || batch == 0) return FINE;
    const auto kernel = AT_LEVEL(level, outside);
    const auto found = [&](int64_t feature) {
        const int64_t begin = offsets ? offsets[feature * batch] : feature * step;
        const int64_t end = offsets ? offsets[(feature + 1) * batch] : begin + batch;
        return kernel(ids, wide != 0, begin, end, 0, sizes[feature]);
    };
    threads = worthwhile(threads, offsets ? offsets[features * batch] : features * batch);
    std::atomic<bool> fine{true};
    run(threads, features, [&](int64_t feature) {
        if (found(feature) != FINE) fine = false;
    });
    for (int64_t feature = 0; !fine && feature < features; feature++) {  // again, to name the first
        const int64_t place = found(feature);
        if (place != FINE) return place;
    }
    return FINE;
}

PUBLIC void recsys_embed_address(int64_t level, int64_t threads, const Address* asked) {
    const int64_t lines = asked->sizes[0] * asked->sizes[1], length = asked->sizes[2];
    if (lines == 0 || length == 0) return;
    threads = worthwhile(threads, lines * length);
    const int64_t pieces = threads < 2 ? 1 : 1 + (4 * threads - 1) / lines, most = (length + pieces - 1) / pieces;
    const auto kernel = AT_LEVEL(level, address_line);
    run(threads, lines * pieces, [&](int64_t task) {
        const int64_t first = task % pieces * most, last = first + most < length ? first + most : length;
        if (first < last) kernel(*asked, task / pieces, first, last);
    });
}

PUBLIC void recsys_embed_combine(int64_t level, int64_t threads, const Combination* asked) {
    const int64_t count = asked->count, floats = count * asked->width * asked->number;
    if (floats == 0) return;
    threads = worthwhile(threads, floats);
    const int64_t pieces = threads < 2 ? 1 : 4 * threads, most = (count + pieces - 1) / pieces;
    const auto kernel = AT_LEVEL(level, combine_rows);
    run(threads, pieces, [&](int64_t task) {
        const int64_t first = task * most, last = first + most < count ? first + most : count;
        if (first < last) kernel(*asked, first, last);
    });
}

PUBLIC int64_t recsys_embed_pairs(int64_t level, int64_t threads, const Pairs* asked, const PairsGradient* by) {
    const int64_t batch = asked->batch, floats = batch * asked->count * asked->count * asked->width;
    if (batch == 0) return 1;
    threads = worthwhile(threads, floats);
    const int64_t pieces = threads < 2 ? 1 : 4 * threads, most = (batch + pieces - 1) / pieces;
    const auto forward = AT_LEVEL(level, multiply_pairs);
    const auto backward = AT_LEVEL(level, multiply_back);
    return run(threads, pieces, [&](int64_t task) {
        const int64_t first = task * most, last = first + most < batch ? first + most : batch;
        if (first >= last) return;
        if (by)
            backward(*asked, *by, first, last);
        else
            forward(*asked, first, last);
    });
}
