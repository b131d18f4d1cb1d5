// What the K-quants share: super-blocks of 256 weights in groups of 16 or 32, one thread for each group.
#ifndef QUANTCORE_SUPERBLOCK
#define QUANTCORE_SUPERBLOCK

#include "search.cuh"

#define SUPER 256
#define THREADS 128

// `spread` times the mean square of each block of the tile, added up in order.
template <int BLOCK, int GROUP, int WEIGHTS>
__device__ void mean_squares(const Tile<GROUP, WEIGHTS>& tile, float spread, float* means)
{
    EACH (b, WEIGHTS / BLOCK) {
        float total = 0.0f;
        ROLLED for (int g = 0; g < BLOCK / GROUP; ++g) {
            const float* x = tile.group(b * (BLOCK / GROUP) + g);
            UNROLL for (int i = 0; i < GROUP; ++i)
                total += x[i] * x[i];
        }
        means[b] = spread * total / (float)BLOCK;
    }
}

// importance * sqrt(mean + x**2)
template <int N>
__device__ void temper(const float (&x)[N], const float* importance, float mean, float (&w)[N])
{
    UNROLL for (int i = 0; i < N; ++i)
        w[i] = importance[i] * sqrtf(mean + x[i] * x[i]);
}

// Byte `i` of the two-bit plane of a super-block: elements i, i + 32, i + 64, i + 96 of its half.
__device__ inline int two_bit_plane(const unsigned char* codes, int i, int shift)
{
    const unsigned char* q = codes + i / 32 * 128 + i % 32;
    int plane = 0;
    UNROLL for (int quarter = 0; quarter < 4; ++quarter)
        plane |= (q[32 * quarter] >> shift & 3) << 2 * quarter;
    return plane;
}

// Byte `i` of the one-bit plane: elements i, i + 32, ... of the whole super-block.
__device__ inline int one_bit_plane(const unsigned char* codes, int i, int shift)
{
    int plane = 0;
    UNROLL for (int k = 0; k < 8; ++k)
        plane |= (codes[32 * k + i] >> shift & 1) << k;
    return plane;
}

#endif
