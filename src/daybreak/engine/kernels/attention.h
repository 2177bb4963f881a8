// Attention over keys and values in pages of 16 tokens.
//
// Of a page and layer, first come the keys [key heads, head width, 16 tokens], so that a register holds one component
// of several of them, then the values [key heads, 16 tokens, head width], and, with 8 bits, a scale for each token and
// head of both. What a query finds does not depend on the queries beside it: sums run in the order of the places.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "vectors.h"

namespace daybreak {

constexpr int PAGE = 16;
constexpr int QUERIES = 4;  // that read keys and values together
constexpr int REGISTERS = PAGE / LANES;

enum Stored : int64_t { AS_FLOATS = 0, AS_BFLOATS = 1, AS_EIGHTS = 2 };

struct Heads {
    int64_t heads, key_heads, width;
    int64_t stored;

    int64_t bytes_of_number() const { return stored == AS_FLOATS ? 4 : (stored == AS_BFLOATS ? 2 : 1); }
    int64_t numbers() const { return key_heads * width * PAGE; }
    // Of one layer in a page.
    int64_t bytes() const {
        return 2 * numbers() * bytes_of_number() + (stored == AS_EIGHTS ? 2 * key_heads * PAGE * 4 : 0);
    }
};

inline uint16_t shortened(float value) {  // to bfloat16, to the nearest, of two the even one
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float eighths(const float* values, int64_t count, int8_t* numbers, int64_t stride) {
    float top = 0, poison = 0;
    for (int64_t i = 0; i < count; i++) top = std::max(top, std::fabs(values[i])), poison += values[i] * 0.0f;
    const float factor = top > 0 ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < count; i++) numbers[i * stride] = (int8_t)std::lrint(values[i] * factor);
    return top / 127.0f + poison;
}

// Put a token's key and value [key heads, head width] at its place of a page.
inline void keep(const Heads& heads, char* page, int64_t slot, const float* keys, const float* values) {
    for (int64_t head = 0; head < heads.key_heads; head++) {
        const float *key = keys + head * heads.width, *value = values + head * heads.width;
        const int64_t of_key = head * heads.width * PAGE + slot, of_value = (head * PAGE + slot) * heads.width;
        if (heads.stored == AS_FLOATS) {
            float* all = reinterpret_cast<float*>(page);
            for (int64_t d = 0; d < heads.width; d++) all[of_key + d * PAGE] = key[d];
            std::memcpy(all + heads.numbers() + of_value, value, heads.width * sizeof(float));
        } else if (heads.stored == AS_BFLOATS) {
            uint16_t* all = reinterpret_cast<uint16_t*>(page);
            for (int64_t d = 0; d < heads.width; d++) all[of_key + d * PAGE] = shortened(key[d]);
            for (int64_t d = 0; d < heads.width; d++) all[heads.numbers() + of_value + d] = shortened(value[d]);
        } else {
            int8_t* all = reinterpret_cast<int8_t*>(page);
            float* scales = reinterpret_cast<float*>(page + 2 * heads.numbers()) + head * PAGE + slot;
            scales[0] = eighths(key, heads.width, all + of_key, PAGE);
            scales[heads.key_heads * PAGE] = eighths(value, heads.width, all + heads.numbers() + of_value, 1);
        }
    }
}

template <class Number>
constexpr bool SCALED = sizeof(Number) == 1;

template <int Q>
constexpr int SIDE_BY_SIDE = std::max(1, (Q == 1 ? 4 : 2) / REGISTERS);  // pages: enough sums that none waits for another

// The pages of a text, as one layer and head sees them.
template <class Number>
struct PagesOfHead {
    const int64_t* addresses;  // by place / PAGE
    int64_t offset, of_numbers, of_scales;

    const Number* numbers(int64_t page) const {
        return reinterpret_cast<const Number*>(addresses[page] + offset) + of_numbers;
    }
    const float* scales(int64_t page) const {
        return reinterpret_cast<const float*>(addresses[page] + offset + of_scales);
    }
};

// Products of Q queries with the 16 keys of each of P pages from `page` on: [Q, P * PAGE], `row` apart in `scores`.
template <class Number, int Q, int P>
inline void products(const float* const* queries, const PagesOfHead<Number>& keys, int64_t page, int64_t width, float factor,
                     float* scores, int64_t row) {
    Vector own[Q][P][REGISTERS] = {};
    const Number* numbers[P];
    for (int p = 0; p < P; p++) numbers[p] = keys.numbers(page + p);
    for (int64_t d = 0; d < width; d++) {
        Vector key[P][REGISTERS];
#pragma GCC unroll 8
        for (int p = 0; p < P; p++)
#pragma GCC unroll 4
            for (int part = 0; part < REGISTERS; part++) key[p][part] = held(load(numbers[p] + d * PAGE + part * LANES));
#pragma GCC unroll 8
        for (int q = 0; q < Q; q++) {
            const Vector query = all(queries[q][d]);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++)
#pragma GCC unroll 4
                for (int part = 0; part < REGISTERS; part++)
                    own[q][p][part] = fused(key[p][part], query, own[q][p][part]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int p = 0; p < P; p++)
            for (int part = 0; part < REGISTERS; part++) {
                Vector found = own[q][p][part] * factor;
                if (SCALED<Number>) found *= load(keys.scales(page + p) + part * LANES);
                store(scores + q * row + p * PAGE + part * LANES, found);
            }
}

// Values from place `first` up to `last`, weighted and added up in this order, for V registers of the width from `d` on
// (or `count` numbers of one): Q results. `weights` [Q, places], `row` apart, begin at place `from`.
template <class Number, int Q, int V>
inline void weighted(const float* weights, int64_t row, int64_t from, const PagesOfHead<Number>& values, int64_t first,
                     int64_t last, int64_t width, int64_t d, float* const* results, int64_t count) {
    Vector own[Q][V] = {};
    for (int64_t page = first / PAGE; page * PAGE < last; page++) {
        const int64_t begin = std::max(first, page * PAGE), end = std::min(last, page * PAGE + PAGE);
        const Number* numbers = values.numbers(page) + d - page * PAGE * width;
        const float* scales = values.scales(page) - page * PAGE;
        for (int64_t j = begin; j < end; j++) {
            Vector value[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                const Number* place = numbers + j * width + v * LANES;
                value[v] = count < LANES ? load(place, count) : load(place);
                if (SCALED<Number>) value[v] *= scales[j];
                value[v] = held(value[v]);
            }
#pragma GCC unroll 8
            for (int q = 0; q < Q; q++) {
                const Vector weight = all(weights[q * row + j - from]);
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) own[q][v] = fused(value[v], weight, own[q][v]);
            }
        }
    }
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++)
            if (count < LANES) store(results[q] + d, own[q][v], count);
            else store(results[q] + d + v * LANES, own[q][v]);
}

// e^(score - largest) in place; returns their sum.
inline float soften(float* scores, int64_t count) {
    Vector most = all(-std::numeric_limits<float>::infinity()), total = {};
    for (int64_t j = 0; j < count; j += LANES) most = larger(load(scores + j), most);
    const float top = largest(most);
    for (int64_t j = 0; j < count; j += LANES) {
        const Vector found = exponential(load(scores + j) - top);
        store(scores + j, found);
        total += found;
    }
    return sum(total);
}

struct Query {
    int64_t place;        // in its text
    int64_t first, last;  // of the keys that it sees: from, and up to but not with
};

// Q queries of one text and head; `pages` are the layer's, by place / 16; `scores` has room for Q rows of keys.
template <class Number, int Q>
void attend(const Heads& heads, int64_t head, const Query* asked, const float* const* queries, const int64_t* pages,
            int64_t offset, float factor, float slope, float* scores, float* const* results) {
    int64_t first = asked[0].first, last = asked[0].last;
    for (int q = 1; q < Q; q++) first = std::min(first, asked[q].first), last = std::max(last, asked[q].last);
    const int64_t from = first / PAGE * PAGE, row = (last - from + PAGE - 1) / PAGE * PAGE;
    const int64_t key_head = head / (heads.heads / heads.key_heads), width = heads.width;
    const int64_t of_head = key_head * width * PAGE, of_scales = 2 * heads.numbers() * sizeof(Number);
    const int64_t before = key_head * PAGE * sizeof(float), half = heads.key_heads * PAGE * sizeof(float);
    const PagesOfHead<Number> keys{pages, offset, of_head, of_scales + before};
    const PagesOfHead<Number> values{pages, offset, heads.numbers() + of_head, of_scales + half + before};
    constexpr int P = SIDE_BY_SIDE<Q>, HALF = std::max(1, P / 2);
    int64_t at = 0;
    for (; at + P * PAGE <= row; at += P * PAGE)
        products<Number, Q, P>(queries, keys, (from + at) / PAGE, width, factor, scores + at, row);
    for (; at + HALF * PAGE <= row; at += HALF * PAGE)
        products<Number, Q, HALF>(queries, keys, (from + at) / PAGE, width, factor, scores + at, row);
    if (at < row) products<Number, Q, 1>(queries, keys, (from + at) / PAGE, width, factor, scores + at, row);
    float totals[Q];
    for (int q = 0; q < Q; q++) {
        float* own = scores + q * row;
        if (slope != 0.0f)
            for (int64_t j = 0; j < row; j++) own[j] += slope * (float)(int32_t)(from + j - asked[q].place);
        std::fill(own, own + (asked[q].first - from), -std::numeric_limits<float>::infinity());
        std::fill(own + (asked[q].last - from), own + row, -std::numeric_limits<float>::infinity());
        totals[q] = soften(own, row);
    }
    constexpr int V = 4;
    int64_t d = 0;
    for (; d + V * LANES <= width; d += V * LANES)
        weighted<Number, Q, V>(scores, row, from, values, first, last, width, d, results, LANES);
    for (; d + LANES <= width; d += LANES)
        weighted<Number, Q, 1>(scores, row, from, values, first, last, width, d, results, LANES);
    if (d < width) weighted<Number, Q, 1>(scores, row, from, values, first, last, width, d, results, width - d);
    for (int q = 0; q < Q; q++)
        for (int64_t d = 0; d < width; d++) results[q][d] /= totals[q];
}

}  // namespace daybreak
