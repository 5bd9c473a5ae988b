// Before a round: the indices are checked, and each batch's classes are found.
#pragma once

#include "round.cuh"

namespace fedclip::gpu {

// The first wrong index of a call, in the order of the clients, y before perm.
struct IndexError {
    std::int64_t client, at;
    bool of_perm;

    static constexpr int kBits = 40;  // of a position
    __device__ unsigned long long code() const {
        return (static_cast<unsigned long long>(client) << (kBits + 1)) |
               (static_cast<unsigned long long>(of_perm) << kBits) |
               static_cast<unsigned long long>(at);
    }
    static IndexError from(unsigned long long code) {
        return {std::int64_t(code >> (kBits + 1)),
                std::int64_t(code & ((1ull << kBits) - 1)), (code >> kBits & 1) != 0};
    }
};

__device__ inline void check_indices(const std::int64_t* values, std::int64_t size,
                                     std::int64_t below, int client, bool of_perm,
                                     unsigned long long* error) {
    for (std::int64_t i = threadIdx.x; i < size; i += kThreads) {
        if (values[i] >= 0 && values[i] < below) continue;
        atomicMin(error, IndexError{client, i, of_perm}.code());
        return;  // a thread's later ones are no earlier
    }
}

// The classes of one batch, in order of appearance; `shared` has kThreads ints.
__device__ inline void find_classes(const Client& client, std::int64_t step,
                                    std::int64_t batch_size, std::int64_t classes,
                                    const ClassTable& table, int* shared) {
    const std::int64_t start = step * batch_size, at = client.first_sample + start;
    const int rows = int(min(batch_size, client.samples - start));
    int *column = table.column + at, *first = table.first + at;
    int *label = table.label + at, *count = table.count + at;
    for (int b = threadIdx.x; b < rows; b += kThreads) {  // the class itself, for now
        std::int64_t value = client.perm[start + b];
        table.row[at + b] = int(value);  // right, or nothing is trained
        value = value >= 0 && value < client.rows ? client.y[value] : 0;
        column[b] = value >= 0 && value < classes ? int(value) : 0;
        count[b] = 0;
    }
    __syncthreads();
    const int share = (rows + kThreads - 1) / kThreads;
    const int begin = min(int(threadIdx.x) * share, rows);
    const int end = min(begin + share, rows);
    int found = 0;
    for (int b = begin; b < end; ++b) {
        int f = 0;
        while (column[f] != column[b]) ++f;
        first[b] = f;
        found += f == b;
    }
    shared[threadIdx.x] = found;
    __syncthreads();
    int number = 0;  // of the next class that begins in this thread's rows
    for (int t = 0; t < int(threadIdx.x); ++t) number += shared[t];
    for (int b = begin; b < end; ++b) {
        if (first[b] != b) continue;
        label[number] = column[b];
        first[b] = -1 - number++;  // what begins here
    }
    if (threadIdx.x == kThreads - 1) table.classes[client.first_step + step] = number;
    __syncthreads();
    for (int b = threadIdx.x; b < rows; b += kThreads) {
        const int f = first[b] < 0 ? first[b] : first[first[b]];
        column[b] = -1 - f;
        atomicAdd(count + column[b], 1);
    }
}

// A block for each step, then one for each client.  steps_of(client) blocks belong to a
// client: `client_of` (steps,) tells which.
__global__ void __launch_bounds__(kThreads)
    prepare_round(const Client* clients, const int* client_of, std::int64_t steps,
                  std::int64_t batch_size, std::int64_t classes, ClassTable table,
                  unsigned long long* error) {
    const std::int64_t block = blockIdx.x;
    if (block < steps) {
        const Client& client = clients[client_of[block]];
        find_classes(client, block - client.first_step, batch_size, classes, table,
                     reinterpret_cast<int*>(dynamic_shared()));
        return;
    }
    const Client& client = clients[block - steps];
    check_indices(client.y, client.rows, classes, int(block - steps), false, error);
    check_indices(client.perm, client.samples, client.rows, int(block - steps), true,
                  error);
}

}  // namespace fedclip::gpu
