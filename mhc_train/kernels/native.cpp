// The crossing of two sublayers, and Sinkhorn's rounds, on a CPU: one pass over tiles of tokens that stay in its cache.
//
// All numbers are float32. In the crossing a vector holds neighbouring channels of one token, in Sinkhorn the same entry
// of neighbouring tokens. What the operators mean stands in operators.py; names here are those of their arguments.

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

// Blocks of accumulators that fit the registers: 32 wide ones with AVX-512 and on Arm, else 16.
#if defined(__AVX512F__)
constexpr int LANES = 16, FEATURES = 6, VECTORS = 4;
#elif defined(__aarch64__)
constexpr int LANES = 4, FEATURES = 6, VECTORS = 4;
#else
constexpr int LANES = 8, FEATURES = 3, VECTORS = 2;
#endif
constexpr int N = STREAMS;  // given to the compiler, which unrolls all loops over streams
constexpr int ROWS = 4;   // of the tile, at once
constexpr int TILE = 8;   // tokens whose states stay in the cache together
constexpr int PAD = 6;    // features are padded to a multiple of it, so that blocks have no remainder

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// For what nobody reads soon: past the cache, into which its old content need not be fetched. The address is a multiple
// of the vector's size.
inline void stream_out(float* to, Vector value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)value);
#elif defined(__AVX__)
    _mm256_stream_ps(to, (__m256)value);
#else
    store(to, value);
#endif
}

inline Vector all(float value) { return Vector{} + value; }

// The sum of a vector's lanes, half by half, so that halves too are vectors.
template <int COUNT>
inline float sum_lanes(const float* lanes) {
    typedef float Half __attribute__((vector_size(COUNT / 2 * 4), aligned(4)));
    const Half sum = *reinterpret_cast<const Half*>(lanes) + *reinterpret_cast<const Half*>(lanes + COUNT / 2);
    return sum_lanes<COUNT / 2>(reinterpret_cast<const float*>(&sum));
}

template <>
inline float sum_lanes<2>(const float* lanes) {
    return lanes[0] + lanes[1];
}

inline float sum(Vector value) { return sum_lanes<LANES>(reinterpret_cast<const float*>(&value)); }

// Zeros to begin with, aligned so that no vector lies in two lines of the cache.
class Buffer {
    std::vector<Vector> vectors;

  public:
    explicit Buffer(int64_t size) : vectors((size + LANES - 1) / LANES) {}
    float* data() { return reinterpret_cast<float*>(vectors.data()); }
    const float* data() const { return reinterpret_cast<const float*>(vectors.data()); }
    float& operator[](int64_t at) { return data()[at]; }
    float operator[](int64_t at) const { return data()[at]; }
    void clear() { std::fill(vectors.begin(), vectors.end(), Vector{}); }
};

// Calls act on as many threads of the OpenMP runtime that torch computes with, if it is one that can be asked to. Its
// idle threads spin for a while, and other threads would have to share the cores with them.
using Act = void (*)(void*);
bool by_openmp(Act act, void* argument, int64_t threads) {
    using Parallel = void (*)(Act, void*, unsigned threads, unsigned flags);
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    if (parallel) parallel(act, argument, threads, 0);
    return parallel;
}

void by_threads(Act act, void* argument, int64_t threads) {
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        while (int64_t(others.size()) < threads - 1) others.emplace_back(act, argument);
    } catch (const std::system_error&) {  // the system gives no more
    }
    act(argument);
    for (auto& other : others) other.join();
}

// Calls work(part, first, last) for as many parts of 0 .. count as there should be threads, however many there are.
template <class Work>
void in_parallel(int64_t threads, int64_t count, Work work) {
    const int64_t parts = std::max<int64_t>(1, std::min(threads, count));
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    auto take_parts = [&] {
        try {
            for (int64_t part; (part = next++) < parts;) work(part, count * part / parts, count * (part + 1) / parts);
        } catch (...) {  // which would end the process, if it left a thread
            failed = true;
        }
#if defined(__AVX__)
        _mm_sfence();  // what was streamed out is there for whoever waits for this thread
#endif
    };
    const Act act = [](void* take) { (*static_cast<decltype(take_parts)*>(take))(); };
    if (parts == 1) {
        take_parts();
    } else if (!by_openmp(act, &take_parts, parts)) {
        by_threads(act, &take_parts, parts);
    }
    if (failed) throw std::bad_alloc();
}

}  // namespace

// What an operator is called with; operators that lack a half have null pointers there. Mirrored in native.py.
struct Crossing {
    int64_t tokens, width, features, joint, threads;
    float eps, offset;
    const float *state, *output, *post, *res, *weight, *gate, *bias, *pre;
    float *written, *x, *projected, *scale;
    const float *g_written, *g_x, *g_projected;
    float *g_state, *g_output, *g_post, *g_res, *g_weight, *g_gate, *g_bias, *g_pre;
};

namespace {

// Shapes that follow from the arguments: a token has `groups` rows of `length` numbers that are projected by themselves.
struct Layout {
    int64_t size, groups, length, padded;
    explicit Layout(const Crossing& c)
        : size(N * c.width),
          groups(c.joint ? 1 : N),
          length(size / groups),
          padded((c.features + PAD - 1) / PAD * PAD) {}
};

// X'[i] = sum_j res[i, j] X[j] + post[i] y, for one token.
void write_token(const Crossing& c, int64_t token, float* written) {
    const int64_t width = c.width;
    const float* state = c.state + token * N * width;
    if (!c.output) {
        std::memcpy(written, state, N * width * sizeof(float));
        return;
    }
    const float *output = c.output + token * width, *post = c.post + token * N;
    const float* res = c.res ? c.res + token * N * N : nullptr;
    for (int64_t at = 0; at < width; at += LANES) {
        Vector old[N], y = load(output + at);
        for (int j = 0; j < N; ++j) old[j] = load(state + j * width + at);
        for (int i = 0; i < N; ++i) {
            Vector sum = post[i] * y;
            if (res)
                for (int j = 0; j < N; ++j) sum += res[i * N + j] * old[j];
            else
                sum += old[i];
            store(written + i * width + at, sum);
        }
    }
}

// features[row, k] = weight[k] . rows[row], for a tile.
void project(const float* rows, int64_t count, int64_t length, const float* weight, int64_t padded, float* features) {
    for (int64_t row = 0; row < count; row += ROWS)
        for (int64_t k = 0; k < padded; k += FEATURES) {
            Vector sums[ROWS][FEATURES] = {};
            for (int64_t at = 0; at < length; at += LANES) {
                Vector w[FEATURES];
#pragma GCC unroll 8
                for (int f = 0; f < FEATURES; ++f) w[f] = load(weight + (k + f) * length + at);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    Vector v = load(rows + (row + r) * length + at);
#pragma GCC unroll 8
                    for (int f = 0; f < FEATURES; ++f) sums[r][f] += v * w[f];
                }
            }
            for (int r = 0; r < ROWS; ++r)
                for (int f = 0; f < FEATURES; ++f) features[(row + r) * padded + k + f] = sum(sums[r][f]);
        }
}

// 1 / sqrt(mean of the squares + eps).
float inverse_norm(const float* row, int64_t length, float eps) {
    Vector squares[VECTORS] = {};
    int64_t at = 0;
    for (; at + VECTORS * LANES <= length; at += VECTORS * LANES)
        for (int v = 0; v < VECTORS; ++v) {
            Vector value = load(row + at + v * LANES);
            squares[v] += value * value;
        }
    for (; at < length; at += LANES) squares[0] += load(row + at) * load(row + at);
    Vector total = {};
    for (int v = 0; v < VECTORS; ++v) total += squares[v];
    return 1 / std::sqrt(sum(total) / length + eps);
}

// The feature that a read weight is made of: mHC's first n of the whole token, HC's first of each stream.
int64_t read_feature(const Crossing& c, const Layout& layout, int64_t token, int i) {
    return c.joint ? token * layout.padded + i : (token * N + i) * layout.padded;
}

// What bounds it: mHC's sigmoid, with gate and bias inside, HC's tanh.
float squashed(const Crossing& c, float feature, int i) {
    return c.joint ? 1 / (1 + std::exp(-(*c.gate * feature + c.bias[i]))) : std::tanh(feature);
}

void read_weights(const Crossing& c, const Layout& layout, int64_t token, int64_t in_tile, const float* features, float* pre) {
    for (int i = 0; i < N; ++i) {
        if (c.pre) {
            pre[i] = c.pre[token * N + i];
            continue;
        }
        const float inside = squashed(c, features[read_feature(c, layout, in_tile, i)], i);
        pre[i] = c.joint ? inside + c.offset : *c.gate * inside + c.bias[i];
    }
}

// x = sum_i pre[i] X'[i], for one token.
void read_token(const float* written, const float* pre, int64_t width, float* x) {
    for (int64_t at = 0; at < width; at += LANES) {
        Vector sum = {};
        for (int i = 0; i < N; ++i) sum += pre[i] * load(written + i * width + at);
        store(x + at, sum);
    }
}

// A tile's written states, and zeros where there are no more tokens.
void write_tile(const Crossing& c, int64_t first, int64_t count, int64_t size, float* written) {
    for (int64_t t = 0; t < count; ++t) write_token(c, first + t, written + t * size);
    std::memset(written + count * size, 0, (TILE - count) * size * sizeof(float));
}

// The weight with zeros below it, up to the padded number of features.
Buffer padded_weight(const Crossing& c, const Layout& layout) {
    Buffer weight(layout.padded * layout.length);
    if (c.weight) std::memcpy(weight.data(), c.weight, c.features * layout.length * sizeof(float));
    return weight;
}

void cross_tile(const Crossing& c, const Layout& layout, const float* weight, int64_t first, float* written, float* features) {
    const int64_t count = std::min<int64_t>(TILE, c.tokens - first);
    write_tile(c, first, count, layout.size, written);
    if (c.output)
        for (int64_t at = 0; at < count * layout.size; at += LANES)
            stream_out(c.written + first * layout.size + at, load(written + at));
    if (c.weight) {
        project(written, TILE * layout.groups, layout.length, weight, layout.padded, features);
        for (int64_t row = 0; row < count * layout.groups; ++row) {
            const float scale = inverse_norm(written + row * layout.length, layout.length, c.eps);
            const int64_t at = first * layout.groups + row;
            c.scale[at] = scale;
            for (int64_t k = 0; k < c.features; ++k)
                c.projected[at * c.features + k] = features[row * layout.padded + k] *= scale;
        }
    }
    if (c.x)
        for (int64_t t = 0; t < count; ++t) {
            float pre[N];
            read_weights(c, layout, first + t, t, features, pre);
            read_token(written + t * layout.size, pre, c.width, c.x + (first + t) * c.width);
        }
}

void cross_forward(const Crossing& c) {
    const Layout layout(c);
    const Buffer weight = padded_weight(c, layout);
    in_parallel(c.threads, (c.tokens + TILE - 1) / TILE, [&](int64_t, int64_t begin, int64_t end) {
        Buffer written(TILE * layout.size), features(TILE * layout.groups * layout.padded);
        for (int64_t tile = begin; tile < end; ++tile)
            cross_tile(c, layout, weight.data(), tile * TILE, written.data(), features.data());
    });
}

// What a thread adds up over its tokens, and what it needs for a tile.
struct Workspace {
    Buffer written, gradient, features, g_features, shrink, pre, g_weight;
    std::vector<double> g_bias;
    double g_gate = 0;
    explicit Workspace(const Crossing& c, const Layout& l)
        : written(TILE * l.size),
          gradient(TILE * l.size),
          features(TILE * l.groups * l.padded),
          g_features(TILE * l.groups * l.padded),
          shrink(TILE * l.groups),
          pre(TILE * N),
          g_weight(c.weight ? l.padded * l.length : 0),
          g_bias(N) {}
};

// The gradient of the read weights, on to the features that they are made of.
void read_weights_backward(const Crossing& c, const Layout& layout, int64_t token, int64_t in_tile, Workspace& work) {
    const float *written = work.written.data() + in_tile * layout.size, *g_x = c.g_x + token * c.width;
    Vector sums[N] = {};
    for (int64_t at = 0; at < c.width; at += LANES)
        for (int i = 0; i < N; ++i) sums[i] += load(written + i * c.width + at) * load(g_x + at);
    for (int i = 0; i < N; ++i) {
        const float g_pre = sum(sums[i]);
        if (c.pre) {
            c.g_pre[token * N + i] = g_pre;
            continue;
        }
        const int64_t at = read_feature(c, layout, in_tile, i);
        const float feature = work.features[at], inside = squashed(c, feature, i);
        // mHC's gate is inside of the sigmoid, HC's outside of the tanh.
        const float g_logit = c.joint ? g_pre * inside * (1 - inside) : g_pre;
        work.g_bias[i] += g_logit;
        work.g_gate += double(g_logit) * (c.joint ? feature : inside);
        work.g_features[at] += *c.gate * (c.joint ? g_logit : g_pre * (1 - inside * inside));
    }
}

// Gradients of what is projected before the norm divides it: f = s W v with s = (mean v^2 + eps)^(-1/2), hence
// ds = -s^3 v.dv / length, which shrinks the gradient of v along v.
void features_backward(const Crossing& c, const Layout& layout, int64_t first, int64_t count, Workspace& work) {
    for (Buffer* buffer : {&work.features, &work.g_features, &work.shrink}) buffer->clear();
    for (int64_t row = 0; c.weight && row < count * layout.groups; ++row)
        for (int64_t k = 0; k < c.features; ++k) {
            const int64_t at = (first * layout.groups + row) * c.features + k;
            work.features[row * layout.padded + k] = c.projected[at];
            if (c.g_projected) work.g_features[row * layout.padded + k] = c.g_projected[at];
        }
    for (int64_t t = 0; c.g_x && t < count; ++t) {
        read_weights(c, layout, first + t, t, work.features.data(), work.pre.data() + t * N);
        read_weights_backward(c, layout, first + t, t, work);
    }
    for (int64_t row = 0; c.weight && row < count * layout.groups; ++row) {
        const float scale = c.scale[first * layout.groups + row];
        float along = 0;
        for (int64_t at = row * layout.padded; at < row * layout.padded + c.features; ++at) {
            along += work.g_features[at] * work.features[at];
            work.g_features[at] *= scale;
        }
        work.shrink[row] = -along * scale * scale / layout.length;
    }
}

// gradient[row] += sum_k g_features[row, k] weight[k], for the vectors from `at` on.
template <int COUNT>
void spread(const float* g_features, int64_t rows, int64_t length, const float* weight, int64_t padded, int64_t at, float* gradient) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        Vector sums[ROWS][COUNT];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < COUNT; ++v) sums[r][v] = load(gradient + (row + r) * length + at + v * LANES);
        for (int64_t k = 0; k < padded; ++k) {
            Vector w[COUNT];
#pragma GCC unroll 8
            for (int v = 0; v < COUNT; ++v) w[v] = load(weight + k * length + at + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < COUNT; ++v) sums[r][v] += g_features[(row + r) * padded + k] * w[v];
        }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < COUNT; ++v) store(gradient + (row + r) * length + at + v * LANES, sums[r][v]);
    }
}

// g_weight[k] += sum_row g_features[row, k] rows[row], for the vectors from `at` on.
template <int COUNT>
void gather(const float* g_features, const float* rows, int64_t count, int64_t length, int64_t padded, int64_t at, float* g_weight) {
    for (int64_t k = 0; k < padded; k += FEATURES) {
        Vector sums[FEATURES][COUNT];
        for (int f = 0; f < FEATURES; ++f)
            for (int v = 0; v < COUNT; ++v) sums[f][v] = load(g_weight + (k + f) * length + at + v * LANES);
        for (int64_t row = 0; row < count; ++row) {
            Vector values[COUNT];
#pragma GCC unroll 8
            for (int v = 0; v < COUNT; ++v) values[v] = load(rows + row * length + at + v * LANES);
#pragma GCC unroll 8
            for (int f = 0; f < FEATURES; ++f)
#pragma GCC unroll 8
                for (int v = 0; v < COUNT; ++v) sums[f][v] += g_features[row * padded + k + f] * values[v];
        }
        for (int f = 0; f < FEATURES; ++f)
            for (int v = 0; v < COUNT; ++v) store(g_weight + (k + f) * length + at + v * LANES, sums[f][v]);
    }
}

void projection_backward(const Layout& layout, const float* weight, Workspace& work) {
    const int64_t rows = TILE * layout.groups, length = layout.length, padded = layout.padded;
    int64_t at = 0;
    for (; at + VECTORS * LANES <= length; at += VECTORS * LANES) {
        spread<VECTORS>(work.g_features.data(), rows, length, weight, padded, at, work.gradient.data());
        gather<VECTORS>(work.g_features.data(), work.written.data(), rows, length, padded, at, work.g_weight.data());
    }
    for (; at < length; at += LANES) {
        spread<1>(work.g_features.data(), rows, length, weight, padded, at, work.gradient.data());
        gather<1>(work.g_features.data(), work.written.data(), rows, length, padded, at, work.g_weight.data());
    }
}

// The part of the written state's gradient that comes from what was read of it, but for the projection's: the read
// itself, and what the norm takes back.
void read_token_backward(const Crossing& c, const Layout& layout, int64_t token, int64_t in_tile, Workspace& work) {
    const float *written = work.written.data() + in_tile * layout.size, *pre = work.pre.data() + in_tile * N;
    const float* g_x = c.g_x ? c.g_x + token * c.width : nullptr;
    float* gradient = work.gradient.data() + in_tile * layout.size;
    for (int i = 0; i < N; ++i) {
        const float shrink = work.shrink[c.joint ? in_tile : in_tile * N + i];
        for (int64_t at = i * c.width; at < (i + 1) * c.width; at += LANES) {
            Vector sum = shrink * load(written + at);
            if (g_x) sum += pre[i] * load(g_x + at - i * c.width);
            store(gradient + at, sum);
        }
    }
}

// From the written state's gradient, the read's part and what arrives, to those of the state, the output, post and res,
// for one token. They are added up here, so that a read and a write apart give the same bits as both at once.
template <bool MIXES>
void write_token_backward(const Crossing& c, int64_t token, const float* gradient) {
    const int64_t width = c.width;
    const float *state = c.state + token * N * width, *output = c.output + token * width, *post = c.post + token * N;
    const float* res = MIXES ? c.res + token * N * N : nullptr;
    const float* g_written = c.g_written ? c.g_written + token * N * width : nullptr;
    float *g_state = c.g_state + token * N * width, *g_output = c.g_output + token * width;
    Vector by_post[N] = {}, by_res[N][N] = {};
    for (int64_t at = 0; at < width; at += LANES) {
        Vector g[N], g_y = {}, y = load(output + at);
        for (int i = 0; i < N; ++i) {
            g[i] = load(gradient + i * width + at);
            if (g_written) g[i] += load(g_written + i * width + at);
            g_y += post[i] * g[i];
            by_post[i] += g[i] * y;
        }
        store(g_output + at, g_y);
        for (int j = 0; j < N; ++j) {
            Vector old = load(state + j * width + at), g_old = MIXES ? Vector{} : g[j];
            for (int i = 0; MIXES && i < N; ++i) {
                g_old += res[i * N + j] * g[i];
                by_res[i][j] += g[i] * old;
            }
            stream_out(g_state + j * width + at, g_old);
        }
    }
    for (int i = 0; i < N; ++i) {
        c.g_post[token * N + i] = sum(by_post[i]);
        for (int j = 0; MIXES && j < N; ++j) c.g_res[(token * N + i) * N + j] = sum(by_res[i][j]);
    }
}

void state_backward(const Crossing& c, int64_t token, const float* gradient) {
    if (!c.output)
        std::memcpy(c.g_state + token * N * c.width, gradient, N * c.width * sizeof(float));
    else if (c.res)
        write_token_backward<true>(c, token, gradient);
    else
        write_token_backward<false>(c, token, gradient);
}

void cross_tile_backward(const Crossing& c, const Layout& layout, const float* weight, int64_t first, Workspace& work) {
    const int64_t count = std::min<int64_t>(TILE, c.tokens - first);
    if (c.weight || c.g_x) {
        write_tile(c, first, count, layout.size, work.written.data());
        features_backward(c, layout, first, count, work);
        for (int64_t t = 0; t < count; ++t) read_token_backward(c, layout, first + t, t, work);
    }
    if (c.weight) projection_backward(layout, weight, work);
    for (int64_t t = 0; t < count; ++t) state_backward(c, first + t, work.gradient.data() + t * layout.size);
}

// The sums over all tokens, from those of the threads.
void add_up(const Crossing& c, const Layout& layout, const std::vector<Workspace>& all) {
    double g_gate = 0;
    for (const Workspace& work : all) {
        g_gate += work.g_gate;
        for (int64_t at = 0; c.g_weight && at < c.features * layout.length; ++at) c.g_weight[at] += work.g_weight[at];
    }
    if (!c.g_gate) return;
    *c.g_gate = float(g_gate);
    for (int64_t i = 0; i < N; ++i) {
        double g_bias = 0;
        for (const Workspace& work : all) g_bias += work.g_bias[i];
        c.g_bias[i] = float(g_bias);
    }
}

void cross_backward(const Crossing& c) {
    const Layout layout(c);
    const Buffer weight = padded_weight(c, layout);
    const int64_t tiles = (c.tokens + TILE - 1) / TILE, threads = std::max<int64_t>(1, std::min(c.threads, tiles));
    std::vector<Workspace> all(threads, Workspace(c, layout));
    in_parallel(threads, tiles, [&](int64_t part, int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile)
            cross_tile_backward(c, layout, weight.data(), tile * TILE, all[part]);
    });
    add_up(c, layout, all);
}

}  // namespace

// Sinkhorn's rounds. `first` is the axis that a round normalises first: 0 the columns, 1 the rows. Mirrored in native.py.
struct Rounds {
    int64_t tokens, iterations, first, threads;
    float eps;
    const float *logits, *gradient;
    float* result;
};

namespace {

// e^x, to two units in the last place; 0 below the smallest normal number.
inline Vector exponential(Vector x) {
    const Vector bounded = x > 88.f ? all(88.f) : x;
    const Vector shifted = bounded * 1.44269504f + 12582912.f;  // adding 1.5 * 2^23 rounds to an integer
    const Vector whole = shifted - 12582912.f;
    const Vector rest = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vector value = all(1.9875691500e-4f);
    for (float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        value = value * rest + coefficient;
    value = value * rest * rest + rest + 1.f;
    Integers exponent;
    std::memcpy(&exponent, &shifted, sizeof exponent);
    exponent = (exponent + 127) << 23;
    Vector power;
    std::memcpy(&power, &exponent, sizeof power);
    return x < -87.f ? Vector{} : value * power;
}

inline Vector logarithm(Vector x) {
    for (int lane = 0; lane < LANES; ++lane) x[lane] = std::log(x[lane]);
    return x;
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// The matrices of as many tokens as a vector has lanes; `along` an axis, entry `at` of line `line`.
struct Matrices {
    Vector entries[N * N] = {};

    Vector& at(int axis, int line, int at) { return entries[axis == 0 ? at * N + line : line * N + at]; }

    Vector total(int axis, int line) {
        Vector sum = at(axis, line, 0);
        for (int k = 1; k < N; ++k) sum += at(axis, line, k);
        return sum;
    }

    // Divide by the sums along an axis, which are kept.
    template <int AXIS>
    void normalise(float eps, Vector* sums) {
#pragma GCC unroll 8
        for (int line = 0; line < N; ++line) {
            const Vector sum = total(AXIS, line) + eps, inverse = 1.f / sum;
            sums[line] = sum;
#pragma GCC unroll 8
            for (int k = 0; k < N; ++k) at(AXIS, line, k) *= inverse;
        }
    }

    // Minus the logarithm of the sum of exponentials along an axis.
    void log_softmax(int axis) {
        for (int line = 0; line < N; ++line) {
            Vector most = at(axis, line, 0), sum = {};
            for (int k = 1; k < N; ++k) most = larger(most, at(axis, line, k));
            for (int k = 0; k < N; ++k) sum += exponential(at(axis, line, k) -= most);
            const Vector logarithm_of_sum = logarithm(sum);
            for (int k = 0; k < N; ++k) at(axis, line, k) -= logarithm_of_sum;
        }
    }

    void softmax(int axis) {
        for (int line = 0; line < N; ++line) {
            Vector most = at(axis, line, 0), sum = {};
            for (int k = 1; k < N; ++k) most = larger(most, at(axis, line, k));
            for (int k = 0; k < N; ++k) sum += at(axis, line, k) = exponential(at(axis, line, k) - most);
            const Vector inverse = 1.f / sum;
            for (int k = 0; k < N; ++k) at(axis, line, k) *= inverse;
        }
    }

    // From and to memory, where a token's entries are neighbours; lanes without a token repeat the last.
    void take(const float* from, int64_t count) {
        for (int lane = 0; lane < LANES; ++lane)
            for (int e = 0; e < N * N; ++e) entries[e][lane] = from[std::min<int64_t>(lane, count - 1) * N * N + e];
    }

    void give(float* to, int64_t count) const {
        for (int64_t lane = 0; lane < count; ++lane)
            for (int e = 0; e < N * N; ++e) to[lane * N * N + e] = entries[e][lane];
    }
};

// The axes that are normalised after the start, in turn: see `_axes` of mixers/sinkhorn.py.
inline int64_t later_rounds(const Rounds& r) { return 2 * (r.iterations - 1) + (r.eps != 0); }
inline int later_axis(const Rounds& r, int64_t round) { return (r.first + round + (r.eps != 0)) % 2; }

void start(const Rounds& r, Matrices& m) {
    if (r.eps == 0) {
        m.log_softmax(r.first);
        m.softmax(1 - r.first);
        return;
    }
    m.softmax(r.first);
    for (Vector& entry : m.entries) entry += r.eps;
}

// `step` is how far the sums of one round stand from those of the next: 0 where nobody needs them again.
void normalise(const Rounds& r, Matrices& m, Vector* sums, int step) {
    for (int64_t round = 0; round < later_rounds(r); ++round, sums += step)
        if (later_axis(r, round) == 0)
            m.normalise<0>(r.eps, sums);
        else
            m.normalise<1>(r.eps, sums);
}

// Undo M' = M / s: with W = M * dM, W' goes to W' - M' sum(W') and M' to M' s.
void undo(int axis, const Vector* sums, Matrices& m, Matrices& weighted) {
    for (int line = 0; line < N; ++line) {
        const Vector total = weighted.total(axis, line);
        for (int k = 0; k < N; ++k) {
            weighted.at(axis, line, k) -= m.at(axis, line, k) * total;
            m.at(axis, line, k) *= sums[line];
        }
    }
}

// From the first round's matrix times its gradient to the logits' gradient.
void start_backward(const Rounds& r, const Matrices& logits, Matrices& m, Matrices& weighted) {
    const int second = 1 - r.first;
    for (int line = 0; line < N; ++line) {
        const Vector total = weighted.total(second, line);
        for (int k = 0; k < N; ++k) {
            Vector& entry = weighted.at(second, line, k);
            entry -= r.eps == 0 ? m.at(second, line, k) * total : entry * (r.eps / m.at(second, line, k));
        }
    }
    Matrices columns = logits;
    columns.softmax(r.first);
    for (int line = 0; line < N; ++line) {
        const Vector total = weighted.total(r.first, line);
        for (int k = 0; k < N; ++k) weighted.at(r.first, line, k) -= columns.at(r.first, line, k) * total;
    }
}

void sinkhorn_forward(const Rounds& r) {
    in_parallel(r.threads, (r.tokens + LANES - 1) / LANES, [&](int64_t, int64_t begin, int64_t end) {
        Matrices m;
        Vector sums[N];
        for (int64_t first = begin * LANES; first < std::min(end * LANES, r.tokens); first += LANES) {
            const int64_t count = std::min<int64_t>(LANES, r.tokens - first);
            m.take(r.logits + first * N * N, count);
            start(r, m);
            normalise(r, m, sums, 0);
            m.give(r.result + first * N * N, count);
        }
    });
}

// The exact derivative of the truncated map: the rounds once more, their sums kept, then undone in turn.
void sinkhorn_backward(const Rounds& r) {
    in_parallel(r.threads, (r.tokens + LANES - 1) / LANES, [&](int64_t, int64_t begin, int64_t end) {
        Matrices logits, m, weighted;
        std::vector<Vector> sums(later_rounds(r) * N + 1);
        for (int64_t first = begin * LANES; first < std::min(end * LANES, r.tokens); first += LANES) {
            const int64_t count = std::min<int64_t>(LANES, r.tokens - first);
            logits.take(r.logits + first * N * N, count);
            m = logits;
            start(r, m);
            normalise(r, m, sums.data(), N);
            weighted.take(r.gradient + first * N * N, count);
            for (int e = 0; e < N * N; ++e) weighted.entries[e] *= m.entries[e];
            for (int64_t round = later_rounds(r) - 1; round >= 0; --round)
                undo(later_axis(r, round), sums.data() + round * N, m, weighted);
            start_backward(r, logits, m, weighted);
            weighted.give(r.result + first * N * N, count);
        }
    });
}

// Whether it failed, for lack of memory: no exception may reach Python.
template <class Arguments>
int failure(void (*act)(const Arguments&), const Arguments* arguments) {
    try {
        act(*arguments);
        return 0;
    } catch (...) {
        return 1;
    }
}

}  // namespace

extern "C" {
int mhc_cross(const Crossing* c) { return failure(cross_forward, c); }
int mhc_cross_backward(const Crossing* c) { return failure(cross_backward, c); }
int mhc_sinkhorn(const Rounds* r) { return failure(sinkhorn_forward, r); }
int mhc_sinkhorn_backward(const Rounds* r) { return failure(sinkhorn_backward, r); }
}
