// What CUDA kernels need of CUDA, as C++: one CUDA block after the other, with one thread or several.
#include <barrier>
#include <cstring>
#include <math.h>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
    int x;
};

extern "C" {
inline thread_local Index threadIdx = {0};
Index blockIdx = {0};
Index blockDim = {1};
std::barrier<>* meeting = nullptr;
}

inline void __syncthreads()
{
    if (meeting) meeting->arrive_and_wait();
}

inline void atomicOr(int* target, int bits) { __atomic_fetch_or(target, bits, __ATOMIC_RELAXED); }

inline int __float_as_int(float value)
{
    int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float __int_as_float(int bits)
{
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline int __clz(int bits) { return bits ? __builtin_clz(bits) : 32; }
