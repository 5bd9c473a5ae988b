// The clients of a round: their arguments, checked and row-major.  What values indices
// have is left to the kernels of each device.
#pragma once

#include <functional>

#include "ops.h"
#include "steps.h"
#include "tensors.h"

namespace fedclip {

struct TrainingClient {
    Tensor x, y, perm;                // perm: (samples,), or (epochs, samples)
    std::vector<InPlace> parameters;  // params, exp_avg, exp_avg_sq: four each
    std::int64_t step = 0;            // Adam steps already taken
    std::int64_t steps = 0;           // of all epochs
    std::int64_t samples = 0;         // of an epoch
    float* losses = nullptr;          // (steps,)
};

// A weight, or its bias behind it.
inline void expect_parameter(Entry name, const Tensor& tensor, std::int64_t dim,
                             const Here& here) {
    if (name.at % 2 == 0) {
        expect_square(name, tensor, dim, here);
    } else {
        expect(name, tensor, ScalarType::Float, {dim}, here);
    }
}

inline void take_parameters(const char* name, const Tensors& tensors, std::size_t first,
                            std::int64_t dim, const Here& here,
                            TrainingClient& client) {
    for (std::size_t i = first; i < first + 4; ++i) {
        expect_parameter({name, i}, tensors[i], dim, here);
        client.parameters.emplace_back(tensors[i]);
    }
}

inline void expect_count(const char* name, std::size_t got, std::size_t wanted) {
    check(got == wanted, name, ": expected ", wanted, " entries, got ", got);
}

// Clients train side by side: one tensor given twice would be a race.
inline void expect_distinct(const TrainingArguments& all) {
    struct Start {
        const void* data;
        Entry name;
    };
    std::vector<Start> starts;
    starts.reserve(3 * all.params.size());
    const auto add = [&](const char* name, const Tensors& tensors) {
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            if (tensors[i].numel() == 0) continue;
            starts.push_back({tensors[i].const_data_ptr(), {name, i}});
        }
    };
    add("params", all.params);
    add("exp_avg", all.exp_avg);
    add("exp_avg_sq", all.exp_avg_sq);
    std::stable_sort(starts.begin(), starts.end(), [](const Start& a, const Start& b) {
        return std::less<>()(a.data, b.data);
    });
    for (std::size_t i = 1; i < starts.size(); ++i) {
        check(starts[i].data != starts[i - 1].data, starts[i].name,
              ": expected its own memory, got ", starts[i - 1].name, "'s");
    }
}

// The clients' data; `all.text` becomes row-major.
inline std::vector<TrainingClient> take_data(TrainingArguments& all, bool epochs) {
    const std::size_t count = all.x.size();
    check(all.batch_size >= 1, "batch_size: expected at least 1, got ", all.batch_size);
    check(all.bf16() || all.precision == "fp32",
          "precision: expected one of fp32, bf16, got ", all.precision);
    expect_count("y", all.y.size(), count);
    expect_count("perm", all.perm.size(), count);
    if (count) expect("x[0]", all.x[0], ScalarType::Float, {-1, -1});
    expect("text", all.text, ScalarType::Float, {-1, count ? all.x[0].size(1) : -1});
    all.text = row_major(all.text);
    const std::int64_t dim = all.dim();
    const Here here;
    std::vector<TrainingClient> clients(count);
    for (std::size_t i = 0; i < count; ++i) {
        TrainingClient& client = clients[i];
        const Tensor &x = all.x[i], &y = all.y[i], &perm = all.perm[i];
        expect(Entry{"x", i}, x, ScalarType::Float, {-1, dim}, here);
        expect(Entry{"y", i}, y, ScalarType::Long, {x.size(0)}, here);
        if (epochs) {
            expect(Entry{"perm", i}, perm, ScalarType::Long, {-1, -1}, here);
        } else {
            expect(Entry{"perm", i}, perm, ScalarType::Long, {-1}, here);
        }
        client.x = row_major(x);
        client.y = row_major(y);
        client.perm = row_major(perm);
        client.samples = perm.size(epochs ? 1 : 0);
        client.steps = steps_of(client.samples, all.batch_size);
        if (epochs) client.steps *= perm.size(0);
    }
    return clients;
}

inline std::vector<TrainingClient> take_clients(TrainingArguments& all) {
    auto clients = take_data(all, false);
    const std::size_t count = clients.size();
    expect_count("step", all.step.size(), count);
    expect_count("params", all.params.size(), 4 * count);
    expect_count("exp_avg", all.exp_avg.size(), 4 * count);
    expect_count("exp_avg_sq", all.exp_avg_sq.size(), 4 * count);
    const std::int64_t dim = all.dim();
    const Here here;
    for (std::size_t i = 0; i < count; ++i) {
        TrainingClient& client = clients[i];
        client.parameters.reserve(12);
        client.step = all.step[i];
        check(client.step >= 0, Entry{"step", i}, ": expected at least 0, got ",
              client.step);
        take_parameters("params", all.params, 4 * i, dim, here, client);
        take_parameters("exp_avg", all.exp_avg, 4 * i, dim, here, client);
        take_parameters("exp_avg_sq", all.exp_avg_sq, 4 * i, dim, here, client);
    }
    expect_distinct(all);
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

inline void let_go_of(TrainingArguments& all, std::vector<TrainingClient>& clients) {
    let_go(clients, all.x, all.y, all.perm, all.params, all.exp_avg, all.exp_avg_sq);
}

// Of a value that is not an index: the message of both devices.
inline void refuse_index(const char* name, std::size_t client, std::int64_t below,
                         std::int64_t value, std::int64_t at) {
    check(false, Entry{name, client}, ": expected values in 0..", below - 1, ", got ",
          value, " at ", at);
}

}  // namespace fedclip
