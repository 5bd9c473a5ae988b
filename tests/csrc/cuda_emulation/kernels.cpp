// The kernels of csrc/cuda as C functions on host memory, for test_cuda_emulation.py.
// Each returns "" or what went wrong; outputs and workspaces start as NaN.
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gate.cuh"
#include "mean.cuh"
#include "prepare.cuh"

using namespace fedclip;

namespace {

std::string message;

const char* report(const std::string& text) {
    message = text;
    return message.c_str();
}

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// Floats at a multiple of 16 bytes, of exactly this size, so that AddressSanitizer sees
// what is beyond.
struct Free {
    void operator()(float* p) const { operator delete[](p, std::align_val_t(16)); }
};
std::unique_ptr<float[], Free> poisoned(std::int64_t size) {
    std::unique_ptr<float[], Free> memory(new (std::align_val_t(16)) float[size]);
    std::fill_n(memory.get(), size, kPoison);
    return memory;
}

unsigned blocks_for(std::int64_t units, int of_block) {
    return unsigned((units + of_block - 1) / of_block);
}

}  // namespace

struct RoundArguments {
    std::int64_t clients, dim, classes, batch_size;
    std::int64_t group, blocks, shared_bytes;  // see choose_shape
    const float* text;
    // one entry a client
    const float* const* x;
    const std::int64_t* const* y;
    const std::int64_t* const* perm;
    const std::int64_t *rows, *samples, *step;
    float* const* state;  // 12 a client, see Client
    float* const* losses;
    double lr, beta1, beta2, eps, weight_decay, logit_scale;
    std::int64_t bf16;
    std::uint64_t seed;
    std::int64_t*
        found;  // out: group, features, resident, groups; wrong client, at, of
};

extern "C" const char* emulate_round(const RoundArguments* a) {
    std::vector<Client> clients(a->clients);
    std::vector<AdamStep> adam;
    std::vector<int> client_of;
    std::vector<std::int64_t> steps;
    std::int64_t samples = 0, batch = 1;
    for (std::int64_t i = 0; i < a->clients; ++i) {
        Client& c = clients[i];
        c.x = a->x[i], c.y = a->y[i], c.perm = a->perm[i];
        std::copy(a->state + 12 * i, a->state + 12 * i + 12, c.state);
        c.losses = a->losses[i];
        c.rows = a->rows[i], c.samples = a->samples[i];
        c.steps = steps_of(c.samples, a->batch_size);
        c.first_sample = samples, c.first_step = std::int64_t(adam.size());
        c.vectors = a->dim % 4 == 0 && reinterpret_cast<std::uintptr_t>(c.x) % 16 == 0;
        for (std::int64_t s = 0; s < c.steps; ++s) {
            adam.push_back(
                adam_step(a->lr, a->beta1, a->beta2, a->eps, a->step[i] + s + 1));
            client_of.push_back(int(i));
        }
        samples += c.samples;
        steps.push_back(c.steps);
        batch = std::max(batch, std::min(a->batch_size, c.samples));
    }
    std::vector<int> tables(4 * samples + adam.size(), -1);
    int* table = tables.data();
    const ClassTable classes{table, table + samples, table + 2 * samples,
                             table + 3 * samples, table + 4 * samples};
    unsigned long long error = kNoError;
    std::string failed = emulation::launch(
        unsigned(adam.size() + clients.size()), kThreads, a->seed, [&] {
            prepare_round(clients.data(), client_of.data(), std::int64_t(adam.size()),
                          a->batch_size, a->classes, classes, &error);
        });
    if (error != kNoError) {
        const IndexError wrong = IndexError::from(error);
        a->found[4] = wrong.client, a->found[5] = wrong.at, a->found[6] = wrong.of_perm;
    }
    if (!failed.empty() || adam.empty()) return report(failed);

    const Shape shape =
        choose_shape(int(a->dim), int(a->blocks), a->shared_bytes / 4, int(a->group));
    std::int64_t active = 0;
    for (const std::int64_t count : steps) active += count > 0;
    const int groups = int(std::min(active, a->blocks / shape.group));
    const Schedule schedule = share_out_clients(steps, groups);
    const Space space(shape, batch, std::min(batch, a->classes));
    const auto workspace = poisoned(groups * space.size);
    std::vector<unsigned> barriers(groups * kBarrierPitch, 0);
    const Round round{clients.data(),
                      schedule.order.data(),
                      schedule.begin.data(),
                      adam.data(),
                      classes,
                      a->text,
                      workspace.get(),
                      barriers.data(),
                      &error,
                      shape,
                      space,
                      a->batch_size,
                      float(1 - a->beta1),
                      float(a->beta2),
                      float(1 - a->beta2),
                      float(a->weight_decay),
                      float(a->logit_scale)};
    a->found[0] = shape.group, a->found[1] = shape.features;
    a->found[2] = shape.resident, a->found[3] = groups;
    return report(emulation::launch(unsigned(groups * shape.group),
                                    shape.shared_floats(), a->seed, [&] {
                                        if (a->bf16) {
                                            train_round<true>(round);
                                        } else {
                                            train_round<false>(round);
                                        }
                                    }));
}

extern "C" void emulate_round_bf16(float* value) { *value = round_bf16(*value); }

extern "C" const char* emulate_tanh_rows(float* a, const float* bias, std::int64_t rows,
                                         std::int64_t dim, std::uint64_t seed) {
    return report(emulation::launch(blocks_for(rows, kWarps), 0, seed,
                                    [&] { tanh_rows(a, bias, rows, dim); }));
}

extern "C" const char* emulate_gate_scores(float* u, const float* bias, const float* x,
                                           std::int64_t rows, std::int64_t dim,
                                           std::uint64_t seed) {
    return report(emulation::launch(blocks_for(rows, kWarps), 0, seed,
                                    [&] { gate_scores(u, bias, x, rows, dim); }));
}

extern "C" const char* emulate_grad_scores(const float* dz, const float* z, float* du,
                                           std::int64_t rows, std::int64_t dim,
                                           std::uint64_t seed) {
    return report(emulation::launch(blocks_for(rows, kWarps), 0, seed,
                                    [&] { grad_scores(dz, z, du, rows, dim); }));
}

extern "C" const char* emulate_grad_hidden(float* grad, const float* extra,
                                           const float* h, std::int64_t rows,
                                           std::int64_t dim, std::uint64_t seed) {
    return report(emulation::launch(blocks_for(rows, kWarps), 0, seed,
                                    [&] { grad_hidden(grad, extra, h, rows, dim); }));
}

template <class T>
const char* emulate_mean(const T* const* xs, const double* shares,
                         const float* const* scales, std::int64_t clients,
                         std::int64_t size, std::int64_t columns, float* out,
                         std::int64_t vectors, std::uint64_t seed) {
    const Shares factors{shares, scales};
    return report(emulation::launch(
        blocks_for(size, kThreads * (vectors ? Four::width : 1)), 0, seed, [&] {
            if (vectors) {
                mean_of<Four>(xs, factors, clients, size, columns, out);
            } else {
                mean_of<One>(xs, factors, clients, size, columns, out);
            }
        }));
}

extern "C" const char* emulate_mean_float(const float* const* xs, const double* shares,
                                          std::int64_t clients, std::int64_t size,
                                          float* out, std::int64_t vectors,
                                          std::uint64_t seed) {
    return emulate_mean(xs, shares, nullptr, clients, size, 1, out, vectors, seed);
}

extern "C" const char* emulate_mean_int8(const signed char* const* qs,
                                         const double* shares,
                                         const float* const* scales,
                                         std::int64_t clients, std::int64_t size,
                                         std::int64_t columns, float* out,
                                         std::int64_t vectors, std::uint64_t seed) {
    return emulate_mean(qs, shares, scales, clients, size, columns, out, vectors, seed);
}
