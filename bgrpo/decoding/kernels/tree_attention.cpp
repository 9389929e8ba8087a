// Attention of the rows of search trees: each row attends to its prompt, which all rows of the prompt share, and to its
// own path of nodes. Exact softmax over both. Keys and values are kept as `Kept`, fp32 or bf16 (the upper half of an fp32);
// all arithmetic is fp32. A layer may cap its scores, and may see no further back than a window. Scores of the path may get
// a bias for each head and place; prompts may be empty, and so may paths (`depth` 0: nothing is stored).
//
// Rows of one prompt that read the same key-value head are taken together: scores and outputs over the prompt are
// register-blocked matrix products, the path is read node by node. Vectors are the machine's: a wider one would be split
// into pieces that lie in memory instead of registers. Head width is padded to a multiple of 16 by zeros (`width`).

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int PADDING = 16;     // floats to a multiple of which widths and numbers of scores are padded
#if defined(__AVX512F__)
constexpr int LANES = 16;       // floats of a vector
constexpr int BLOCK_VECTORS = 4;  // vectors of each of a block's rows: 24 sums in 32 registers
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int BLOCK_VECTORS = 4;
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#else
constexpr int LANES = 8;
constexpr int BLOCK_VECTORS = 2;  // 12 sums in 16 registers
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#endif
constexpr int BLOCK_ROWS = 6;   // rows whose sums are held in registers
constexpr int PANEL_ROWS = 30;  // rows that use a tile of keys or values while it is in the first-level cache
constexpr int TILE = 64;        // prompt places in a tile
constexpr int STEP = 4;         // products of a row between two requests for memory
using Vector = float __attribute__((vector_size(LANES * sizeof(float))));
using Integers = int32_t __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vector load(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Vector load(const uint16_t* from) {
#ifdef __AVX512F__  // one instruction, which the compiler does not find
    const __m512i bits =
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))), 16);
#elif defined(__AVX2__)
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), 16);
#else
    uint16_t __attribute__((vector_size(LANES * sizeof(uint16_t)))) halves;
    std::memcpy(&halves, from, sizeof halves);
    const Integers bits = __builtin_convertvector(halves, Integers) << 16;
#endif
    Vector value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Round to what is kept: to nearest, ties to even; NaN stays NaN.
inline void keep(float* to, float value) { *to = value; }

inline void keep(uint16_t* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    *to = value != value ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

inline Vector broadcast(float value) { return Vector{} + value; }

inline float sum(Vector value) {
    float parts[LANES];
    store(parts, value);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
    return parts[0];
}

// Sums of neighbouring lanes: those of `a`, then those of `b`.
inline Vector add_neighbours(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, EVEN_LANES) + __builtin_shufflevector(a, b, ODD_LANES);
}

// Lane i of the result is the sum of values[i].
inline Vector sums_of(Vector (&values)[LANES]) {
    for (int count = LANES / 2; count; count /= 2)
        for (int i = 0; i < count; ++i) values[i] = add_neighbours(values[2 * i], values[2 * i + 1]);
    return values[0];
}

// exp(x) for x <= 0, relative error below 2e-7; 0 where x is below -87 (also for -infinity).
inline Vector exp_nonpositive(Vector x) {
    const Vector lowest = broadcast(-87.0f);
    const Integers is_zero = x < lowest;
    x = is_zero ? lowest : x;
    const Vector shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vector rounded = x * 1.44269504f + shifter;
    const Vector n = rounded - shifter;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Integers bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    bits = (bits - 0x4B400000 + 127) << 23;
    Vector scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return is_zero ? Vector{} : p * scale;
}

// The keys or values of all nodes of a prompt and head. Nodes lie in chunks; `places` says how many bytes each node is from
// the first one.
template <typename Kept>
struct Nodes {
    Kept* first;
    const int64_t* places;

    Kept* operator[](int32_t node) const {
        return reinterpret_cast<Kept*>(reinterpret_cast<uintptr_t>(first) + static_cast<uintptr_t>(places[node]));
    }
};

// What is needed soon, asked for a little at a time while there is arithmetic to do: lines that follow each other (the
// next tile) and nodes. All at once would wait for the memory.
template <typename Kept>
struct Ahead {
    static constexpr int64_t LINE = 64 / sizeof(Kept);
    const Kept* lines;
    int64_t lines_per_step;
    Nodes<Kept> store;
    const int32_t* nodes;
    int64_t nodes_per_step, width;

    void step() {
        for (int64_t i = 0; i < lines_per_step; ++i, lines += LINE) __builtin_prefetch(lines, 0, 2);
        for (int64_t i = 0; i < nodes_per_step; ++i, ++nodes)
            for (int64_t d = 0; d < width; d += LINE) __builtin_prefetch(store[*nodes] + d, 0, 2);
    }
};

// scores[r][0 .. LANES V) = queries[r] . keys, keys transposed [width][TILE]
template <typename Kept, int R, int V>
inline void score_columns(const float* queries, int64_t width, const Kept* keys, float* scores, int64_t score_stride,
                          const Ahead<Kept>& requests) {
    Ahead<Kept> ahead = requests;
    Vector sums[R][V] = {};
    for (int64_t chunk = 0; chunk < width; chunk += STEP) {
        ahead.step();
        for (int64_t d = chunk; d < chunk + STEP; ++d) {
            Vector key[V];
            for (int v = 0; v < V; ++v) key[v] = load(keys + d * TILE + v * LANES);
            for (int r = 0; r < R; ++r) {
                const Vector query = broadcast(queries[r * width + d]);
                for (int v = 0; v < V; ++v) sums[r][v] += query * key[v];
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store(scores + r * score_stride + v * LANES, sums[r][v]);
}

// Of the first `places` of a tile, a multiple of LANES.
template <typename Kept, int R>
void score_tile(const float* queries, int64_t width, const Kept* keys, int64_t places, float* scores,
                int64_t score_stride, const Ahead<Kept>& requests) {
    int64_t p = 0;
    const auto once = [&] { return p ? Ahead<Kept>{} : requests; };
    for (; p + BLOCK_VECTORS * LANES <= places; p += BLOCK_VECTORS * LANES)
        score_columns<Kept, R, BLOCK_VECTORS>(queries, width, keys + p, scores + p, score_stride, once());
    if constexpr (BLOCK_VECTORS > 2)
        for (; p + 2 * LANES <= places; p += 2 * LANES)
            score_columns<Kept, R, 2>(queries, width, keys + p, scores + p, score_stride, once());
    for (; p < places; p += LANES)
        score_columns<Kept, R, 1>(queries, width, keys + p, scores + p, score_stride, once());
}

// outputs[r][0 .. LANES V) += sum over places of weights[r][place] * values[place]
template <typename Kept, int R, int V>
inline void mix_columns(const float* weights, int64_t weight_stride, const Kept* values, int64_t width, int64_t places,
                        float* outputs, const Ahead<Kept>& requests) {
    Ahead<Kept> ahead = requests;
    Vector sums[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sums[r][v] = load(outputs + r * width + v * LANES);
    for (int64_t p = 0; p < places; ++p) {
        if (p % STEP == 0) ahead.step();
        Vector value[V];
        for (int v = 0; v < V; ++v) value[v] = load(values + p * width + v * LANES);
        for (int r = 0; r < R; ++r) {
            const Vector weight = broadcast(weights[r * weight_stride + p]);
            for (int v = 0; v < V; ++v) sums[r][v] += weight * value[v];
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store(outputs + r * width + v * LANES, sums[r][v]);
}

template <typename Kept, int R>
void mix_tile(const float* weights, int64_t weight_stride, const Kept* values, int64_t width, int64_t places,
              float* outputs, const Ahead<Kept>& requests) {
    int64_t d = 0;
    const auto once = [&] { return d ? Ahead<Kept>{} : requests; };
    for (; d + BLOCK_VECTORS * LANES <= width; d += BLOCK_VECTORS * LANES)
        mix_columns<Kept, R, BLOCK_VECTORS>(weights, weight_stride, values + d, width, places, outputs + d, once());
    if constexpr (BLOCK_VECTORS > 2)
        for (; d + 2 * LANES <= width; d += 2 * LANES)
            mix_columns<Kept, R, 2>(weights, weight_stride, values + d, width, places, outputs + d, once());
    for (; d < width; d += LANES)
        mix_columns<Kept, R, 1>(weights, weight_stride, values + d, width, places, outputs + d, once());
}

// Writes whole vectors of scores: `scores` has room for one more.
template <typename Kept, int V>
inline void score_path(const float* query, Nodes<Kept> keys, const int32_t* path, int64_t length, float* scores) {
    Vector part[V];
    for (int v = 0; v < V; ++v) part[v] = load(query + v * LANES);
    for (int64_t j = 0; j < length; j += LANES) {
        Vector products[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
            const Kept* key = keys[path[j + i < length ? j + i : length - 1]];
            Vector total = part[0] * load(key);
            for (int v = 1; v < V; ++v) total += part[v] * load(key + v * LANES);
            products[i] = total;
        }
        store(scores + j, sums_of(products));
    }
}

template <typename Kept, int V>
inline void mix_path(const float* weights, Nodes<Kept> values, int64_t offset, const int32_t* path, int64_t length,
                     float* output) {
    Vector sums[V];
    for (int v = 0; v < V; ++v) sums[v] = load(output + v * LANES);
    for (int64_t j = 0; j < length; ++j) {
        const Vector weight = broadcast(weights[j]);
        const Kept* value = values[path[j]] + offset;
        for (int v = 0; v < V; ++v) sums[v] += weight * load(value + v * LANES);
    }
    for (int v = 0; v < V; ++v) store(output + v * LANES, sums[v]);
}

template <typename Kept>
void score_any_path(const float* query, Nodes<Kept> keys, int64_t width, const int32_t* path, int64_t length,
                    float* scores) {
    constexpr int V = PADDING / LANES;
    switch (width / PADDING) {
        case 1: return score_path<Kept, 1 * V>(query, keys, path, length, scores);
        case 2: return score_path<Kept, 2 * V>(query, keys, path, length, scores);
        case 4: return score_path<Kept, 4 * V>(query, keys, path, length, scores);
        case 8: return score_path<Kept, 8 * V>(query, keys, path, length, scores);
    }
    for (int64_t j = 0; j < length; ++j) {
        Vector total{};
        for (int64_t d = 0; d < width; d += LANES) total += load(query + d) * load(keys[path[j]] + d);
        scores[j] = sum(total);
    }
}

template <typename Kept>
void mix_any_path(const float* weights, Nodes<Kept> values, int64_t width, const int32_t* path, int64_t length,
                  float* output) {
    int64_t d = 0;
    for (; d + 8 * LANES <= width; d += 8 * LANES) mix_path<Kept, 8>(weights, values, d, path, length, output + d);
    for (; d + 4 * LANES <= width; d += 4 * LANES) mix_path<Kept, 4>(weights, values, d, path, length, output + d);
    for (; d + 2 * LANES <= width; d += 2 * LANES) mix_path<Kept, 2>(weights, values, d, path, length, output + d);
    for (; d < width; d += LANES) mix_path<Kept, 1>(weights, values, d, path, length, output + d);
}

// cap * tanh(score / cap), in place, of `count` scores that are followed by room for a vector. Near 0 by the series, where
// the quotient of exponentials would lose digits.
void soften_peaks(float* scores, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i += LANES) {
        const Vector x = load(scores + i) * (1 / cap);
        const Integers negative = x < Vector{};
        const Vector size = negative ? -x : x;
        const Vector power = exp_nonpositive(size * -2.0f);
        const Vector far = (1.0f - power) / (1.0f + power);
        const Vector square = x * x;
        Vector near = broadcast(-0.0539682540f);
        near = near * square + 0.133333333f;
        near = near * square - 0.333333333f;
        near = (near * square + 1.0f) * size;
        const Integers is_near = size < broadcast(0.2f);
        const Vector tanh = is_near ? near : far;
        store(scores + i, (negative ? -tanh : tanh) * cap);
    }
}

// Turns scores into weights exp(score - largest), in place; returns their sum. `count` is followed by room for a vector.
float soften(float* scores, int64_t count) {
    for (int64_t i = count; i % LANES; ++i) scores[i] = -std::numeric_limits<float>::infinity();
    Vector largest = load(scores);
    for (int64_t i = LANES; i < count; i += LANES) {
        const Vector here = load(scores + i);
        largest = here > largest ? here : largest;
    }
    float top = largest[0];
    for (int lane = 1; lane < LANES; ++lane) top = largest[lane] > top ? largest[lane] : top;
    Vector total{};
    for (int64_t i = 0; i < count; i += LANES) {
        const Vector weight = exp_nonpositive(load(scores + i) - top);
        store(scores + i, weight);
        total += weight;
    }
    return sum(total);
}

// The products of any number of rows up to BLOCK_ROWS.
template <typename Kept>
struct Products {
    using ScoreTile = void (*)(const float*, int64_t, const Kept*, int64_t, float*, int64_t, const Ahead<Kept>&);
    using MixTile = void (*)(const float*, int64_t, const Kept*, int64_t, int64_t, float*, const Ahead<Kept>&);
    static constexpr ScoreTile SCORE[BLOCK_ROWS] = {score_tile<Kept, 1>, score_tile<Kept, 2>, score_tile<Kept, 3>,
                                                    score_tile<Kept, 4>, score_tile<Kept, 5>, score_tile<Kept, 6>};
    static constexpr MixTile MIX[BLOCK_ROWS] = {mix_tile<Kept, 1>, mix_tile<Kept, 2>, mix_tile<Kept, 3>,
                                                mix_tile<Kept, 4>, mix_tile<Kept, 5>, mix_tile<Kept, 6>};
};

// Asks for the tiles that are needed next, and for the nodes, while there are products to make.
template <typename Kept>
class Requests {
  public:
    // `calls`: products with each tile, each of `steps` steps.
    Requests(Nodes<Kept> store, const std::vector<int32_t>& nodes, int64_t width, int64_t calls, int64_t steps)
        : steps_(steps), lines_per_step_((width * TILE / LINE + calls * steps - 1) / (calls * steps)), width_(width),
          store_(store), node_(nodes.data()), last_node_(nodes.data() + nodes.size()) {}

    void start_tile(const Kept* next) {
        line_ = next;
        last_line_ = next + width_ * TILE;
    }

    Ahead<Kept> take() {
        Ahead<Kept> ahead{line_, 0, store_, node_, 0, width_};
        if (line_ < last_line_) {
            ahead.lines_per_step = lines_per_step_;
            line_ += steps_ * lines_per_step_ * LINE;
        }
        if (last_node_ - node_ >= steps_) {
            ahead.nodes_per_step = 1;
            node_ += steps_;
        }
        return ahead;
    }

  private:
    static constexpr int64_t LINE = Ahead<Kept>::LINE;
    int64_t steps_, lines_per_step_, width_;
    Nodes<Kept> store_;
    const Kept *line_ = nullptr, *last_line_ = nullptr;
    const int32_t *node_, *last_node_;
};

// The nodes on any of the rows' paths, each once.
void collect_nodes(const int32_t* paths, int64_t rows, int64_t stride, int64_t depth, int64_t nodes,
                   std::vector<char>& seen, std::vector<int32_t>& found) {
    seen.assign(nodes, 0);
    found.clear();
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t j = 0; j < depth; ++j) {
            const int32_t node = paths[row * stride + j];
            if (!seen[node]) {
                seen[node] = 1;
                found.push_back(node);
            }
        }
}

inline int64_t padded(int64_t count) { return (count + PADDING - 1) / PADDING * PADDING; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

}  // namespace

extern "C" {

struct TreeAttention {
    // new rows, [rows, heads, head width] with strides of rows and heads in floats
    const float *query, *key, *value;
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;
    float* output;                  // [rows, query heads, head width]
    // the store
    const void* prompt_keys;        // [prompts, key heads, prompt places / TILE, width, TILE]
    const void* prompt_values;      // [prompts, key heads, prompt places, width]
    void *const *node_keys, *const *node_values;  // chunks: [prompts, key heads, chunk, width] each
    const int32_t* prompt_lengths;  // [prompts]
    const int32_t* first_rows;      // [prompts + 1]: rows of a prompt follow each other
    const int32_t* paths;           // [rows, path_stride]: nodes of the row from the root on, its own last
    const float* bias;              // [heads, depth]: added to the scores of a path's nodes; null: nothing
    int64_t prompts, heads, key_heads, head_width, width, places, chunks, chunk, path_stride;
    int64_t depth;                  // nodes on each row's path
    int64_t window;                 // places that a row sees, its own the last of them; 0: all
    float scale;
    float cap;                      // of scores; 0: none
    int32_t threads;
    int32_t halves;                 // keys and values are kept in bf16
};

}  // extern "C"

namespace {

// How many bytes each node is from the first one, for any prompt and head.
std::vector<int64_t> node_places(void* const* chunks, int64_t count, int64_t size, int64_t bytes) {
    std::vector<int64_t> places;
    places.reserve(count * size);
    for (int64_t chunk = 0; chunk < count; ++chunk) {
        const auto from = reinterpret_cast<uintptr_t>(chunks[chunk]) - reinterpret_cast<uintptr_t>(chunks[0]);
        for (int64_t i = 0; i < size; ++i) places.push_back(static_cast<int64_t>(from + i * bytes));
    }
    return places;
}

// Attention of the rows of prompt `g` with key-value head `h`; `found` are the nodes on their paths.
template <typename Kept>
void attend(const TreeAttention* a, int64_t g, int64_t h, const int64_t* key_places, const int64_t* value_places,
            const std::vector<int32_t>& found) {
    const int64_t shared = a->heads / a->key_heads;
    const int64_t first = a->first_rows[g], count = a->first_rows[g + 1] - first;
    if (!count) return;
    const int64_t first_node = (g * a->key_heads + h) * a->chunk * a->width;
    Nodes<Kept> node_keys{nullptr, key_places}, node_values{nullptr, value_places};
    if (a->depth) {
        node_keys.first = static_cast<Kept*>(a->node_keys[0]) + first_node;
        node_values.first = static_cast<Kept*>(a->node_values[0]) + first_node;
    }
    for (int64_t row = first; row < first + count && a->depth; ++row) {
        const int32_t own = a->paths[row * a->path_stride + a->depth - 1];
        const float* key = a->key + row * a->key_row + h * a->key_head;
        const float* value = a->value + row * a->value_row + h * a->value_head;
        Kept *to_key = node_keys[own], *to_value = node_values[own];
        for (int64_t d = 0; d < a->head_width; ++d) keep(to_key + d, key[d]);
        for (int64_t d = 0; d < a->head_width; ++d) keep(to_value + d, value[d]);
    }
    const int64_t tiles = a->places / TILE, tile_size = a->width * TILE;
    const Kept* prompt_keys = static_cast<const Kept*>(a->prompt_keys) + (g * a->key_heads + h) * tiles * tile_size;
    const Kept* prompt_values = static_cast<const Kept*>(a->prompt_values) + (g * a->key_heads + h) * tiles * tile_size;
    const int64_t length = a->prompt_lengths[g];
    // all rows stand at the same place after the prompt, so all see from the same place on
    const int64_t from = a->window ? larger(0, length + a->depth - a->window) : 0;
    const int64_t start_place = smaller(from / TILE * TILE, length);  // of the first tile that is read
    const int64_t score_stride = padded(length) + padded(a->depth) + PADDING;
    static thread_local std::vector<float> scratch;
    scratch.resize(PANEL_ROWS * (score_stride + 2 * a->width));
    float* scores = scratch.data();
    float* queries = scores + PANEL_ROWS * score_stride;
    float* outputs = queries + PANEL_ROWS * a->width;
    for (int64_t start = 0; start < count * shared; start += PANEL_ROWS) {
        const int64_t rows = smaller(PANEL_ROWS, count * shared - start);
        const int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t row = first + (start + r) / shared, head = h * shared + (start + r) % shared;
            const float* query = a->query + row * a->query_row + head * a->query_head;
            for (int64_t d = 0; d < a->head_width; ++d) queries[r * a->width + d] = query[d] * a->scale;
            for (int64_t d = a->head_width; d < a->width; ++d) queries[r * a->width + d] = 0;
        }
        Requests<Kept> key_requests(node_keys, found, a->width, blocks, a->width / STEP);
        for (int64_t p = start_place; p < length; p += TILE) {
            const int64_t places = padded(smaller(TILE, length - p));
            key_requests.start_tile(prompt_keys + (p + TILE) * a->width);
            for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
                Products<Kept>::SCORE[smaller(BLOCK_ROWS, rows - r) - 1](
                    queries + r * a->width, a->width, prompt_keys + p * a->width, places,
                    scores + r * score_stride + p, score_stride, key_requests.take());
        }
        float sums[PANEL_ROWS];
        for (int64_t r = 0; r < rows; ++r) {
            const int32_t* path = a->paths + (first + (start + r) / shared) * a->path_stride;
            float* own = scores + r * score_stride;
            score_any_path(queries + r * a->width, node_keys, a->width, path, a->depth, own + length);
            if (a->bias) {
                const float* bias = a->bias + (h * shared + (start + r) % shared) * a->depth;
                for (int64_t j = 0; j < a->depth; ++j) own[length + j] += bias[j];
            }
            const int64_t read = length + a->depth - start_place;
            if (a->cap > 0) soften_peaks(own + start_place, read, a->cap);
            std::fill(own + start_place, own + from, -std::numeric_limits<float>::infinity());
            sums[r] = soften(own + start_place, read);
        }
        std::memset(outputs, 0, rows * a->width * sizeof(float));
        Requests<Kept> value_requests(node_values, found, a->width, blocks, TILE / STEP);
        for (int64_t p = start_place; p < length; p += TILE) {
            value_requests.start_tile(prompt_values + (p + TILE) * a->width);
            for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
                Products<Kept>::MIX[smaller(BLOCK_ROWS, rows - r) - 1](
                    scores + r * score_stride + p, score_stride, prompt_values + p * a->width, a->width,
                    smaller(TILE, length - p), outputs + r * a->width, value_requests.take());
        }
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t row = first + (start + r) / shared, head = h * shared + (start + r) % shared;
            float* own = outputs + r * a->width;
            mix_any_path(scores + r * score_stride + length, node_values, a->width,
                         a->paths + row * a->path_stride, a->depth, own);
            float* to = a->output + (row * a->heads + head) * a->head_width;
            const float scale = 1 / sums[r];
            for (int64_t d = 0; d < a->head_width; ++d) to[d] = own[d] * scale;
        }
    }
}

}  // namespace

// Put the new rows' keys and values into their nodes, then attend.
extern "C" void bgrpo_tree_attention(const TreeAttention* a) {
    const int64_t bytes = a->width * (a->halves ? sizeof(uint16_t) : sizeof(float));
    const std::vector<int64_t> key_places = node_places(a->node_keys, a->chunks, a->chunk, bytes);
    const std::vector<int64_t> value_places = node_places(a->node_values, a->chunks, a->chunk, bytes);
    const auto attend_kept = a->halves ? attend<uint16_t> : attend<float>;
#pragma omp parallel num_threads(a->threads) if (a->threads > 1)
    {
        std::vector<char> seen;
        std::vector<int32_t> found;
        int64_t found_for = -1;
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t g = 0; g < a->prompts; ++g) {
            for (int64_t h = 0; h < a->key_heads; ++h) {
                if (found_for != g) {
                    const int64_t first = a->first_rows[g];
                    collect_nodes(a->paths + first * a->path_stride, a->first_rows[g + 1] - first, a->path_stride,
                                  a->depth, a->chunks * a->chunk, seen, found);
                    found_for = g;
                }
                attend_kept(a, g, h, key_places.data(), value_places.data(), found);
            }
        }
    }
}
