// How fast this machine reads, or reads and writes, rows at random: fetched ahead, on several threads. For limits.py.

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int64_t AHEAD = 16, LINE = 16;  // floats of a line

void pass(float* base, int64_t width, const int64_t* rows, int64_t begin, int64_t end, bool write, float* sink) {
    float sum = 0;
    for (int64_t i = begin; i < end; i++) {
        if (i + AHEAD < end)
            for (int64_t c = 0; c < width; c += LINE) __builtin_prefetch(base + rows[i + AHEAD] * width + c, 1);
        float* row = base + rows[i] * width;
        for (int64_t c = 0; c < width; c += LINE) {
            sum += row[c];
            if (write) *static_cast<volatile float*>(row + c) = row[c];
        }
    }
    *sink = sum;
}

}  // namespace

// Seconds for one pass over the rows [count] of base [n, width].
extern "C" double random_rows(
    float* base, int64_t width, const int64_t* rows, int64_t count, int64_t threads, int64_t write) {
    std::vector<float> sinks(threads * LINE);
    std::vector<std::thread> all;
    const auto began = std::chrono::steady_clock::now();
    for (int64_t t = 0; t < threads; t++)
        all.emplace_back(
            pass, base, width, rows, count * t / threads, count * (t + 1) / threads, write != 0, &sinks[t * LINE]);
    for (auto& one : all) one.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}
