// MXFP4 and NVFP4: four-bit floats with a shared scale of one byte; the layouts are in formats/gguf_fp4.py.
#include "common.cuh"

#define TILE_WEIGHTS 4096

// The exponent of the largest magnitude, less two, with the bias of 127. ggml takes the logarithm in single
// precision, which rounds up to a whole number `whole` from some steps below 2**whole on: the more, the
// further the whole number is from zero, and log(2) / 2 of the distance between it and the float before it.
struct SharedExponent {
    static __device__ int encode(float peak, int* status)
    {
        if (peak == 0.0f) return 0;
        bool tiny = peak < 1.17549435e-38f;
        int bits = __float_as_int(tiny ? peak * 16777216.0f : peak);
        int whole = (bits >> 23) - 126 - (tiny ? 24 : 0);
        int width = 32 - __clz(whole > 0 ? whole - 1 : -whole);
        bool rounded_up = 0x800000 - (bits & 0x7fffff) <= 88 >> (8 - width);
        int code = (whole - 1 + rounded_up + 125) & 255;
        if (code == 255) atomicOr(status, TOO_SMALL);
        return code;
    }

    // Half of the scale.
    static __device__ float value(int code)
    {
        return __int_as_float(code > 1 ? (code - 1) << 23 : 0x200000 << code);
    }
};

// A sixth of the largest magnitude as a float with four bits of exponent and three of mantissa.
struct SharedFloat {
    static __device__ int encode(float peak, int*)
    {
        float scale = peak / 6.0f;
        // Below 2**-6 there are no more exponents, only steps of 2**-9.
        if (scale < 0.015625f) return (int)clamp(scale * 512.0f + 0.5f, 0.0f, 7.0f);
        int code = (((__float_as_int(scale) >> 19) + 1) >> 1) - (120 << 3);
        return code >= 0x78 ? 0x7e : code;
    }

    static __device__ float value(int code)
    {
        float mantissa = (float)(code & 7);
        if (code < 8) return mantissa * 0.0009765625f;
        return (1.0f + mantissa / 8.0f) * __int_as_float(((code >> 3) + 127 - 8) << 23);
    }
};

// The nearest level, of equally near ones the lowest; a negative zero is never made. Levels are doubled.
__device__ inline int nearest_level(float x, float step)
{
    const int levels[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    float magnitude = fabsf(x), best = magnitude;
    int q = 0;
    UNROLL for (int i = 1; i < 8; ++i) {
        float difference = fabsf(step * (float)levels[i] - magnitude);
        if (difference < best) {
            best = difference;
            q = i;
        }
    }
    return x < 0.0f && q ? q | 8 : q;
}

template <class Scale, int GROUP, int SCALES>
__device__ void small_floats(const Job& job)
{
    const int half = GROUP / 2, groups = TILE_WEIGHTS / GROUP, bytes = SCALES * (1 + half);
    __shared__ Tile<GROUP, TILE_WEIGHTS> values;
    __shared__ unsigned int packed[groups / SCALES * bytes / 4];
    load_values(job, values);
    __syncthreads();
    EACH (t, groups) {
        const float* x = values.group(t);
        unsigned char* target = (unsigned char*)packed + t / SCALES * bytes;
        float peak = 0.0f;
        UNROLL for (int i = 0; i < GROUP; ++i)
            peak = larger(peak, fabsf(x[i]));
        int code = Scale::encode(peak, job.status);
        float step = Scale::value(code);
        target[t % SCALES] = code;
        target += SCALES + t % SCALES * half;
        UNROLL for (int i = 0; i < half; ++i)
            target[i] = nearest_level(x[i], step) | nearest_level(x[i + half], step) << 4;
    }
    __syncthreads();
    write_blocks<TILE_WEIGHTS, GROUP * SCALES, bytes>(job, packed);
}

KERNEL(MXFP4, either, 128, 4096) { small_floats<SharedExponent, 32, 1>(job); }
KERNEL(NVFP4, either, 256, 4096) { small_floats<SharedFloat, 16, 4>(job); }
