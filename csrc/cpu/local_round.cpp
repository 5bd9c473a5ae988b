// The operators `local_round`, `local_epoch` for one client, and `fresh_round`: clients
// are the outer parallel loop, the units of a phase the inner one; see cpu/team.h.
#include <algorithm>
#include <atomic>

#include "clients.h"
#include "cpu/cache.h"
#include "cpu/epoch.h"
#include "cpu/team.h"
#include "cpu/workspace.h"
#include "ops.h"

namespace fedclip {

using namespace cpu;

namespace {

const Products& products(const TrainingArguments& all) {
    return all.bf16() ? kernels().bf16 : kernels().fp32;
}

std::int64_t by_rows(const Batch& batch) { return row_units(batch.rows); }
std::int64_t by_features(const Batch& batch) { return feature_units(batch.dim); }
std::int64_t by_layers(const Batch& batch) { return 2 * feature_units(batch.dim); }
std::int64_t alone(const Batch&) { return 1; }

std::vector<Work> training_step(const Products& p) {
    const Kernels& k = kernels();
    return {{p.load, by_rows},
            {p.hidden, by_features},
            {p.scores, by_features},
            {k.gate_and_logits, by_rows},
            {k.loss, alone},
            {p.grad_scores, by_features},
            {p.grad_hidden, by_features},
            {p.update, by_layers, 2}};
}

void run_epoch(Epoch& epoch, const Products& products, Team& team) {
    const auto step = training_step(products);
    const Work pack{products.pack_weights, by_features};
    if (epoch.unpacked()) team.run(pack, epoch.batch());
    for (std::int64_t s = 0; s < epoch.steps(); ++s) {
        epoch.begin(s);
        for (const Work& work : step) team.run(work, epoch.batch());
    }
}

// Bytes that a step of one client passes over: weights, moments, the copy of w2 and
// the forms of the batch.
std::int64_t bytes_of_step(std::int64_t rows, std::int64_t dim) {
    return std::int64_t(sizeof(float)) * (7 * dim * dim + 7 * rows * dim);
}

// Teams at a time: as many as there are threads if the caches of a core hold a client,
// fewer if it takes those of several.  Of two steps nothing is worth keeping.
std::int64_t team_count(std::int64_t threads, std::int64_t bytes, std::int64_t steps) {
    const std::int64_t cache = cache_of_core();
    std::int64_t members = team_size();
    if (!members && cache && steps > 2) members = (bytes + cache - 1) / cache;
    return std::max<std::int64_t>(threads / std::max<std::int64_t>(members, 1), 1);
}

// `fresh`: of a fresh round, else null.
void train(const TrainingArguments& all, const std::vector<TrainingClient>& clients,
           const Fresh* fresh) {
    std::vector<std::int64_t> steps, order;
    std::int64_t rows = 0;  // of the largest batch
    for (const TrainingClient& client : clients) {
        steps.push_back(client.steps);
        if (steps.back()) order.push_back(std::int64_t(steps.size()) - 1);
        rows = std::max(rows, std::min(all.batch_size, client.samples));
    }
    if (order.empty()) return;
    // the longest first, so that no thread is left with one at the end
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return steps[a] > steps[b];
    });
    const std::int64_t count = std::int64_t(order.size()), dim = all.dim();
    const std::int64_t threads = torch::stable::get_num_threads();
    const std::int64_t teams =
        std::min(count, team_count(threads, bytes_of_step(rows, dim), steps[order[0]]));
    const Use use = all.bf16() ? Use::bf16_training : Use::training;
    std::vector<Workspace> workspaces;
    for (std::int64_t team = 0; team < teams; ++team) {
        workspaces.emplace_back(use, rows, dim, std::min(rows, all.classes()),
                                fresh != nullptr);
    }
    Crew crew(threads, teams, feature_units(dim));
    std::atomic<std::int64_t> next{0};
    const auto lead = [&](std::int64_t leader, Team& team) {
        for (std::int64_t i = next++; i < count; i = next++) {
            Epoch epoch(all, clients[order[i]], workspaces[leader], fresh, order[i]);
            run_epoch(epoch, products(all), team);
        }
    };
    torch::stable::parallel_for(0, threads, 1,
                                [&](std::int64_t, std::int64_t) { crew.work(lead); });
}

void check_values(const char* name, std::size_t client, const Tensor& indices,
                  std::int64_t below) {
    const std::int64_t* data = indices.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < indices.numel(); ++i) {
        if (data[i] >= 0 && data[i] < below) continue;
        refuse_index(name, client, below, data[i], i);
    }
}

void check_indices(const TrainingArguments& all,
                   const std::vector<TrainingClient>& clients) {
    for (std::size_t i = 0; i < clients.size(); ++i) {
        check_values("y", i, clients[i].y, all.classes());
        check_values("perm", i, clients[i].perm, clients[i].x.size(0));
    }
}

}  // namespace

Tensor local_round(TrainingArguments arguments) {
    auto clients = take_clients(arguments);
    check_indices(arguments, clients);
    Tensor losses = make_losses(arguments.text, clients);
    train(arguments, clients, nullptr);
    write_back(clients);
    let_go_of(arguments, clients);
    return losses;
}

Tensor fresh_round(TrainingArguments all, Tensor params) {
    auto clients = take_data(all, true);
    check_indices(all, clients);
    const std::int64_t dim = all.dim();
    expect_count("start", all.params.size(), 4);
    for (std::size_t i = 0; i < 4; ++i) {
        expect_parameter({"start", i}, all.params[i], dim, Here());
        all.params[i] = row_major(all.params[i]);
    }
    Fresh fresh{{}, nullptr, 2 * dim * dim + 2 * dim};
    const auto sizes = fresh.sizes(dim);
    for (int i = 0; i < 4; ++i) fresh.start[i] = floats(all.params[i]);
    expect("params", params, ScalarType::Float,
           {std::int64_t(clients.size()), fresh.row});
    InPlace rows(params);
    fresh.params = rows.data();
    for (std::size_t c = 0; c < clients.size(); ++c) {
        if (clients[c].steps) continue;  // a client without a step keeps the start
        float* to = fresh.params + std::int64_t(c) * fresh.row;
        for (int i = 0; i < 4; ++i) {
            to = std::copy(fresh.start[i], fresh.start[i] + sizes[i], to);
        }
    }
    Tensor losses = make_losses(all.text, clients);
    train(all, clients, &fresh);
    rows.write_back();
    let_go_of(all, clients);
    return losses;
}

}  // namespace fedclip
