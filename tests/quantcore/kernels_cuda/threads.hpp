// Runs kernels with several threads, for a sanitizer to see who touches shared memory without a barrier
// between.
//
// Arguments: a file of int32 tables and the names of kernels. Prints those whose bytes depend on the number
// of threads.
#include <cstdio>
#include <dlfcn.h>
#include <thread>
#include <vector>

using Kernel = void(const float*, long long, int, const float*, const int*, const float*, unsigned char*,
                    int*);
using RowMeans = void(const float*, long long, int, float*);

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), int grid, int threads, Arguments... arguments)
{
    std::barrier<> barrier(threads);
    meeting = &barrier;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
        std::vector<std::thread> team;
        for (int t = 0; t < threads; ++t)
            team.emplace_back([=] {
                threadIdx.x = t;
                kernel(arguments...);
            });
        for (auto& member : team) member.join();
    }
}

std::vector<int> read_tables(const char* path)
{
    std::vector<int> tables;
    if (FILE* file = std::fopen(path, "rb")) {
        std::fseek(file, 0, SEEK_END);
        tables.resize(std::ftell(file) / 4);
        std::rewind(file);
        if (std::fread(tables.data(), 4, tables.size(), file) != tables.size()) tables.clear();
        std::fclose(file);
    }
    return tables;
}

int main(int count, char** arguments)
{
    const int rows = 5, row_length = 1024, n = rows * row_length, threads = 3;
    std::vector<float> x(n), importance(row_length), means(rows);
    unsigned int seed = 1;
    for (auto& value : x) value = int((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f;
    for (auto& value : importance) value = ((seed = seed * 1664525u + 1013904223u) >> 8) * 0x1p-24f;
    std::vector<int> tables = read_tables(arguments[1]);
    int different = 0;
    if (auto row_means = (RowMeans*)dlsym(RTLD_DEFAULT, "row_means")) {
        std::vector<float> again(rows);
        run(row_means, 1, 1, x.data(), (long long)rows, row_length, again.data());
        run(row_means, 1, threads, x.data(), (long long)rows, row_length, means.data());
        if (means != again) ++different, std::puts("row_means");
    }
    for (int i = 2; i < count; ++i) {
        auto kernel = (Kernel*)dlsym(RTLD_DEFAULT, arguments[i]);
        std::vector<unsigned char> out[2];
        for (int many = 0; many < 2; ++many) {
            int status = 0;
            out[many].resize(4 * n);
            run(kernel, n / 1024, many ? threads : 1, x.data(), (long long)n, row_length, importance.data(),
                tables.data(), means.data(), out[many].data(), &status);
        }
        if (out[0] != out[1]) ++different, std::puts(arguments[i]);
    }
    return different;
}
