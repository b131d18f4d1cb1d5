// Codebooks of the IQ types, in the flat form of quantcore.methods.grids, and the choice among grid points.
#ifndef QUANTCORE_GRID
#define QUANTCORE_GRID

#include "superblock.cuh"

// ggml's way to round: what is too large for it wraps around, which is part of the bytes.
__device__ inline int nearest_wrapped(float x)
{
    return x == x ? (__float_as_int(x + 12582912.0f) & 0x7fffff) - 0x400000 : 0;
}

// The level that stands for x * inverse, an odd number.
__device__ inline int odd_level(float x, float inverse, int top)
{
    int level = nearest_wrapped(0.5f * (inverse * x - 1.0f));
    return level < 0 ? 0 : level > top ? top : level;
}

// The codebook, in the flat form of quantcore.methods.grids.
struct Book {
    const int *map, *indices, *levels, *points;
    __device__ explicit Book(const int* tables)
        : map(tables + tables[0]),
          indices(tables + tables[1]),
          levels(tables + tables[2]),
          points(tables + tables[3])
    {
    }
};

// A grid point and its levels, four bits each.
struct Point {
    int index;
    unsigned int levels;
    bool off; // the levels were not on the grid, and had to move
};

template <int SIZE>
__device__ Point grid_point(const Book& book, int index, bool off)
{
    unsigned int levels = 0;
    UNROLL for (int i = 0; i < SIZE; ++i)
        levels |= (unsigned int)book.points[index * SIZE + i] << 4 * i;
    return Point{index, levels, off};
}

// The best choice for a lattice point off the grid, given what the map says of it: the one of least cost, the
// first of equals. `costs` are the costs of every level of every element, STRIDE apart, added up in order.
template <int SIZE, int LEVELS, int STRIDE>
__device__ Point cheapest(const Book& book, int found, const float* costs)
{
    int chunk = (-1 - found) >> 5, last = chunk + ((-1 - found) & 31), best = 16 * chunk;
    float least = 3.402823466e38f;
    ROLLED for (; chunk < last; ++chunk) {
        ROLLED for (int four = 0; four < 4; ++four) {
            float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            UNROLL for (int i = 0; i < SIZE; ++i) {
                int row = book.levels[(chunk * SIZE + i) * 4 + four];
                UNROLL for (int k = 0; k < 4; ++k)
                    sums[k] += costs[(i * LEVELS + (row >> 8 * k & 255)) * STRIDE];
            }
            UNROLL for (int k = 0; k < 4; ++k) {
                if (sums[k] < least) {
                    least = sums[k];
                    best = 16 * chunk + 4 * four + k;
                }
            }
        }
    }
    return grid_point<SIZE>(book, book.indices[best], true);
}

#endif
