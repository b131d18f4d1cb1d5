// Q6_K and Q3_K: a signed scale for each group of 16; the layouts are in formats/gguf_k_scale.py.
#include "superblock.cuh"

#define GROUP 16
#define GROUPS 16
#define TILE 8

typedef Tile<GROUP, TILE * SUPER> Values;

// Codes round(x / step) + half; those of the search where the step came out as zero.
template <int HALF, class Searched>
__device__ void round_by_step(const float* x, float step, const Searched& searched, unsigned char* codes)
{
    UNROLL for (int i = 0; i < GROUP; ++i) {
        int code = (int)clamp(rintf(x[i] / step), (float)-HALF, (float)(HALF - 1)) + HALF;
        codes[i] = step == 0.0f ? searched(i) : code;
    }
}

template <bool WEIGHTED>
__device__ void six_bits(const Job& job)
{
    const int bytes = 210, half = 32;
    __shared__ Values values;
    __shared__ Tile<GROUP, WEIGHTED ? TILE * SUPER : GROUP> weights;
    __shared__ Ratio fits[THREADS];
    __shared__ float steps[THREADS];
    __shared__ bool empty[TILE];
    __shared__ unsigned char codes[TILE * SUPER];
    __shared__ unsigned int packed[TILE * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    load_values(job, values);
    if (WEIGHTED) load_importance(job, weights);
    __syncthreads();
    EACH (t, THREADS) {
        float x[GROUP], w[GROUP];
        read_group(values.group(t), x);
        UNROLL for (int i = 0; i < GROUP; ++i)
            w[i] = WEIGHTED ? weights.group(t)[i] : x[i] * x[i];
        fits[t] = ratio_search<GROUP, half>(x, w);
    }
    __syncthreads();
    EACH (b, TILE) {
        float scales[GROUPS];
        UNROLL for (int g = 0; g < GROUPS; ++g)
            scales[g] = fits[b * GROUPS + g].scale;
        float peak = signed_peak(scales);
        empty[b] = fabsf(peak) < NOTHING;
        float inverse = empty[b] ? 0.0f : -128.0f / peak;
        float d =
            store_half(target + b * bytes + 208, empty[b] ? 0.0f : reciprocal(1.0f, inverse), job.status);
        UNROLL for (int g = 0; g < GROUPS; ++g) {
            int s = (int)clamp(rintf(scales[g] * inverse), -128.0f, 127.0f);
            target[b * bytes + 192 + g] = s & 255;
            steps[b * GROUPS + g] = d * (float)s;
        }
    }
    __syncthreads();
    EACH (t, THREADS) {
        const float* x = values.group(t);
        Ratio fit = fits[t];
        unsigned char* q = codes + t * GROUP;
        round_by_step<half>(x, steps[t], [&](int i) { return fit.code(x[i], half); }, q);
        if (empty[t / GROUPS])
            for (int i = 0; i < GROUP; ++i) q[i] = 0;
    }
    __syncthreads();
    EACH (i, TILE * 192) {
        int b = i / 192, k = i % 192;
        const unsigned char* q = codes + b * SUPER;
        const unsigned char* low = q + k / 64 * 128 + k % 64;
        target[b * bytes + k] = k < 128 ? (low[0] & 15) | (low[64] & 15) << 4 : two_bit_plane(q, k - 128, 4);
    }
    __syncthreads();
    write_blocks<TILE * SUPER, SUPER, bytes>(job, packed);
}

KERNEL(Q6_K, plain, 128, 2048) { six_bits<false>(job); }
KERNEL(Q6_K, weighted, 128, 2048) { six_bits<true>(job); }

// Scale and codes -4 to 3 of a group with weights x**2; codes come out as 0 to 7.
__device__ inline float three_bit_group(const float (&x)[GROUP], unsigned char* codes)
{
    float w[GROUP], q[GROUP], peak = signed_peak(x), scale = 0.0f;
    if (fabsf(peak) < NOTHING) {
        UNROLL for (int i = 0; i < GROUP; ++i)
            q[i] = -4.0f;
    } else {
        float inverse = -4.0f / peak;
        UNROLL for (int i = 0; i < GROUP; ++i) {
            w[i] = x[i] * x[i];
            q[i] = clamp(rintf(x[i] * inverse), -4.0f, 3.0f);
        }
        scale = walk<GROUP, -4, 3, false>(x, w, q);
    }
    UNROLL for (int i = 0; i < GROUP; ++i)
        codes[i] = (int)q[i] + 4;
    return scale;
}

// The scale of the groups' scales and their codes 0 to 63; the one of largest magnitude gets the code 0.
__device__ inline float scales_of_peak(const float (&scales)[GROUPS], int (&s)[GROUPS])
{
    float inverse = reciprocal(-32.0f, signed_peak(scales));
    UNROLL for (int g = 0; g < GROUPS; ++g)
        s[g] = inverse == 0.0f ? 0 : (int)clamp(rintf(scales[g] * inverse), -32.0f, 31.0f) + 32;
    return reciprocal(1.0f, inverse);
}

__device__ inline void store_three_bit_scales(unsigned char* target, const int (&s)[GROUPS])
{
    UNROLL for (int g = 0; g < 8; ++g)
        target[g] = (s[g] & 15) | (s[g + 8] & 15) << 4;
    UNROLL for (int g = 0; g < 4; ++g)
        target[8 + g] = s[g] >> 4 | s[g + 4] >> 4 << 2 | s[g + 8] >> 4 << 4 | s[g + 12] >> 4 << 6;
}

template <bool WEIGHTED>
__device__ void three_bits(const Job& job)
{
    const int bytes = 110, half = 4;
    __shared__ Values values;
    __shared__ Tile<GROUP, WEIGHTED ? TILE * SUPER : GROUP> weights;
    __shared__ float scales[THREADS], totals[THREADS], steps[THREADS], means[TILE];
    __shared__ unsigned char codes[TILE * SUPER];
    __shared__ unsigned int packed[TILE * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    load_values(job, values);
    if (WEIGHTED) {
        load_importance(job, weights);
        __syncthreads();
        mean_squares<SUPER>(values, 2.0f, means);
    }
    __syncthreads();
    EACH (t, THREADS) {
        float x[GROUP];
        unsigned char* q = codes + t * GROUP;
        read_group(values.group(t), x);
        if (WEIGHTED) {
            float w[GROUP], total;
            temper(x, weights.group(t), means[t / GROUPS], w);
            total = w[0];
            UNROLL for (int i = 1; i < GROUP; ++i)
                total += w[i];
            Ratio fit = ratio_search<GROUP, half>(x, w);
            UNROLL for (int i = 0; i < GROUP; ++i)
                q[i] = fit.code(x[i], half);
            totals[t] = total;
            scales[t] = fit.scale;
        } else {
            scales[t] = three_bit_group(x, q);
        }
    }
    __syncthreads();
    EACH (b, TILE) {
        float scale[GROUPS], total[GROUPS], d;
        int s[GROUPS];
        UNROLL for (int g = 0; g < GROUPS; ++g)
            scale[g] = scales[b * GROUPS + g];
        if (WEIGHTED) {
            UNROLL for (int g = 0; g < GROUPS; ++g)
                total[g] = totals[b * GROUPS + g];
            Ratio fit = ratio_search<GROUPS, 32>(scale, total);
            UNROLL for (int g = 0; g < GROUPS; ++g)
                s[g] = fit.code(scale[g], 32);
            d = fit.scale;
        } else {
            d = scales_of_peak(scale, s);
        }
        d = store_half(target + b * bytes + 108, d, job.status);
        UNROLL for (int g = 0; g < GROUPS; ++g)
            steps[b * GROUPS + g] = d * (float)(s[g] - 32);
        store_three_bit_scales(target + b * bytes + 96, s);
    }
    __syncthreads();
    EACH (t, THREADS) {
        unsigned char* q = codes + t * GROUP;
        round_by_step<half>(values.group(t), steps[t], [&](int i) { return q[i]; }, q);
    }
    __syncthreads();
    EACH (i, TILE * 96) {
        int b = i / 96, k = i % 96;
        const unsigned char* q = codes + b * SUPER;
        target[b * bytes + k] = k < 32 ? one_bit_plane(q, k, 2) : two_bit_plane(q, k - 32, 0);
    }
    __syncthreads();
    write_blocks<TILE * SUPER, SUPER, bytes>(job, packed);
}

KERNEL(Q3_K, plain, 128, 2048) { three_bits<false>(job); }
KERNEL(Q3_K, weighted, 128, 2048) { three_bits<true>(job); }
