// The searches of quantcore.methods.kquant and kquant_descent, each for one group of N weights by one thread.
#ifndef QUANTCORE_SEARCH
#define QUANTCORE_SEARCH

#include "common.cuh"

// Below this magnitude a group counts as zero.
#define NOTHING 1e-15f

// x is about scale * code + minimum; x was rounded with `inverse` from `origin` on.
struct Line {
    float scale, minimum, inverse, origin;
    __device__ float code(float x, float top) const
    {
        return clamp(rintf((x - origin) * inverse), 0.0f, top);
    }
};

// The line of least sum(w * error**2), or sum(w * |error|) where ABSOLUTE. A winner's minimum is where the
// next candidates start, so the steps depend on each other.
template <int N, int TOP, bool ABSOLUTE>
__device__ Line line_search(const float (&x)[N], const float (&w)[N], float first, float step, int steps)
{
    const float top = TOP;
    float low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    UNROLL for (int i = 1; i < N; ++i) {
        low = smaller(low, x[i]);
        high = larger(high, x[i]);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    Line best;
    best.minimum = best.origin = low > 0.0f ? 0.0f : low;
    best.inverse = reciprocal(top, high - best.minimum);
    best.scale = reciprocal(1.0f, best.inverse);
    float error = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        float difference = best.code(x[i], top) * best.scale + best.minimum - x[i];
        error += w[i] * (ABSOLUTE ? fabsf(difference) : difference * difference);
    }
    ROLLED for (int s = 0; s <= steps; ++s) {
        Line trial;
        trial.origin = best.minimum;
        trial.inverse = reciprocal(first + step * (float)s + top, high - best.minimum);
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f, codes[N];
        UNROLL for (int i = 0; i < N; ++i) {
            float code = codes[i] = trial.code(x[i], top), wl = w[i] * code;
            sum_l += wl;
            sum_l2 += wl * code;
            sum_xl += wl * x[i];
        }
        float determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (!(determinant > 0.0f)) continue;
        trial.scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        trial.minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if (trial.minimum > 0.0f) {
            trial.minimum = 0.0f;
            trial.scale = sum_xl / sum_l2;
        }
        float new_error = 0.0f;
        UNROLL for (int i = 0; i < N; ++i) {
            float difference = codes[i] * trial.scale + trial.minimum - x[i];
            new_error += w[i] * (ABSOLUTE ? fabsf(difference) : difference * difference);
        }
        if (new_error < error) {
            error = new_error;
            best = trial;
        }
    }
    return best;
}

// x is about scale * (code - half); x was rounded with `inverse`, which is 0 where all is (nearly) zero.
struct Ratio {
    float scale, inverse;
    __device__ int code(float x, int half) const
    {
        if (inverse == 0.0f) return 0;
        return (int)clamp(rintf(x * inverse), (float)-half, (float)(half - 1)) + half;
    }
};

// The value of largest magnitude, with its sign; the first of equals.
template <int N>
__device__ float signed_peak(const float (&x)[N])
{
    float peak = 0.0f, most = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        float magnitude = fabsf(x[i]);
        if (magnitude > most) {
            most = magnitude;
            peak = x[i];
        }
    }
    return peak;
}

// The scale that explains most, sum(w x l)**2 / sum(w l l), among 19 ways to round to codes l.
template <int N, int HALF>
__device__ Ratio ratio_search(const float (&x)[N], const float (&w)[N])
{
    float peak = signed_peak(x);
    if (fabsf(peak) < NOTHING) return Ratio{0.0f, 0.0f};
    Ratio best = {0.0f, -(float)HALF / peak};
    float explained = 0.0f;
    // The middle first, then from below to above: -10 stands for the middle.
    ROLLED for (int i = -10; i <= 9; ++i) {
        if (i == 0) continue;
        float reach = i == -10 ? (float)HALF : (float)HALF + 0.1f * (float)i;
        float inverse = -reach / peak, sum_lx = 0.0f, sum_l2 = 0.0f;
        UNROLL for (int k = 0; k < N; ++k) {
            float code = clamp(rintf(x[k] * inverse), (float)-HALF, (float)(HALF - 1));
            sum_lx += w[k] * x[k] * code;
            sum_l2 += w[k] * code * code;
        }
        bool wins = i == -10 ? sum_l2 != 0.0f : sum_l2 > 0.0f && sum_lx * sum_lx > explained * sum_l2;
        if (wins) {
            best.scale = sum_lx / sum_l2;
            best.inverse = inverse;
            explained = best.scale * sum_lx;
        }
    }
    return best;
}

// Walk over the codes, changing one wherever that explains more, at most five times over; return the scale.
template <int N, int LOW, int HIGH, bool REST_POSITIVE>
__device__ float walk(const float (&x)[N], const float (&w)[N], float (&codes)[N])
{
    float sum_lx = 0.0f, sum_l2 = 0.0f;
    UNROLL for (int i = 0; i < N; ++i) {
        sum_lx += w[i] * x[i] * codes[i];
        sum_l2 += w[i] * codes[i] * codes[i];
    }
    ROLLED for (int times = 0; times < 5; ++times) {
        bool moved = false;
        UNROLL for (int i = 0; i < N; ++i) {
            float code = codes[i], wx = w[i] * x[i];
            float rest_lx = sum_lx - wx * code, rest_l2 = sum_l2 - w[i] * code * code;
            if (!(rest_lx > 0.0f)) continue;
            float other = clamp(rintf(x[i] * rest_l2 / rest_lx), (float)LOW, (float)HIGH);
            if (other == code) continue;
            float new_lx = rest_lx + wx * other, new_l2 = rest_l2 + w[i] * other * other;
            if (!((REST_POSITIVE ? rest_l2 : new_l2) > 0.0f)) continue;
            if (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2) {
                codes[i] = other;
                sum_lx = new_lx;
                sum_l2 = new_l2;
                moved = true;
            }
        }
        if (!moved) break;
    }
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

template <int N, int TOP>
__device__ float rounding_error(const float (&x)[N], const float (&w)[N], float inverse)
{
    float error = 0.0f, scale = 1.0f / inverse;
    UNROLL for (int i = 0; i < N; ++i) {
        float difference = x[i] - clamp(rintf(x[i] * inverse), 0.0f, (float)TOP) * scale;
        error += w[i] * difference * difference;
    }
    return error;
}

// Scale and codes 0 to TOP for non-negative x with weights w: nine roundings, then a walk from the best.
template <int N, int TOP>
__device__ float scale_of_scales(const float (&x)[N], const float (&w)[N], float (&codes)[N])
{
    float peak = x[0];
    UNROLL for (int i = 1; i < N; ++i)
        peak = larger(peak, x[i]);
    UNROLL for (int i = 0; i < N; ++i)
        codes[i] = 0.0f;
    if (!(peak >= NOTHING)) return 0.0f;
    float inverse = (float)TOP / peak;
    float best = rounding_error<N, TOP>(x, w, inverse);
    ROLLED for (int i = -4; i <= 4; ++i) {
        if (i == 0) continue;
        float trial = (0.1f * (float)i + (float)TOP) / peak;
        float error = rounding_error<N, TOP>(x, w, trial);
        if (error < best) {
            best = error;
            inverse = trial;
        }
    }
    UNROLL for (int i = 0; i < N; ++i)
        codes[i] = clamp(rintf(x[i] * inverse), 0.0f, (float)TOP);
    return walk<N, 0, TOP, true>(x, w, codes);
}

// The same with the largest at TOP.
template <int N, int TOP>
__device__ float scale_of_peak(const float (&x)[N], float (&codes)[N])
{
    float peak = 0.0f;
    UNROLL for (int i = 0; i < N; ++i)
        peak = larger(peak, x[i]);
    float inverse = reciprocal((float)TOP, peak);
    UNROLL for (int i = 0; i < N; ++i)
        codes[i] = clamp(rintf(x[i] * inverse), 0.0f, (float)TOP);
    return peak / (float)TOP;
}

template <int N>
__device__ void read_group(const float* group, float (&x)[N])
{
    UNROLL for (int i = 0; i < N; ++i)
        x[i] = group[i];
}

#endif
