// IQ4_NL and IQ4_XS: sixteen uneven levels; the layouts are in formats/gguf_iq4.py, the search in
// methods/uneven.py.
#include "superblock.cuh"

#define GROUP 32
#define TILE_WEIGHTS 4096
#define LOWEST (-254)
#define HIGHEST 226

__device__ const float LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};

// The nearest level of a number, of two equally near the upper one: twice the middle between two levels is
// whole, so the whole part of twice the number tells.
struct Levels {
    float value[HIGHEST - LOWEST + 1];
    unsigned char code[HIGHEST - LOWEST + 1];

    __device__ void fill()
    {
        EACH (i, HIGHEST - LOWEST + 1) {
            int nearest = 0;
            for (int k = 0; k < 15; ++k) nearest += (float)(i + LOWEST) >= LEVELS[k] + LEVELS[k + 1];
            value[i] = LEVELS[nearest];
            code[i] = nearest;
        }
    }

    __device__ int place(float x) const
    {
        // What is not a number gets the highest code.
        float twice = floorf(x * 2.0f);
        return (twice == twice ? (int)clamp(twice, LOWEST, HIGHEST) : HIGHEST) - LOWEST;
    }
};

// The scale for which the nearest levels fit best, among 16.
__device__ inline float scale_by_levels(const float (&x)[GROUP], const float (&w)[GROUP],
                                        const Levels& levels)
{
    float peak = signed_peak(x), scale = 0.0f, explained = 0.0f;
    if (fabsf(peak) < NOTHING) return 0.0f;
    // The peak at 127 first, then at -134 to -120: -8 stands for the first.
    ROLLED for (int i = -8; i <= 7; ++i) {
        float inverse = i == -8 ? 1.0f / (peak / 127.0f) : (float)(i - 127) / peak;
        float sum_lx = 0.0f, sum_l2 = 0.0f;
        UNROLL for (int k = 0; k < GROUP; ++k) {
            float level = levels.value[levels.place(x[k] * inverse)], weighted = w[k] * level;
            sum_lx += weighted * x[k];
            sum_l2 += weighted * level;
        }
        if (sum_l2 > 0.0f && (i == -8 || sum_lx * sum_lx > explained * sum_l2)) {
            scale = sum_lx / sum_l2;
            explained = scale * sum_lx;
        }
    }
    return scale;
}

// Store the scales of a super-block of IQ4_XS as multiples of one; they become what the codes are rounded
// with.
__device__ inline void store_multiples(unsigned char* target, float* scales, int* status)
{
    float all[8];
    UNROLL for (int g = 0; g < 8; ++g)
        all[g] = scales[g];
    float d = -signed_peak(all) / 32.0f;
    store_half(target, d, status);
    float inverse = d == 0.0f ? 0.0f : 1.0f / d;
    int high = 0, low[8];
    UNROLL for (int g = 0; g < 8; ++g) {
        float times = all[g] * inverse;
        // Where 1 / d is beyond single precision the block decodes to zeros; ggml's rounding gives these
        // then.
        if (is_finite(times))
            times = clamp(rintf(times), -32.0f, 31.0f);
        else
            times = times == times ? -32.0f : 0.0f;
        int s = (int)times + 32;
        high |= s >> 4 << 2 * g;
        low[g] = s & 15;
        scales[g] = d * times;
    }
    target[2] = high & 255;
    target[3] = high >> 8;
    UNROLL for (int g = 0; g < 4; ++g)
        target[4 + g] = low[2 * g] | low[2 * g + 1] << 4;
}

template <int BLOCK, bool WEIGHTED>
__device__ void uneven(const Job& job)
{
    const int blocks = TILE_WEIGHTS / BLOCK, groups = BLOCK / GROUP, half = BLOCK / 2;
    const int header = BLOCK == 32 ? 2 : 8, bytes = header + half;
    __shared__ Tile<GROUP, TILE_WEIGHTS> values;
    __shared__ Tile<GROUP, WEIGHTED ? TILE_WEIGHTS : GROUP> weights;
    __shared__ Levels levels;
    __shared__ float scales[THREADS], means[blocks];
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    levels.fill();
    load_values(job, values);
    if (WEIGHTED) {
        load_importance(job, weights);
        __syncthreads();
        mean_squares<BLOCK>(values, 2.0f, means);
    }
    __syncthreads();
    EACH (t, THREADS) {
        float x[GROUP], w[GROUP];
        read_group(values.group(t), x);
        if (WEIGHTED)
            temper(x, weights.group(t), means[t / groups], w);
        else UNROLL
            for (int i = 0; i < GROUP; ++i) w[i] = x[i] * x[i];
        scales[t] = scale_by_levels(x, w, levels);
    }
    __syncthreads();
    EACH (b, blocks) {
        if (BLOCK == 32)
            store_half(target + b * bytes, scales[b], job.status);
        else
            store_multiples(target + b * bytes, scales + b * groups, job.status);
    }
    __syncthreads();
    EACH (t, THREADS) {
        const float* x = values.group(t);
        unsigned char* nibbles = target + t / groups * bytes + header + t % groups * 16;
        float inverse = scales[t] == 0.0f ? 0.0f : 1.0f / scales[t];
        UNROLL for (int i = 0; i < 16; ++i)
            nibbles[i] = levels.code[levels.place(x[i] * inverse)] |
                         levels.code[levels.place(x[i + 16] * inverse)] << 4;
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, BLOCK, bytes>(job, packed);
}

KERNEL(IQ4_NL, plain, 128, 4096) { uneven<32, false>(job); }
KERNEL(IQ4_NL, weighted, 128, 4096) { uneven<32, true>(job); }
KERNEL(IQ4_XS, plain, 128, 4096) { uneven<256, false>(job); }
KERNEL(IQ4_XS, weighted, 128, 4096) { uneven<256, true>(job); }
