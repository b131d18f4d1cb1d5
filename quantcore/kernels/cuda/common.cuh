// What all kernels share: their form, tiles in shared memory, 16-bit floats.
//
// A kernel quantizes one tile of blocks per CUDA block. It is a row of phases; within a phase the work items
// of a tile (a group of weights, a super-block, a byte) go to the threads by EACH, between phases stands
// __syncthreads(), and what passes from phase to phase is in shared memory. So the outcome does not depend on
// the number of threads: the tests compile the same text as C++ and run it with one.
//
// The bytes are those of ggml, so its order of every operation counts. Compile with --fmad=false and without
// fast math: single precision, IEEE division and square root, denormal numbers kept.
#ifndef QUANTCORE_COMMON
#define QUANTCORE_COMMON

struct Job {
    const float* x; // finite, (n_weights,): rows of whole blocks
    long long n_weights;
    int row_length;
    const float* importance; // (row_length,) or null
    const int* tables;       // what the format's tables() gave, or null
    const float* row_means;  // mean square of each row, where a file defines row_means, or null
    unsigned char* out;      // one block of bytes after the other
    int* status;             // gets the bits of what cannot be stored
};

// A scale that does not fit its 16 bits; a block too small for a scale of 8 bits; squares beyond single
// precision.
enum { TOO_LARGE = 1, TOO_SMALL = 16, SQUARES = 32 };

// KERNEL(format, kind, threads, tile) opens the kernel of a format: `tile` weights for `threads` threads.
// Kind is plain, weighted (takes importance into account) or either. quantcore.kernels.cuda looks for these
// lines.
#define KERNEL(format, kind, threads, tile)                                                                  \
    __device__ void format##_##kind##_body(const Job& job);                                                  \
    extern "C" __global__ void __launch_bounds__(threads)                                                    \
        format##_##kind(const float* x, long long n_weights, int row_length, const float* importance,        \
                        const int* tables, const float* row_means, unsigned char* out, int* status)          \
    {                                                                                                        \
        format##_##kind##_body(Job{x, n_weights, row_length, importance, tables, row_means, out, status});   \
    }                                                                                                        \
    __device__ void format##_##kind##_body(const Job& job)

#define EACH(item, count) _Pragma("unroll 1") for (int item = threadIdx.x; item < (count); item += blockDim.x)

#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

__device__ inline float smaller(float a, float b) { return b < a ? b : a; }
__device__ inline float larger(float a, float b) { return a < b ? b : a; }
__device__ inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
__device__ inline bool is_finite(float x) { return (__float_as_int(x) & 0x7f800000) != 0x7f800000; }

// reach / span; spans of zero, or so small that this overflows, give 0 and with it all codes 0.
__device__ inline float reciprocal(float reach, float span)
{
    float inverse = reach / span;
    return is_finite(inverse) ? inverse : 0.0f;
}

// The bits of the nearest 16-bit float, ties to even; infinity if it is too large.
__device__ inline int half_bits(float value)
{
    int bits = __float_as_int(value);
    int sign = (bits >> 16) & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000 - 0x1000) return sign | 0x7c00;
    // Subnormal: adding one half puts the ten bits at the end of the mantissa.
    if (bits < 0x38800000) return sign | (__float_as_int(__int_as_float(bits) + 0.5f) - 0x3f000000);
    return sign | ((bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13);
}

// The value of a finite 16-bit float.
__device__ inline float half_value(int bits)
{
    float value = __int_as_float((bits & 0x7fff) << 13) * 5192296858534827628530496329220096.0f; // 2**112
    return bits & 0x8000 ? -value : value;
}

// Store a scale as two bytes and return it as it is stored.
__device__ inline float store_half(unsigned char* target, float value, int* status)
{
    int bits = half_bits(value);
    if ((bits & 0x7c00) == 0x7c00) {
        atomicOr(status, TOO_LARGE);
        bits = 0;
    }
    target[0] = bits & 255;
    target[1] = bits >> 8;
    return half_value(bits);
}

// A tile of weights in shared memory: groups of GROUP, one word apart so that threads of a warp, each at the
// same place of its own group, meet no bank twice.
template <int GROUP, int WEIGHTS>
struct Tile {
    float at[WEIGHTS / GROUP * (GROUP + 1)];
    __device__ float* group(int number) { return at + number * (GROUP + 1); }
    __device__ const float* group(int number) const { return at + number * (GROUP + 1); }
    __device__ float& weight(int number) { return at[number + number / GROUP]; }
    __device__ float weight(int number) const { return at[number + number / GROUP]; }
};

// Bring the weights of this CUDA block's tile to shared memory; those beyond the last block are zero.
template <int GROUP, int WEIGHTS>
__device__ void load_values(const Job& job, Tile<GROUP, WEIGHTS>& tile)
{
    long long first = (long long)blockIdx.x * WEIGHTS;
    long long left = job.n_weights - first;
    EACH (i, WEIGHTS) tile.weight(i) = i < left ? job.x[first + i] : 0.0f;
}

// The importance of each weight of the tile.
template <int GROUP, int WEIGHTS>
__device__ void load_importance(const Job& job, Tile<GROUP, WEIGHTS>& tile)
{
    int first = (int)((long long)blockIdx.x * WEIGHTS % job.row_length);
    EACH (i, WEIGHTS) tile.weight(i) = job.importance[(first + i) % job.row_length];
}

// Write the tile's blocks, BYTES for each BLOCK weights, from shared memory, by words where they are aligned.
template <int WEIGHTS, int BLOCK, int BYTES>
__device__ void write_blocks(const Job& job, const unsigned int* packed)
{
    long long left = job.n_weights - (long long)blockIdx.x * WEIGHTS;
    int count = (left < WEIGHTS ? (int)left : WEIGHTS) / BLOCK * BYTES;
    unsigned char* out = job.out + (long long)blockIdx.x * (WEIGHTS / BLOCK * BYTES);
    int words = ((unsigned long long)out & 3) == 0 ? count / 4 : 0;
    EACH (i, words) ((unsigned int*)out)[i] = packed[i];
    EACH (i, count - 4 * words) out[4 * words + i] = ((const unsigned char*)packed)[4 * words + i];
}

#endif
