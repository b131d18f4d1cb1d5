// TQ1_0, TQ2_0, Q2_0 and Q1_0: two or three levels and a scale; the layouts are in formats/gguf_ternary.py
// and formats/gguf_bits.py.
#include "common.cuh"

#define THREADS 128
#define GROUP 32
#define TILE_WEIGHTS 4096

typedef Tile<GROUP, TILE_WEIGHTS> Values;

// One of three levels: halves go away from zero, and `lost` is the code where 1 / d is beyond single
// precision.
__device__ inline int three_levels(float x, float inverse, int lost)
{
    if (!is_finite(inverse)) return lost;
    float y = x * inverse;
    return y >= 0.5f ? 2 : y <= -0.5f ? 0 : 1;
}

// Scale of each block, the largest magnitude, and its reciprocal.
template <int BLOCK, int BYTES, int PLACE>
__device__ void scales_of_peaks(const Job& job, const Values& values, float* peaks, float* inverses,
                                unsigned char* target)
{
    const int groups = BLOCK / GROUP;
    EACH (t, THREADS) {
        const float* x = values.group(t);
        float peak = 0.0f;
        UNROLL for (int i = 0; i < GROUP; ++i)
            peak = larger(peak, fabsf(x[i]));
        peaks[t] = peak;
    }
    __syncthreads();
    EACH (b, TILE_WEIGHTS / BLOCK) {
        float d = 0.0f;
        UNROLL for (int g = 0; g < groups; ++g)
            d = larger(d, peaks[b * groups + g]);
        inverses[b] = d == 0.0f ? 0.0f : 1.0f / d;
        store_half(target + b * BYTES + PLACE, d, job.status);
    }
}

// `count` digits of base 3 from weights `step` apart, as a fraction of 243 in 256ths, rounded up.
__device__ inline int digits(const Values& values, int first, int step, int count, float inverse)
{
    int number = 0;
    for (int k = 0; k < 5; ++k)
        number = number * 3 + (k < count ? three_levels(values.weight(first + k * step), inverse, 1) : 0);
    return (number * 256 + 242) / 243;
}

template <int LOST>
__device__ int four_codes(const Values& values, int first, int step, float inverse)
{
    int codes = 0;
    UNROLL for (int k = 0; k < 4; ++k)
        codes |= three_levels(values.weight(first + k * step), inverse, LOST) << 2 * k;
    return codes;
}

KERNEL(TQ1_0, either, 128, 4096)
{
    const int blocks = TILE_WEIGHTS / 256, bytes = 54;
    __shared__ Values values;
    __shared__ float peaks[THREADS], inverses[blocks];
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    load_values(job, values);
    __syncthreads();
    scales_of_peaks<256, bytes, 52>(job, values, peaks, inverses, target);
    __syncthreads();
    EACH (i, blocks * 52) {
        int b = i / 52, k = i % 52, first = b * 256;
        int byte = k < 32   ? digits(values, first + k, 32, 5, inverses[b])
                   : k < 48 ? digits(values, first + 160 + k - 32, 16, 5, inverses[b])
                            : digits(values, first + 240 + k - 48, 4, 4, inverses[b]);
        target[b * bytes + k] = byte;
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, 256, bytes>(job, packed);
}

KERNEL(TQ2_0, either, 128, 4096)
{
    const int blocks = TILE_WEIGHTS / 256, bytes = 66;
    __shared__ Values values;
    __shared__ float peaks[THREADS], inverses[blocks];
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    load_values(job, values);
    __syncthreads();
    scales_of_peaks<256, bytes, 64>(job, values, peaks, inverses, target);
    __syncthreads();
    EACH (i, blocks * 64) {
        int b = i / 64, k = i % 64;
        target[b * bytes + k] = four_codes<1>(values, b * 256 + k / 32 * 128 + k % 32, 32, inverses[b]);
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, 256, bytes>(job, packed);
}

KERNEL(Q2_0, either, 128, 4096)
{
    const int blocks = TILE_WEIGHTS / 64, bytes = 18;
    __shared__ Values values;
    __shared__ float peaks[THREADS], inverses[blocks];
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    load_values(job, values);
    __syncthreads();
    scales_of_peaks<64, bytes, 0>(job, values, peaks, inverses, target);
    __syncthreads();
    EACH (i, blocks * 16) {
        int b = i / 16, k = i % 16;
        target[b * bytes + 2 + k] = four_codes<0>(values, b * 64 + 4 * k, 1, inverses[b]);
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, 64, bytes>(job, packed);
}

KERNEL(Q1_0, either, 128, 4096)
{
    const int block = 128, blocks = TILE_WEIGHTS / block, bytes = 18;
    __shared__ Tile<block, TILE_WEIGHTS> values;
    __shared__ unsigned int packed[blocks * bytes / 4];
    unsigned char* target = (unsigned char*)packed;
    load_values(job, values);
    __syncthreads();
    EACH (b, blocks) {
        const float* x = values.group(b);
        float sum = 0.0f;
        ROLLED for (int i = 0; i < block; i += 16) UNROLL
            for (int k = 0; k < 16; ++k) sum += fabsf(x[i + k]);
        store_half(target + b * bytes, sum / (float)block, job.status);
    }
    EACH (i, blocks * 16) {
        const float* x = values.group(i / 16) + i % 16 * 8;
        int signs = 0;
        UNROLL for (int k = 0; k < 8; ++k)
            signs |= (x[k] >= 0.0f) << k;
        target[i / 16 * bytes + 2 + i % 16] = signs;
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, block, bytes>(job, packed);
}
