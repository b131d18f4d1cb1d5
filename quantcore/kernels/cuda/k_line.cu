// Q4_K, Q5_K and Q2_K: a scale and a minimum for each group; the layouts are in formats/gguf_k_line.py.
#include "superblock.cuh"

// How a search without importance weighs: |x|, in groups of 32 plus the root mean square of the group.
template <int GROUP>
__device__ void own_weights(const float (&x)[GROUP], float (&w)[GROUP])
{
    float squares = 0.0f;
    UNROLL for (int i = 0; i < GROUP; ++i)
        squares += x[i] * x[i];
    float root = GROUP == 32 ? sqrtf(squares / (float)GROUP) : 0.0f;
    UNROLL for (int i = 0; i < GROUP; ++i)
        w[i] = root + fabsf(x[i]);
}

template <int GROUP, int TOP, bool WEIGHTED>
__device__ Line fit_group(const float (&x)[GROUP], const float (&w)[GROUP])
{
    if (WEIGHTED) return line_search<GROUP, TOP, false>(x, w, -0.9f, 0.05f, 36);
    return TOP == 15 ? line_search<GROUP, TOP, false>(x, w, -1.0f, 0.1f, 20)
                     : line_search<GROUP, TOP, TOP == 3>(x, w, -0.5f, 0.1f, 15);
}

template <int N, int LIMIT, bool WEIGHTED>
__device__ float fit_scales(const float (&x)[N], const float (&w)[N], float (&codes)[N])
{
    return WEIGHTED ? scale_of_scales<N, LIMIT>(x, w, codes) : scale_of_peak<N, LIMIT>(x, codes);
}

// Six-bit scales and minima of eight groups, in twelve bytes.
__device__ inline void store_six_bits(unsigned char* target, const float (&s)[8], const float (&m)[8])
{
    UNROLL for (int g = 0; g < 4; ++g) {
        int s0 = (int)s[g], s1 = (int)s[g + 4], m0 = (int)m[g], m1 = (int)m[g + 4];
        target[g] = s0 | s1 >> 4 << 6;
        target[4 + g] = m0 | m1 >> 4 << 6;
        target[8 + g] = (s1 & 15) | (m1 & 15) << 4;
    }
}

template <int N>
__device__ void store_four_bits(unsigned char* target, const float (&s)[N], const float (&m)[N])
{
    UNROLL for (int g = 0; g < N; ++g)
        target[g] = (int)s[g] | (int)m[g] << 4;
}

__device__ inline void store_scales(unsigned char* target, const float (&s)[8], const float (&m)[8])
{
    store_six_bits(target + 4, s, m);
}

__device__ inline void store_scales(unsigned char* target, const float (&s)[16], const float (&m)[16])
{
    store_four_bits(target, s, m);
}

template <int GROUP, int TOP, int LIMIT, bool WEIGHTED>
__device__ void lines(const Job& job)
{
    const int groups = SUPER / GROUP, tile = THREADS / groups;
    const int bytes = TOP == 3 ? 84 : TOP == 15 ? 144 : 176, d_place = TOP == 3 ? 80 : 0;
    __shared__ Tile<GROUP, tile * SUPER> values;
    __shared__ Tile<GROUP, WEIGHTED ? tile * SUPER : GROUP> weights;
    __shared__ Line fits[THREADS];
    __shared__ float totals[THREADS], steps[THREADS], floors[THREADS], means[tile];
    __shared__ unsigned char codes[tile * SUPER];
    __shared__ unsigned int packed[tile * bytes / 4];
    load_values(job, values);
    if (WEIGHTED) {
        load_importance(job, weights);
        __syncthreads();
        mean_squares<SUPER>(values, GROUP == 32 ? 2.0f : 1.0f, means);
    }
    __syncthreads();
    EACH (t, THREADS) {
        float x[GROUP], w[GROUP];
        read_group(values.group(t), x);
        if (WEIGHTED) {
            temper(x, weights.group(t), means[t / groups], w);
            float total = w[0];
            UNROLL for (int i = 1; i < GROUP; ++i)
                total += w[i];
            totals[t] = total;
        } else {
            own_weights(x, w);
        }
        fits[t] = fit_group<GROUP, TOP, WEIGHTED>(x, w);
    }
    __syncthreads();
    EACH (b, tile) {
        unsigned char* target = (unsigned char*)packed + b * bytes;
        float scales[groups], minima[groups], total[groups], s[groups], m[groups];
        UNROLL for (int g = 0; g < groups; ++g) {
            scales[g] = fits[b * groups + g].scale;
            minima[g] = -fits[b * groups + g].minimum;
            total[g] = WEIGHTED ? totals[b * groups + g] : 0.0f;
        }
        float d = fit_scales<groups, LIMIT, WEIGHTED>(scales, total, s);
        float dm = fit_scales<groups, LIMIT, WEIGHTED>(minima, total, m);
        d = store_half(target + d_place, d, job.status);
        dm = store_half(target + d_place + 2, dm, job.status);
        UNROLL for (int g = 0; g < groups; ++g) {
            steps[b * groups + g] = d * s[g];
            floors[b * groups + g] = dm * m[g];
        }
        store_scales(target, s, m);
    }
    __syncthreads();
    EACH (t, THREADS) {
        const float* x = values.group(t);
        Line fit = fits[t];
        float step = steps[t], floor = floors[t];
        // Where the step came out as zero the codes mean nothing, but they are stored: those of the search.
        UNROLL for (int i = 0; i < GROUP; ++i) {
            float code = step == 0.0f ? fit.code(x[i], TOP) : clamp(rintf((x[i] + floor) / step), 0.0f, TOP);
            codes[t * GROUP + i] = (int)code;
        }
    }
    __syncthreads();
    const int low_bytes = TOP == 3 ? 64 : 128, low_place = TOP == 3 ? 16 : bytes - 128;
    EACH (i, tile * low_bytes) {
        int b = i / low_bytes, k = i % low_bytes;
        const unsigned char* q = codes + b * SUPER;
        const unsigned char* pair = q + k / 32 * 64 + k % 32;
        int low = TOP == 3 ? two_bit_plane(q, k, 0) : (pair[0] & 15) | (pair[32] & 15) << 4;
        ((unsigned char*)packed)[b * bytes + low_place + k] = low;
    }
    if (TOP == 31)
        EACH (i, tile * 32)
            ((unsigned char*)packed)[i / 32 * bytes + 16 + i % 32] =
                one_bit_plane(codes + i / 32 * SUPER, i % 32, 4);
    __syncthreads();
    write_blocks<tile * SUPER, SUPER, bytes>(job, packed);
}

KERNEL(Q4_K, plain, 128, 4096) { lines<32, 15, 63, false>(job); }
KERNEL(Q4_K, weighted, 128, 4096) { lines<32, 15, 63, true>(job); }
KERNEL(Q5_K, plain, 128, 4096) { lines<32, 31, 63, false>(job); }
KERNEL(Q5_K, weighted, 128, 4096) { lines<32, 31, 63, true>(job); }
KERNEL(Q2_K, plain, 128, 2048) { lines<16, 3, 15, false>(job); }
KERNEL(Q2_K, weighted, 128, 2048) { lines<16, 3, 15, true>(job); }
