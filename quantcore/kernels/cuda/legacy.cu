// Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32, one thread for each; the layouts are in formats/gguf_legacy.py.
#include "search.cuh"

#define BLOCK 32
#define TILE 128

KERNEL(Q8_0, either, 128, 4096)
{
    const int bytes = 34;
    __shared__ Tile<BLOCK, TILE * BLOCK> tile;
    __shared__ unsigned int packed[TILE * bytes / 4];
    load_values(job, tile);
    __syncthreads();
    EACH (b, TILE) {
        const float* x = tile.group(b);
        unsigned char* target = (unsigned char*)packed + b * bytes;
        float peak = 0.0f;
        UNROLL for (int i = 0; i < BLOCK; ++i)
            peak = larger(peak, fabsf(x[i]));
        float d = peak / 127.0f;
        float inverse = d == 0.0f ? 0.0f : 1.0f / d;
        store_half(target, d, job.status);
        UNROLL for (int i = 0; i < BLOCK; ++i) {
            // Where 1 / d overflows there is nothing to round to.
            float v = x[i] * inverse, whole = truncf(v);
            target[2 + i] = is_finite(v) ? (int)truncf(v + (v - whole)) : 0;
        }
    }
    __syncthreads();
    write_blocks<TILE * BLOCK, BLOCK, bytes>(job, packed);
}

// The mean square of each row, added up in order: 32 rows at a time, one thread for each.
#define ROWS 32
#define COLUMNS 128

extern "C" __global__ void row_means(const float* x, long long n_rows, int row_length, float* means)
{
    __shared__ float part[ROWS * (COLUMNS + 1)];
    __shared__ float total[ROWS];
    long long first = (long long)blockIdx.x * ROWS;
    EACH (r, ROWS) total[r] = 0.0f;
    ROLLED for (int start = 0; start < row_length; start += COLUMNS) {
        int count = row_length - start < COLUMNS ? row_length - start : COLUMNS;
        EACH (i, ROWS * COLUMNS) {
            int r = i / COLUMNS, c = i % COLUMNS;
            bool there = first + r < n_rows && c < count;
            part[r * (COLUMNS + 1) + c] = there ? x[(first + r) * row_length + start + c] : 0.0f;
        }
        __syncthreads();
        EACH (r, ROWS) {
            float sum = total[r];
            for (int c = 0; c < count; ++c) {
                float value = part[r * (COLUMNS + 1) + c];
                sum += value * value;
            }
            total[r] = sum;
        }
        __syncthreads();
    }
    EACH (r, ROWS)
        if (first + r < n_rows) means[first + r] = total[r] / (float)row_length;
}

// Scale, minimum and codes of a block without a search.
template <int LEVELS, bool SIGNED>
__device__ void from_extremes(const float (&x)[BLOCK], float& d, float& m, int (&q)[BLOCK])
{
    const float half = LEVELS / 2;
    float low = x[0], high = x[0];
    if (SIGNED) {
        d = signed_peak(x) / -half;
    } else {
        UNROLL for (int i = 1; i < BLOCK; ++i) {
            low = smaller(low, x[i]);
            high = larger(high, x[i]);
        }
        d = (high - low) / (float)(LEVELS - 1);
    }
    m = SIGNED ? 0.0f : low;
    float inverse = d == 0.0f ? 0.0f : 1.0f / d;
    UNROLL for (int i = 0; i < BLOCK; ++i) {
        float code = SIGNED ? x[i] * inverse + (half + 0.5f) : (x[i] - m) * inverse + 0.5f;
        // Numbers so small that 1 / d overflows: all codes are to become 0.
        q[i] = is_finite(inverse) ? (int)clamp(code, 0.0f, (float)(LEVELS - 1)) : 0;
    }
}

// The same with importance.
template <int LEVELS, bool SIGNED>
__device__ void from_search(const float (&x)[BLOCK], const float (&w)[BLOCK], float& d, float& m,
                            int (&q)[BLOCK])
{
    if (SIGNED) {
        Ratio fit = ratio_search<BLOCK, LEVELS / 2>(x, w);
        d = fit.scale;
        UNROLL for (int i = 0; i < BLOCK; ++i)
            q[i] = fit.code(x[i], LEVELS / 2);
    } else {
        Line fit = line_search<BLOCK, LEVELS - 1, false>(x, w, -0.9f, 0.05f, 36);
        d = fit.scale;
        m = fit.minimum;
        UNROLL for (int i = 0; i < BLOCK; ++i)
            q[i] = (int)fit.code(x[i], LEVELS - 1);
    }
}

template <int LEVELS, bool SIGNED>
__device__ void store_block(unsigned char* target, float d, float m, const int (&q)[BLOCK], int* status)
{
    store_half(target, d, status);
    if (!SIGNED) store_half(target + 2, m, status);
    target += SIGNED ? 2 : 4;
    if (LEVELS == 32) {
        unsigned int high = 0;
        UNROLL for (int i = 0; i < BLOCK; ++i)
            high |= (unsigned int)(q[i] >> 4) << i;
        UNROLL for (int i = 0; i < 4; ++i)
            target[i] = high >> 8 * i & 255;
        target += 4;
    }
    UNROLL for (int i = 0; i < 16; ++i)
        target[i] = (q[i] & 15) | (q[i + 16] & 15) << 4;
}

template <int LEVELS, bool SIGNED, bool WEIGHTED>
__device__ void nibbles(const Job& job)
{
    const int bytes = 16 + (SIGNED ? 2 : 4) + (LEVELS == 32 ? 4 : 0);
    __shared__ Tile<BLOCK, TILE * BLOCK> tile;
    __shared__ unsigned int packed[TILE * bytes / 4];
    load_values(job, tile);
    __syncthreads();
    EACH (b, TILE) {
        long long first = ((long long)blockIdx.x * TILE + b) * BLOCK;
        if (first >= job.n_weights) continue;
        float x[BLOCK], d, m = 0.0f;
        int q[BLOCK];
        read_group(tile.group(b), x);
        if (WEIGHTED) {
            float w[BLOCK], mean = job.row_means[first / job.row_length];
            const float* importance = job.importance + first % job.row_length;
            UNROLL for (int i = 0; i < BLOCK; ++i)
                w[i] = importance[i] * sqrtf(mean + x[i] * x[i]);
            from_search<LEVELS, SIGNED>(x, w, d, m, q);
        } else {
            from_extremes<LEVELS, SIGNED>(x, d, m, q);
        }
        store_block<LEVELS, SIGNED>((unsigned char*)packed + b * bytes, d, m, q, job.status);
    }
    __syncthreads();
    write_blocks<TILE * BLOCK, BLOCK, bytes>(job, packed);
}

KERNEL(Q4_0, plain, 128, 4096) { nibbles<16, true, false>(job); }
KERNEL(Q4_0, weighted, 128, 4096) { nibbles<16, true, true>(job); }
KERNEL(Q4_1, plain, 128, 4096) { nibbles<16, false, false>(job); }
KERNEL(Q4_1, weighted, 128, 4096) { nibbles<16, false, true>(job); }
KERNEL(Q5_0, plain, 128, 4096) { nibbles<32, true, false>(job); }
KERNEL(Q5_0, weighted, 128, 4096) { nibbles<32, true, true>(job); }
KERNEL(Q5_1, plain, 128, 4096) { nibbles<32, false, false>(job); }
KERNEL(Q5_1, weighted, 128, 4096) { nibbles<32, false, true>(job); }
