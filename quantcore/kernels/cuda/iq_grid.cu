// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: magnitudes from a grid, signs apart; the layouts are in
// formats/gguf_iq2.py and gguf_iq3.py, the tables in methods/grids.py.
//
// A group of weights is cut in pieces of SIZE, and each piece is to be a point of the grid. One thread
// searches for the scale of a group; what it looks at again and again is in shared memory.
#include "grid.cuh"

#define TILE_WEIGHTS 2048
#define BLOCKS (TILE_WEIGHTS / SUPER)

// Round a piece: to its own lattice point where that is on the grid, or to the choice of least
// sum(sqrt(w) * error**2), the first of equals. `costs` is room for the terms of that sum, for every level of
// every element, STRIDE apart.
template <int SIZE, int LEVELS, int STRIDE>
__device__ Point round_piece(const Book& book, const float* x, const float* w, float inverse, float scale,
                             float* costs)
{
    int lattice = 0, place = 1;
    unsigned int levels = 0;
    UNROLL for (int i = 0; i < SIZE; ++i) {
        int level = odd_level(x[i], inverse, LEVELS - 1);
        lattice += level * place;
        levels |= (unsigned int)level << 4 * i;
        place *= LEVELS;
    }
    int found = book.map[lattice];
    if (found >= 0) return Point{found, levels, false};
    UNROLL for (int i = 0; i < SIZE; ++i) {
        float weight = sqrtf(w[i]);
        UNROLL for (int level = 0; level < LEVELS; ++level) {
            float difference = scale * (float)(2 * level + 1) - x[i];
            costs[(i * LEVELS + level) * STRIDE] = weight * difference * difference;
        }
    }
    return cheapest<SIZE, LEVELS, STRIDE>(book, found, costs);
}

// sum(w x q) and sum(w q q), one element after the other.
struct Sums {
    float wxq = 0.0f, wqq = 0.0f;
    template <int SIZE>
    __device__ void add(const float* x, const float* w, unsigned int levels)
    {
        UNROLL for (int i = 0; i < SIZE; ++i) {
            float q = (float)(2 * (int)(levels >> 4 * i & 15) + 1);
            wxq += w[i] * x[i] * q;
            wqq += w[i] * q * q;
        }
    }
};

// The scale that rounds x to codes up to TOP with least error: `scale_of_scales`, given values of which some
// are negative, whose codes wrap around like bytes.
template <int N, int TOP>
__device__ float start_scale(const float (&x)[N], const float (&w)[N])
{
    float peak = 0.0f, error = 0.0f, sum_lx = 0.0f, sum_l2 = 0.0f;
    int codes[N];
    UNROLL for (int i = 0; i < N; ++i)
        peak = larger(peak, x[i]);
    if (peak < NOTHING) return 0.0f;
    float inverse = (float)TOP / peak, scale = 1.0f / inverse;
    UNROLL for (int i = 0; i < N; ++i) {
        float difference = x[i] - scale * (float)(nearest_wrapped(inverse * x[i]) & 255);
        error += w[i] * difference * difference;
    }
    ROLLED for (int t = -4; t <= 4; ++t) {
        if (t == 0) continue;
        float trial = (0.1f * (float)t + (float)TOP) / peak, trial_scale = 1.0f / trial, trial_error = 0.0f;
        UNROLL for (int i = 0; i < N; ++i) {
            int code = nearest_wrapped(trial * x[i]);
            float difference = x[i] - trial_scale * (float)(code < TOP ? code : TOP);
            trial_error += w[i] * difference * difference;
        }
        if (trial_error < error) {
            error = trial_error;
            inverse = trial;
        }
    }
    UNROLL for (int i = 0; i < N; ++i) {
        int code = nearest_wrapped(inverse * x[i]);
        code = code < TOP ? code : TOP;
        sum_lx += w[i] * x[i] * (float)code;
        sum_l2 += w[i] * (float)code * (float)code;
        codes[i] = code & 255;
    }
    ROLLED for (int times = 0; times < 5; ++times) {
        bool moved = false;
        UNROLL for (int i = 0; i < N; ++i) {
            float code = (float)codes[i];
            float new_lx = sum_lx - w[i] * x[i] * code, new_l2 = sum_l2 - w[i] * code * code;
            if (!(new_lx > 0.0f && new_l2 > 0.0f)) continue;
            int other = nearest_wrapped(x[i] * new_l2 / new_lx);
            other = other < TOP ? other : TOP;
            if (other == codes[i]) continue;
            new_lx += w[i] * x[i] * (float)other;
            new_l2 += w[i] * (float)other * (float)other;
            if (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2) {
                codes[i] = other & 255;
                sum_lx = new_lx;
                sum_l2 = new_l2;
                moved = true;
            }
        }
        if (!moved) break;
    }
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

// Take the signs off eight weights and return them. Where they are to be paired their number is made even:
// the one that costs least keeps the wrong sign.
template <bool PAIRED>
__device__ int take_signs(float* x, const float* w)
{
    int signs = 0, least = 0;
    float cost = w[0] * x[0] * x[0];
    bool odd = false;
    UNROLL for (int i = 0; i < 8; ++i) {
        float own = w[i] * x[i] * x[i];
        if (own < cost) {
            cost = own;
            least = i;
        }
        if (x[i] < 0.0f) {
            x[i] = -x[i];
            signs |= 1 << i;
            odd = !odd;
        }
    }
    if (PAIRED && odd) {
        x[least] = -x[least];
        signs ^= 1 << least;
    }
    return PAIRED ? signs & 127 : signs;
}

// Byte `k` of seven signs four times over and a scale of four bits.
__device__ inline int word_byte(const unsigned char* signs, int s, int k)
{
    unsigned int word = signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21 | (unsigned int)s << 28;
    return word >> 8 * k & 255;
}

__device__ inline int nibbles(const unsigned char* s, int k) { return s[2 * k] | s[2 * k + 1] << 4; }

// The bits above the lowest eight of several indices in a row.
template <int BITS>
__device__ int high_bits(const unsigned short* index, int k)
{
    int byte = 0;
    UNROLL for (int i = 0; i < 8 / BITS; ++i)
        byte |= index[k * (8 / BITS) + i] >> 8 << i * BITS;
    return byte;
}

// Which pieces are rounded once more with the scale found: those off the grid, all if one is off, all.
enum Project { OFF, ALL, ALWAYS };

// A type. A group of `group` weights has one scale, a piece of it is `size` weights. `tries` rounds, `step`
// apart, go to either side; what is below `nothing` is zero. `spread` times the mean square tempers
// importance, and `stretch` multiplies the common scale in the end. `bytes` is the size of a block, `byte`
// its byte `k` after the common scale.
struct SmallTwoBits {
    static constexpr int group = 32, size = 8, levels = 3, tries = 6, bytes = 66;
    static constexpr Project project = ALWAYS;
    static constexpr bool paired = true, searched = true;
    static constexpr float step = 0.1f, nothing = 1e-15f, spread = 1.0f, stretch = 1.0f;
    static __device__ int byte(const unsigned short* index, const unsigned char* signs,
                               const unsigned char* s, int k)
    {
        return k % 8 < 4 ? index[k / 8 * 4 + k % 8] : word_byte(signs + k / 8 * 4, s[k / 8], k % 8 - 4);
    }
};

struct MiddleTwoBits {
    static constexpr int group = 16, size = 8, levels = 3, tries = 9, bytes = 74;
    static constexpr Project project = OFF;
    static constexpr bool paired = true, searched = false;
    static constexpr float step = 0.1f, nothing = 1e-15f, spread = 1.0f, stretch = 1.0f;
    static __device__ int byte(const unsigned short* index, const unsigned char* signs,
                               const unsigned char* s, int k)
    {
        return k < 64 ? (index[k / 2] | signs[k / 2] << 9) >> k % 2 * 8 & 255 : nibbles(s, k - 64);
    }
};

struct LargeTwoBits {
    static constexpr int group = 16, size = 8, levels = 3, tries = 9, bytes = 82;
    static constexpr Project project = OFF;
    static constexpr bool paired = false, searched = false;
    static constexpr float step = 0.1f, nothing = 1e-8f, spread = 2.0f, stretch = 0.9875f;
    static __device__ float own_weight(float x, float mean) { return 0.25f * mean + x * x; }
    static __device__ int byte(const unsigned short* index, const unsigned char* signs,
                               const unsigned char* s, int k)
    {
        if (k < 64) return k < 32 ? index[k] & 255 : signs[k - 32];
        return k < 72 ? high_bits<2>(index, k - 64) : nibbles(s, k - 72);
    }
};

struct SmallThreeBits {
    static constexpr int group = 32, size = 4, levels = 8, tries = 15, bytes = 98;
    static constexpr Project project = OFF;
    static constexpr bool paired = true, searched = false;
    static constexpr float step = 0.2f, nothing = 1e-8f, spread = 2.0f, stretch = 1.0125f;
    static __device__ float own_weight(float x, float) { return x * x; }
    static __device__ int byte(const unsigned short* index, const unsigned char* signs,
                               const unsigned char* s, int k)
    {
        return k < 64 ? index[k] : word_byte(signs + (k - 64) / 4 * 4, s[(k - 64) / 4], k % 4);
    }
};

struct LargeThreeBits {
    static constexpr int group = 32, size = 4, levels = 8, tries = 9, bytes = 110;
    static constexpr Project project = ALL;
    static constexpr bool paired = false, searched = false;
    static constexpr float step = 0.2f, nothing = 0.0f, spread = 2.0f, stretch = 1.033f;
    static __device__ float own_weight(float x, float) { return x * x; }
    static __device__ int byte(const unsigned short* index, const unsigned char* signs,
                               const unsigned char* s, int k)
    {
        if (k < 72) return k < 64 ? index[k] & 255 : high_bits<1>(index, k - 64);
        return k < 104 ? signs[k - 72] : nibbles(s, k - 104);
    }
};

// Where the search for the scale of a group begins, and the scales it tries: one that rounds `peak` to the
// top level.
template <class Type>
__device__ void begin(const float* x, const float* w, float& peak, float& scale)
{
    const int top = Type::levels - 1;
    peak = x[0];
    UNROLL for (int i = 1; i < Type::group; ++i)
        peak = larger(peak, x[i]);
    scale = peak / (float)(2 * top + 1);
    if (Type::searched && peak >= Type::nothing) {
        float values[Type::group], weights[Type::group];
        read_group(x, values);
        read_group(w, weights);
        scale = start_scale<Type::group, Type::levels + 1>(values, weights);
        peak = scale * (float)Type::levels;
    }
}

// Find scale and grid points of a group, whose signs are taken off; return whether it is more than nothing.
template <class Type, int STRIDE>
__device__ bool fit_group(const Book& book, const float* x, const float* w, float& scale,
                          unsigned short* index, unsigned short* trial, float* costs)
{
    const int size = Type::size, pieces = Type::group / size;
    float peak, explained = 0.0f;
    begin<Type>(x, w, peak, scale);
    ROLLED for (int k = 0; k < pieces; ++k)
        index[k] = 0;
    if (!(peak >= Type::nothing && peak > 0.0f)) {
        scale = 0.0f;
        return false;
    }
    unsigned int off = Type::project == ALL ? (1u << pieces) - 1 : 0u;
    ROLLED for (int t = -Type::tries; t <= Type::tries; ++t) {
        float inverse = ((float)(2 * Type::levels - 1) + (float)t * Type::step) / peak,
              trial_scale = 1.0f / inverse;
        unsigned int trial_off = 0;
        Sums sums;
        ROLLED for (int k = 0; k < pieces; ++k) {
            const float *piece = x + k * size, *weights = w + k * size;
            Point point =
                round_piece<size, Type::levels, STRIDE>(book, piece, weights, inverse, trial_scale, costs);
            sums.add<size>(piece, weights, point.levels);
            trial[k] = point.index;
            trial_off |= (unsigned int)point.off << k;
        }
        if (sums.wqq > 0.0f && sums.wxq * sums.wxq > explained * sums.wqq) {
            scale = sums.wxq / sums.wqq;
            explained = scale * sums.wxq;
            off = trial_off;
            ROLLED for (int k = 0; k < pieces; ++k)
                index[k] = trial[k];
        }
    }
    if ((off || Type::project == ALWAYS) && scale > 0.0f) {
        float inverse = 1.0f / scale;
        Sums sums;
        ROLLED for (int k = 0; k < pieces; ++k) {
            const float *piece = x + k * size, *weights = w + k * size;
            Point point = grid_point<size>(book, index[k], false);
            if (Type::project != OFF || off >> k & 1)
                point = round_piece<size, Type::levels, STRIDE>(book, piece, weights, inverse, scale, costs);
            sums.add<size>(piece, weights, point.levels);
            index[k] = point.index;
        }
        if (sums.wqq > 0.0f) scale = sums.wxq / sums.wqq;
    }
    return true;
}

// What the groups of a tile were rounded to.
template <class Type>
struct Found {
    float scales[TILE_WEIGHTS / Type::group];
    unsigned short index[TILE_WEIGHTS / Type::size], trial[TILE_WEIGHTS / Type::size];
    unsigned char signs[TILE_WEIGHTS / 8], s[TILE_WEIGHTS / Type::group];
    bool live[TILE_WEIGHTS / Type::group];
};

// In IQ3_S ggml moves on only behind groups that are not zero: low bytes of indices and signs close up, while
// the high bits stay. That is part of the bytes.
template <class Type>
__device__ void close_up(Found<Type>& found, int b)
{
    const int groups = SUPER / Type::group, pieces = Type::group / Type::size, eights = Type::group / 8;
    unsigned short* index = found.index + b * (SUPER / Type::size);
    unsigned char* signs = found.signs + b * (SUPER / 8);
    int to = 0;
    ROLLED for (int g = 0; g < groups; ++g) {
        if (!found.live[b * groups + g]) continue;
        UNROLL for (int k = 0; k < pieces; ++k) {
            unsigned short& place = index[to * pieces + k];
            place = (place & 0x100) | (index[g * pieces + k] & 255);
        }
        UNROLL for (int k = 0; k < eights; ++k)
            signs[to * eights + k] = signs[g * eights + k];
        ++to;
    }
    ROLLED for (int i = to * pieces; i < groups * pieces; ++i)
        index[i] &= 0x100;
    ROLLED for (int i = to * eights; i < groups * eights; ++i)
        signs[i] = 0;
}

// The common scale of a block, and the scales of its groups as odd multiples of it.
template <class Type>
__device__ void share_scale(Found<Type>& found, int b, unsigned char* target, int* status)
{
    const int groups = SUPER / Type::group;
    const float* scales = found.scales + b * groups;
    float peak = 0.0f;
    UNROLL for (int g = 0; g < groups; ++g)
        peak = larger(peak, scales[g]);
    float d = peak / 31.0f, inverse = 1.0f / d;
    store_half(target, d * Type::stretch, status);
    if (Type::project == ALL) close_up(found, b);
    // Of a block that comes out as nothing, types with paired signs keep nothing, the others what was found.
    if (Type::paired && !(peak > 0.0f)) {
        ROLLED for (int i = 0; i < SUPER / Type::size; ++i)
            found.index[b * (SUPER / Type::size) + i] = 0;
        ROLLED for (int i = 0; i < SUPER / 8; ++i)
            found.signs[b * (SUPER / 8) + i] = 0;
    }
    UNROLL for (int g = 0; g < groups; ++g)
        found.s[b * groups + g] = peak > 0.0f ? odd_level(scales[g], inverse, 15) : 0;
}

template <class Type, bool WEIGHTED>
__device__ float weight_of(float x, float importance, float mean)
{
    if constexpr (WEIGHTED)
        return importance * sqrtf(mean + x * x);
    else
        return Type::own_weight(x, mean);
}

template <class Type, bool WEIGHTED>
__device__ void grid(const Job& job)
{
    const int threads = TILE_WEIGHTS / Type::group, groups = SUPER / Type::group;
    const int pieces = Type::group / Type::size, eights = Type::group / 8, bytes = Type::bytes;
    __shared__ Tile<Type::group, TILE_WEIGHTS> values, weights;
    __shared__ float means[BLOCKS], costs[Type::size * Type::levels * threads];
    __shared__ Found<Type> found;
    __shared__ unsigned int packed[BLOCKS * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    const Book book(job.tables);
    load_values(job, values);
    if (WEIGHTED) load_importance(job, weights);
    __syncthreads();
    mean_squares<SUPER>(values, Type::spread, means);
    __syncthreads();
    EACH (t, threads) {
        float *x = values.group(t), *w = weights.group(t);
        bool fine = true;
        UNROLL for (int i = 0; i < Type::group; ++i) {
            w[i] = weight_of<Type, WEIGHTED>(x[i], w[i], means[t / groups]);
            fine = fine && is_finite(w[i]);
        }
        if (!fine) atomicOr(job.status, SQUARES);
        unsigned char* signs = found.signs + t * eights;
        UNROLL for (int k = 0; k < eights; ++k)
            signs[k] = take_signs<Type::paired>(x + 8 * k, w + 8 * k);
        float scale;
        bool live = fit_group<Type, threads>(book, x, w, scale, found.index + t * pieces,
                                             found.trial + t * pieces, costs + t);
        // Paired signs make single elements negative, and that may make a scale so.
        int flip = scale < 0.0f ? Type::paired ? 127 : 255 : 0;
        UNROLL for (int k = 0; k < eights; ++k)
            signs[k] = live ? signs[k] ^ flip : 0;
        found.live[t] = live;
        found.scales[t] = fabsf(scale);
    }
    __syncthreads();
    EACH (b, BLOCKS) share_scale(found, b, target + b * bytes, job.status);
    __syncthreads();
    EACH (i, BLOCKS * (bytes - 2)) {
        int b = i / (bytes - 2), k = i % (bytes - 2);
        const unsigned short* index = found.index + b * (SUPER / Type::size);
        target[b * bytes + 2 + k] = Type::byte(index, found.signs + b * 32, found.s + b * groups, k);
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, SUPER, bytes>(job, packed);
}

KERNEL(IQ2_XXS, weighted, 64, 2048) { grid<SmallTwoBits, true>(job); }
KERNEL(IQ2_XS, weighted, 128, 2048) { grid<MiddleTwoBits, true>(job); }
KERNEL(IQ2_S, plain, 128, 2048) { grid<LargeTwoBits, false>(job); }
KERNEL(IQ2_S, weighted, 128, 2048) { grid<LargeTwoBits, true>(job); }
KERNEL(IQ3_XXS, plain, 64, 2048) { grid<SmallThreeBits, false>(job); }
KERNEL(IQ3_XXS, weighted, 64, 2048) { grid<SmallThreeBits, true>(job); }
KERNEL(IQ3_S, plain, 64, 2048) { grid<LargeThreeBits, false>(job); }
KERNEL(IQ3_S, weighted, 64, 2048) { grid<LargeThreeBits, true>(job); }
