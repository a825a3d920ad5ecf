// Prints a digest of what every kernel makes of drawn inputs: the same for any compiler, processor and number of threads.
//
//     native_bits THREADS LEVEL
//
// Linked with the kernels, but without torch, and so without OpenMP: threads are those of the standard library.

#include "../../recsys_embed/native/interface.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

uint64_t drawn = 0;

uint64_t draw() {
    uint64_t bits = drawn += 0x9E3779B97F4A7C15u;
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EBu;
    return bits ^ bits >> 31;
}

uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float draw_float() { return float(draw() >> 40) / float(1 << 24) - 0.5f; }

template <class T>
uint64_t digest(const std::vector<T>& values, uint64_t hash = 14695981039346656037u) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0, size = values.size() * sizeof(T); i < size; i += 8) {
        uint64_t word = 0;  // little-endian
        memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
        hash = (hash ^ word) * 1099511628211u;
        hash ^= hash >> 32;
    }
    return hash;
}

std::vector<float> floats(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = draw_float();
    return values;
}

std::vector<uint8_t> stored(int type, int64_t count) {
    constexpr size_t bytes[] = {4, 2, 2, 1, 2};
    std::vector<uint8_t> store(size_t(count) * bytes[type]);
    for (int64_t i = 0; i < count; i++) {
        const float value = draw_float();
        const uint32_t half = type == 1 ? uint32_t(draw() % 0x3C00) : bits_of(value) >> 16;  // fp16: below 1
        const uint32_t whole = type < 1 ? bits_of(value) : type < 3 ? half : uint32_t(draw());
        memcpy(&store[size_t(i) * bytes[type]], &whole, bytes[type]);  // little-endian
    }
    return store;
}

void must(int64_t found) {
    if (found == FINE) return;
    printf("refused: %lld\n", static_cast<long long>(found));
    exit(1);
}

// A table that lanes share, one of a single row, and one that is cut into parts.
uint64_t trained(
    int64_t level, int64_t threads, int type, int64_t rule, bool jagged, int64_t width, const Slots& slots) {
    constexpr int64_t lanes = 6, batch = 400, rows = 3941, order[] = {0, 2, 5, 1, 3, 4}, bounds[] = {0, 3, 4, 5, 6};
    constexpr int64_t starts[lanes] = {0, 3000, 0, 3040, 3041, 0}, sizes[lanes] = {3000, 40, 3000, 1, 900, 3000};
    constexpr int64_t seeds[lanes] = {7, 8, 7, 9, 10, 7};
    const std::vector<float> scales(lanes, 0.004f), midpoints(lanes, 0.1f);
    std::vector<uint8_t> store = stored(type, rows * width);
    std::vector<int64_t> asked, offsets{0};
    for (int64_t size : sizes)
        for (int64_t b = 0; b < batch; b++) {
            const uint64_t count = jagged ? draw() % 4 : 1;
            for (uint64_t i = 0; i < count; i++)
                asked.push_back(draw() % 8 ? int64_t(draw() % uint64_t(size)) : -int64_t(jagged));
            offsets.push_back(int64_t(asked.size()));
        }
    const auto count = int64_t(asked.size());
    const std::vector<float> factors = floats(count), gradient = floats(batch * lanes * width);
    const Request request{
        store.data(), starts, sizes, scales.data(), midpoints.data(), lanes, batch, width, asked.data(), 1, count,
        jagged ? offsets.data() : nullptr, jagged ? factors.data() : nullptr};
    const int64_t vectors = lanes / slots.number;
    std::vector<float> out(size_t(batch * vectors * width)), kept(slots.products ? size_t(batch * lanes * width) : 0);
    float* const keep = slots.products ? kept.data() : nullptr;
    must(recsys_embed_read(
        level, threads, type, &request, &slots, nullptr, 0, out.data(), vectors * width, 0, keep, width >= 32));
    std::vector<uint16_t> halves(out.size());
    must(recsys_embed_read(
        level, threads, type, &request, &slots, nullptr, 0, halves.data(), vectors * width, 1, nullptr, 0));
    const int64_t held[] = {0, width, 1, 2 * width};
    std::vector<float> state(size_t(rows * held[rule]), 0.01f);
    for (int64_t step = 1; step < 4; step++)
        must(recsys_embed_update(
            level, threads, type, &request, &slots, keep, store.data(), state.data(), gradient.data(), rule, -0.1f, 1e-8f, 0.1f, 0.001f,
            step, seeds, order, bounds, 4));
    return digest(state, digest(store, digest(kept, digest(halves, digest(out)))));
}

// Read by rows that are made of ids: as they are, by a hash of two slots, and by digits of two features. Bags hold none,
// one and two in turn, and so as many as a matrix does.
uint64_t made(int64_t level, int64_t threads, bool wide, bool jagged) {
    constexpr int64_t lanes = 5, batch = 3000, width = 16, starts[lanes] = {0, 50, 50, 90, 120};
    constexpr int64_t sizes[lanes] = {50, 40, 40, 30, 20}, hashes[] = {3, -9, 40, 40}, digits[] = {1, 7, 30, 20};
    const std::vector<float> ones(lanes, 1.0f), store = floats(140 * width);
    std::vector<int32_t> ids(4 * batch), rows(lanes * batch);
    for (int32_t& id : ids) id = int32_t(draw() % 50);
    const std::vector<int64_t> wider(ids.begin(), ids.end());
    const auto at = [&](int64_t feature) -> const void* {
        return wide ? static_cast<const void*>(&wider[size_t(feature * batch)]) : &ids[size_t(feature * batch)];
    };
    std::vector<int64_t> offsets{0};
    for (int64_t bag = 0; bag < lanes * batch; bag++) offsets.push_back(offsets.back() + bag % 3);
    const Source sources[] = {
        {at(0), wide, batch, batch, AS_THEY_ARE, nullptr, 1, 1},
        {at(1), wide, batch, batch, HASHES, hashes, 1, 2},
        {at(2), wide, 2 * batch, batch, DIGITS, digits, 2, 1}};
    const Request request{
        store.data(), starts, sizes, ones.data(), ones.data(), lanes, batch, width, rows.data(), 0, lanes * batch,
        jagged ? offsets.data() : nullptr, nullptr};
    std::vector<float> out(size_t(batch * lanes * width));
    const Slots alone{1, 1, 0};
    must(recsys_embed_read(
        level, threads, 0, &request, &alone, sources, 3, out.data(), lanes * width, 0, nullptr, 0));
    return digest(rows, digest(out));
}

void report(const char* what, int first, int second, uint64_t digest) {
    printf("%s %d %d %016llx\n", what, first, second, static_cast<unsigned long long>(digest));
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return 2;
    const int64_t threads = atoi(arguments[1]), level = atoi(arguments[2]);
    int64_t next = 0;
    for (int type = 0; type < 5; type++)
        for (int rule = 0; rule < 4; rule++) {
            uint64_t found = 0;
            for (int64_t width : {1, 3, 4, 8, 15, 16, 17, 32, 64})
                for (bool jagged : {false, true}) {
                    const Slots several[] = {{2, 1, 1}, {3, 2, 1}, {3, 1, 0}};
                    for (const Slots& slots : {Slots{1, 1, 0}, several[next++ % 3]})
                        found = found * 31 + trained(level, threads, type, rule, jagged, width, slots);
                }
            report("rows", type, rule, found);
        }
    for (bool wide : {false, true})
        for (bool jagged : {false, true}) report("made", wide, jagged, made(level, threads, wide, jagged));
    std::vector<int64_t> ids(20'000);
    for (int64_t& id : ids) id = int64_t(draw() % 3'000'000'000u) - 5;
    const int64_t ones[] = {1, 3, 70, 1000, 99'999}, others[] = {5, 17, 1 << 20, 12, 2'147'483'647};
    for (int digits : {0, 1}) {
        std::vector<int64_t> rows(ids.size());
        const Address asked{ids.data(), 1, digits, {ones, others}, rows.data(), {5, 1, 4000}, {4000, 0, 1},
                            {{1, 0, 0}, {1, 0, 0}}};
        recsys_embed_address(level, threads, &asked);
        report("address", digits, 0, digest(rows));
    }
    const std::vector<float> slots = floats(900 * 3 * 17), gradient = floats(900 * 17);
    for (int products : {0, 1})
        for (int backward = 0; backward <= products; backward++) {
            std::vector<float> out(backward ? slots.size() : gradient.size());
            const Combination asked{
                slots.data(), backward ? gradient.data() : nullptr, out.data(), products, 900, 17, 3};
            recsys_embed_combine(level, threads, &asked);
            report("combine", products, backward, digest(out));
        }
    for (int64_t count : {26, 40}) {
        constexpr int64_t batch = 300, width = 17;
        const int64_t step = width + count * (count + 1) / 2 + 5;
        const std::vector<float> first = floats(batch * width), others = floats(batch * count * width);
        std::vector<float> out(size_t(batch * step)), of_first(first.size()), of_others(others.size());
        const Pairs asked{first.data(), others.data(), out.data(), batch, count, width, step};
        if (!recsys_embed_pairs(level, threads, &asked, nullptr)) return 1;
        const PairsGradient by{out.data(), of_first.data(), of_others.data()};
        if (!recsys_embed_pairs(level, threads, &asked, &by)) return 1;
        report("pairs", int(count), 0, digest(of_others, digest(of_first, digest(out))));
    }
}
