// The clients of a round: their arguments, checked and row-major.  What values indices
// have is left to the kernels of each device.
#pragma once

#include "steps.h"
#include "tensors.h"

namespace fedclip {

struct Settings {
    std::int64_t batch_size, classes, dim;
    const float* text;  // (classes, dim)
    double lr, beta1, beta2, eps, weight_decay, logit_scale;
    bool bf16;
};

struct TrainingClient {
    Tensor x, y, perm;
    std::vector<InPlace> parameters;  // params, exp_avg, exp_avg_sq: four each
    std::int64_t step = 0;            // Adam steps already taken
    std::int64_t steps = 0;           // of this epoch
    float* losses = nullptr;          // (steps,)
};

inline std::string entry(const char* name, std::size_t i) {
    return std::string(name) + "[" + std::to_string(i) + "]";
}

inline void take_parameters(const char* name, const Tensors& tensors, std::size_t first,
                            std::int64_t dim, TrainingClient& client) {
    for (std::size_t i = first; i < first + 4; ++i) {
        if (i % 2 == 0) {
            expect_square(entry(name, i), tensors[i], dim);
        } else {
            expect(entry(name, i), tensors[i], ScalarType::Float, {dim});
        }
        client.parameters.emplace_back(tensors[i]);
    }
}

inline void expect_count(const char* name, std::size_t got, std::size_t wanted) {
    check(got == wanted, name, ": expected ", wanted, " entries, got ", got);
}

inline std::vector<TrainingClient> take_clients(
    const Tensors& x, const Tensors& y, const Tensor& text, const Tensors& perm,
    std::int64_t batch_size, const Tensors& params, const Tensors& exp_avg,
    const Tensors& exp_avg_sq, const std::vector<std::int64_t>& step) {
    const std::size_t count = x.size();
    check(batch_size >= 1, "batch_size: expected at least 1, got ", batch_size);
    expect_count("y", y.size(), count);
    expect_count("perm", perm.size(), count);
    expect_count("step", step.size(), count);
    expect_count("params", params.size(), 4 * count);
    expect_count("exp_avg", exp_avg.size(), 4 * count);
    expect_count("exp_avg_sq", exp_avg_sq.size(), 4 * count);
    if (count) expect("x[0]", x[0], ScalarType::Float, {-1, -1});
    expect("text", text, ScalarType::Float, {-1, count ? x[0].size(1) : -1});
    const std::int64_t dim = text.size(1);
    std::vector<TrainingClient> clients(count);
    for (std::size_t i = 0; i < count; ++i) {
        TrainingClient& client = clients[i];
        expect(entry("x", i), x[i], ScalarType::Float, {-1, dim});
        expect(entry("y", i), y[i], ScalarType::Long, {x[i].size(0)});
        expect(entry("perm", i), perm[i], ScalarType::Long, {-1});
        client.x = row_major(x[i]);
        client.y = row_major(y[i]);
        client.perm = row_major(perm[i]);
        check(step[i] >= 0, entry("step", i), ": expected at least 0, got ", step[i]);
        client.step = step[i];
        client.steps = steps_of(client.perm.numel(), batch_size);
        take_parameters("params", params, 4 * i, dim, client);
        take_parameters("exp_avg", exp_avg, 4 * i, dim, client);
        take_parameters("exp_avg_sq", exp_avg_sq, 4 * i, dim, client);
    }
    return clients;
}

// The losses of all clients, one client's after another's.
inline Tensor make_losses(const Tensor& text, std::vector<TrainingClient>& clients) {
    std::int64_t steps = 0;
    for (const TrainingClient& client : clients) steps += client.steps;
    Tensor losses = torch::stable::new_empty(text, {steps});
    float* next = losses.mutable_data_ptr<float>();
    for (TrainingClient& client : clients) {
        client.losses = next;
        next += client.steps;
    }
    return losses;
}

inline void write_back(std::vector<TrainingClient>& clients) {
    for (TrainingClient& client : clients) {
        for (InPlace& parameter : client.parameters) parameter.write_back();
    }
}

// Of a value that is no index: the message of both devices.
inline void refuse_index(const char* name, std::size_t client, std::int64_t below,
                         std::int64_t value, std::int64_t at) {
    check(false, entry(name, client), ": expected values in 0..", below - 1, ", got ",
          value, " at ", at);
}

}  // namespace fedclip
