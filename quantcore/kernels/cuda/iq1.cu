// IQ1_S and IQ1_M: three levels, all moved up or down by an eighth, from a grid; the layouts are in
// formats/gguf_iq1.py, the search in methods/iq1_division.py.
//
// In ascending order the elements of one level stand together, so that a division into levels is two borders.
// One thread tries all divisions of a group, on prefix sums of w x and w in shared memory.
#include "grid.cuh"

#define SHIFT 0.125f
#define LOWEST (-3.402823466e38f)

// What thread number t keeps in shared memory, one word from that of its neighbours: place i is at [i *
// STRIDE].
template <int GROUP, int PARTS, int STRIDE>
struct Prefix {
    // Sums over the first i elements in ascending order, of each half of the group where PARTS is 2.
    float wx[PARTS][(GROUP + 1) * STRIDE], w[PARTS][(GROUP + 1) * STRIDE];
    unsigned char rank[GROUP * STRIDE];
};

// A division: two borders, which parts of the group are moved down, as bits from the last part on, and the
// scale.
struct Division {
    int first, second, lowered;
    float scale;
};

// Fill the sums of a group. Equal elements keep their order, as with the sort of glibc.
template <int GROUP, int PARTS, int STRIDE>
__device__ void fill_prefix(const float (&x)[GROUP], const float* w, Prefix<GROUP, PARTS, STRIDE>& sums,
                            int t)
{
    UNROLL for (int i = 0; i < GROUP; ++i) {
        int rank = 0;
        UNROLL for (int k = 0; k < GROUP; ++k)
            rank += k < i ? x[k] <= x[i] : x[k] < x[i];
        sums.rank[i * STRIDE + t] = rank;
        UNROLL for (int part = 0; part < PARTS; ++part) {
            bool own = i / (GROUP / PARTS) == part;
            sums.wx[part][(rank + 1) * STRIDE + t] = own ? w[i] * x[i] : 0.0f;
            sums.w[part][(rank + 1) * STRIDE + t] = own ? w[i] : 0.0f;
        }
    }
    UNROLL for (int part = 0; part < PARTS; ++part) {
        float wx = sums.wx[part][t] = 0.0f, weight = sums.w[part][t] = 0.0f;
        ROLLED for (int i = 1; i <= GROUP; ++i) {
            sums.wx[part][i * STRIDE + t] = wx += sums.wx[part][i * STRIDE + t];
            sums.w[part][i * STRIDE + t] = weight += sums.w[part][i * STRIDE + t];
        }
    }
}

struct Best {
    Division division = {-1, -1, 0, 0.0f};
    float explained = LOWEST;
    __device__ void offer(int first, int second, int lowered, float wxq, float wqq)
    {
        if (!(wqq > 0.0f && wxq * wxq > explained * wqq)) return;
        float scale = wxq / wqq;
        explained = scale * wxq;
        division = Division{first, second, lowered, scale};
    }
};

// IQ1_S: the levels -1, 0, 1 of the whole group are moved up or down together.
template <int GROUP, int STRIDE>
__device__ Division best_division(const Prefix<GROUP, 1, STRIDE>& sums, int t)
{
    const float up[3] = {-1.0f + SHIFT, SHIFT, 1.0f + SHIFT}, down[3] = {-1.0f - SHIFT, -SHIFT, 1.0f - SHIFT};
    const float *wx = sums.wx[0] + t, *w = sums.w[0] + t;
    float all_wx = wx[GROUP * STRIDE], all_w = w[GROUP * STRIDE];
    Best best;
    ROLLED for (int i = 0; i <= GROUP; ++i) {
        float wx0 = wx[i * STRIDE], w0 = w[i * STRIDE];
        ROLLED for (int k = i; k <= GROUP; ++k) {
            float wx1 = wx[k * STRIDE] - wx0, w1 = w[k * STRIDE] - w0;
            float wx2 = all_wx - wx[k * STRIDE], w2 = all_w - w[k * STRIDE];
            best.offer(i, k, 0, wx0 * up[0] + wx1 * up[1] + wx2 * up[2],
                       w0 * up[0] * up[0] + w1 * up[1] * up[1] + w2 * up[2] * up[2]);
            best.offer(i, k, 1, wx0 * down[0] + wx1 * down[1] + wx2 * down[2],
                       w0 * down[0] * down[0] + w1 * down[1] * down[1] + w2 * down[2] * down[2]);
        }
    }
    return best.division;
}

// IQ1_M: each half is moved by itself. The highest level times all, less both prefix sums, is the sum of w x
// q.
template <int GROUP, int STRIDE>
__device__ Division best_division(const Prefix<GROUP, 2, STRIDE>& sums, int t)
{
    const float up = 1.0f + SHIFT, down = 1.0f - SHIFT;
    float all_wx[2], all_w[2];
    UNROLL for (int h = 0; h < 2; ++h) {
        all_wx[h] = sums.wx[h][GROUP * STRIDE + t];
        all_w[h] = sums.w[h][GROUP * STRIDE + t];
    }
    Best best;
    ROLLED for (int i = 0; i <= GROUP; ++i) {
        ROLLED for (int k = i; k <= GROUP; ++k) {
            float wxq[2][2], wqq[2][2];
            UNROLL for (int h = 0; h < 2; ++h) {
                float both = sums.wx[h][i * STRIDE + t] + sums.wx[h][k * STRIDE + t];
                float w0 = sums.w[h][i * STRIDE + t], w1 = sums.w[h][k * STRIDE + t];
                wxq[h][0] = all_wx[h] * up - both;
                wxq[h][1] = all_wx[h] * down - both;
                wqq[h][0] = all_w[h] * up * up + w0 * 0.75f + w1 * -1.25f;
                wqq[h][1] = all_w[h] * down * down + w0 * 1.25f + w1 * -0.75f;
            }
            UNROLL for (int lowered = 0; lowered < 4; ++lowered) {
                int a = lowered >> 1, b = lowered & 1;
                best.offer(i, k, lowered, wxq[0][a] + wxq[1][b], wqq[0][a] + wqq[1][b]);
            }
        }
    }
    return best.division;
}

__device__ inline float moved_level(int level, bool lowered)
{
    return (float)(level - 1) + (lowered ? -SHIFT : SHIFT);
}

// What the groups of a tile were rounded to.
template <int GROUP, int WEIGHTS>
struct Found {
    float scales[WEIGHTS / GROUP];
    unsigned char lowered[WEIGHTS / GROUP], s[WEIGHTS / GROUP];
    unsigned short index[WEIGHTS / 8];
};

// Which part of the group a piece of eight belongs to decides how it is moved.
template <int GROUP, int PARTS>
__device__ bool is_lowered(int lowered, int piece)
{
    return lowered >> (PARTS - 1 - piece * 8 / (GROUP / PARTS)) & 1;
}

// Find scale, shifts and grid points of a group, and return the scale: 0 for a group of nothing.
template <int GROUP, int PARTS, int STRIDE>
__device__ float fit_group(const Book& book, const float* x, const float* w,
                           Prefix<GROUP, PARTS, STRIDE>& sums, int t, float nothing, unsigned char& shifts,
                           unsigned short* index)
{
    const int pieces = GROUP / 8;
    float values[GROUP], peak = 0.0f;
    read_group(x, values);
    UNROLL for (int i = 0; i < GROUP; ++i)
        peak = larger(peak, fabsf(values[i]));
    ROLLED for (int k = 0; k < pieces; ++k)
        index[k] = 0;
    shifts = 0;
    if (peak < nothing) return 0.0f;
    fill_prefix(values, w, sums, t);
    Division best = best_division(sums, t);
    if (best.first < 0) return 0.0f;
    bool flip = best.scale < 0.0f;
    float scale = fabsf(best.scale);
    int lowered = flip ? best.lowered ^ ((1 << PARTS) - 1) : best.lowered;
    shifts = lowered;
    // From here on the sums are not needed any more: their room is that of the costs.
    float* costs = &sums.wx[0][0] + t;
    bool off = false;
    ROLLED for (int k = 0; k < pieces; ++k) {
        bool down = is_lowered<GROUP, PARTS>(lowered, k);
        int lattice = 0;
        ROLLED for (int i = 7; i >= 0; --i) {
            int rank = sums.rank[(8 * k + i) * STRIDE + t];
            int level = (rank >= best.first) + (rank >= best.second);
            lattice = lattice * 3 + (flip ? 2 - level : level);
            UNROLL for (int other = 0; other < 3; ++other) {
                float difference = scale * moved_level(other, down) - x[8 * k + i];
                costs[(i * 3 + other) * STRIDE] = w[8 * k + i] * difference * difference;
            }
        }
        int found = book.map[lattice];
        off = off || found < 0;
        index[k] = found < 0 ? cheapest<8, 3, STRIDE>(book, found, costs).index : found;
    }
    if (!off) return scale;
    float wxq = 0.0f, wqq = 0.0f;
    ROLLED for (int k = 0; k < pieces; ++k) {
        bool down = is_lowered<GROUP, PARTS>(lowered, k);
        UNROLL for (int i = 0; i < 8; ++i) {
            float q = moved_level(book.points[index[k] * 8 + i], down), wq = w[8 * k + i] * q;
            wxq += wq * x[8 * k + i];
            wqq += wq * q;
        }
    }
    return wxq > 0.0f && wqq > 0.0f ? wxq / wqq : scale;
}

// The common scale of a block before it is stretched, and the scales of its groups as odd multiples of it.
template <int GROUP, int WEIGHTS>
__device__ float share_scale(Found<GROUP, WEIGHTS>& found, int b)
{
    const int groups = SUPER / GROUP;
    const float* scales = found.scales + b * groups;
    float peak = 0.0f;
    UNROLL for (int g = 0; g < groups; ++g)
        peak = larger(peak, scales[g]);
    float d = peak / 15.0f, inverse = 1.0f / d;
    UNROLL for (int g = 0; g < groups; ++g) {
        found.s[b * groups + g] = peak > 0.0f ? odd_level(scales[g], inverse, 7) : 0;
        if (!(peak > 0.0f)) found.lowered[b * groups + g] = 0;
    }
    return d;
}

template <int GROUP, int WEIGHTS>
__device__ void temper_tile(const Tile<GROUP, WEIGHTS>& values, Tile<GROUP, WEIGHTS>& weights,
                            const float* means, int t, int* status)
{
    const float* x = values.group(t);
    float* w = weights.group(t);
    bool fine = true;
    UNROLL for (int i = 0; i < GROUP; ++i) {
        w[i] = w[i] * sqrtf(means[t / (SUPER / GROUP)] + x[i] * x[i]);
        fine = fine && is_finite(w[i]);
    }
    if (!fine) atomicOr(status, SQUARES);
}

KERNEL(IQ1_S, weighted, 64, 2048)
{
    const int group = 32, size = 2048, threads = size / group, blocks = size / SUPER, bytes = 50;
    __shared__ Tile<group, size> values, weights;
    __shared__ Prefix<group, 1, threads> sums;
    __shared__ Found<group, size> found;
    __shared__ float means[blocks];
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    const Book book(job.tables);
    load_values(job, values);
    load_importance(job, weights);
    __syncthreads();
    mean_squares<SUPER>(values, 2.0f, means);
    __syncthreads();
    EACH (t, threads) {
        temper_tile(values, weights, means, t, job.status);
        found.scales[t] = fit_group(book, values.group(t), weights.group(t), sums, t, 1e-12f,
                                    found.lowered[t], found.index + 4 * t);
    }
    __syncthreads();
    EACH (b, blocks) store_half(target + b * bytes, share_scale(found, b) * 1.125f, job.status);
    __syncthreads();
    EACH (i, blocks * 32) target[i / 32 * bytes + 2 + i % 32] = found.index[i] & 255;
    EACH (t, threads) {
        int high = found.s[t] << 12 | found.lowered[t] << 15;
        UNROLL for (int k = 0; k < 4; ++k)
            high |= found.index[4 * t + k] >> 8 << 3 * k;
        unsigned char* place = target + t / 8 * bytes + 34 + t % 8 * 2;
        place[0] = high & 255;
        place[1] = high >> 8;
    }
    __syncthreads();
    write_blocks<size, SUPER, bytes>(job, packed);
}

KERNEL(IQ1_M, weighted, 64, 1024)
{
    const int group = 16, size = 1024, threads = size / group, blocks = size / SUPER, bytes = 56;
    __shared__ Tile<group, size> values, weights;
    __shared__ Prefix<group, 2, threads> sums;
    __shared__ Found<group, size> found;
    __shared__ float means[blocks];
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    const Book book(job.tables);
    load_values(job, values);
    load_importance(job, weights);
    __syncthreads();
    mean_squares<SUPER>(values, 2.0f, means);
    __syncthreads();
    EACH (t, threads) {
        temper_tile(values, weights, means, t, job.status);
        found.scales[t] = fit_group(book, values.group(t), weights.group(t), sums, t, 1e-7f, found.lowered[t],
                                    found.index + 2 * t);
    }
    __syncthreads();
    EACH (b, blocks) means[b] = share_scale(found, b);
    __syncthreads();
    // Values and weights become the terms of the sums that the common scale is fitted with.
    EACH (t, threads) {
        float *x = values.group(t), *w = weights.group(t);
        UNROLL for (int k = 0; k < 2; ++k) {
            bool down = is_lowered<group, 2>(found.lowered[t], k);
            const int* levels = book.points + found.index[2 * t + k] * 8;
            UNROLL for (int i = 8 * k; i < 8 * k + 8; ++i) {
                float q = moved_level(levels[i - 8 * k], down) * (float)(2 * found.s[t] + 1), wq = w[i] * q;
                x[i] = wq * x[i];
                w[i] = wq * q;
            }
        }
    }
    __syncthreads();
    EACH (b, blocks) {
        float wxq = 0.0f, wqq = 0.0f, d = means[b];
        ROLLED for (int g = 0; g < 16; ++g) {
            const float *x = values.group(16 * b + g), *w = weights.group(16 * b + g);
            UNROLL for (int i = 0; i < 16; ++i) {
                wxq += x[i];
                wqq += w[i];
            }
        }
        // A block of nothing has no scale, whatever its grid points.
        if (wqq > 0.0f && d != 0.0f) d = wxq / wqq;
        unsigned char half[2];
        store_half(half, d * 1.1125f, job.status);
        UNROLL for (int k = 0; k < 4; ++k) {
            const unsigned char* s = found.s + 16 * b + 4 * k;
            unsigned char* place = target + b * bytes + 48 + 2 * k;
            int four = s[0] | s[1] << 3 | s[2] << 6 | s[3] << 9 | (half[k / 2] >> k % 2 * 4 & 15) << 12;
            place[0] = four & 255;
            place[1] = four >> 8;
        }
    }
    EACH (i, blocks * 32) target[i / 32 * bytes + i % 32] = found.index[i] & 255;
    EACH (t, threads) {
        // The first half's shift stands above its three bits of index, the second half's above its own.
        int lowered = found.lowered[t];
        int high = found.index[2 * t] >> 8 | (lowered >> 1 & 1) << 3 | found.index[2 * t + 1] >> 8 << 4 |
                   (lowered & 1) << 7;
        target[t / 16 * bytes + 32 + t % 16] = high;
    }
    __syncthreads();
    write_blocks<size, SUPER, bytes>(job, packed);
}
