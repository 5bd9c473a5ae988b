// The operators `local_round`, `local_epoch` for one client, and `fresh_round`: clients
// are the outer parallel loop.
//
// With at least as many clients as threads a client trains on one thread, without
// any barrier.  With fewer, all clients advance a step together and the units of a
// phase are shared out; a unit computes the same bits either way.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "clients.h"
#include "cpu/workspace.h"
#include "ops.h"

namespace fedclip {
namespace {

const Products& products(const TrainingArguments& all) {
    return all.bf16() ? kernels().bf16 : kernels().fp32;
}

Parameter parameter(const TrainingClient& client, int i) {
    const auto& all = client.parameters;
    return {all[i].data(), all[i + 4].data(), all[i + 8].data(), all[i].data()};
}

// What all clients of a `fresh_round` start from, and where their parameters go.
struct Fresh {
    const float* start[4];  // w1, b1, w2, b2
    float* params;          // a client a row, of `row` floats
    std::int64_t row;

    std::vector<std::int64_t> sizes(std::int64_t dim) const {
        return {dim * dim, dim, dim * dim, dim};
    }
};

// The training of one client in progress, in a workspace of its own.
class Epoch {
  public:
    Epoch(const TrainingArguments& all, const TrainingClient& client,
          Workspace& workspace, const Fresh* fresh, std::int64_t row)
        : all_(all),
          text_(floats(all.text)),
          dim_(all.dim()),
          client_(client),
          workspace_(workspace),
          fresh_(fresh),
          slot_(all.classes(), -1),
          column_(std::min(all.batch_size, client.samples)) {
        batch_ = workspace.batch(0);
        batch_.x = floats(client.x);
        batch_.x_row = dim_;
        if (fresh) {
            take_fresh(fresh->params + row * fresh->row);
            return;
        }
        for (int i = 0; i < 2; ++i) {
            batch_.layer[i] = {parameter(client, 2 * i), parameter(client, 2 * i + 1)};
        }
    }

    std::int64_t steps() const { return client_.steps; }
    const Batch& batch() const { return batch_; }

    // Whether the weights' other forms have to be made before the first step: clients
    // of a fresh round share them, until a step has made its own.
    bool unpacked() {
        const bool packed = fresh_ && workspace_.packed;
        workspace_.packed = fresh_ && steps() == 1;
        return !packed;
    }

    // Sets up batch number `s`; the phases then read it.
    void begin(std::int64_t s) {
        const std::int64_t size = all_.batch_size, samples = client_.samples;
        const std::int64_t an_epoch = steps_of(samples, size);
        const std::int64_t in_epoch = s % an_epoch * size;
        const std::int64_t first = s / an_epoch * samples + in_epoch;
        batch_.rows = std::min(size, samples - in_epoch);
        batch_.index = client_.perm.const_data_ptr<std::int64_t>() + first;
        batch_.next = batch_.index + batch_.rows;
        batch_.next_rows = std::min(size, client_.perm.numel() - first - batch_.rows);
        batch_.loss = client_.losses + s;
        batch_.logit_scale = float(all_.logit_scale);
        batch_.adam = adam(client_.step + s + 1);
        batch_.adam.fresh = fresh_ && s == 0;
        batch_.adam.last = fresh_ && s + 1 == steps();
        if (fresh_ && s == 1) {
            for (Layer& layer : batch_.layer) {
                layer.weight.before = layer.weight.value;
                layer.bias.before = layer.bias.value;
            }
        }
        find_classes();
    }

  private:
    Adam adam(std::int64_t t) const {
        const AdamStep now = adam_step(all_.lr, all_.beta1, all_.beta2, all_.eps, t);
        return {now.rate, float(1 - all_.beta1),    float(1 - all_.beta2),
                now.eps,  float(all_.weight_decay), false,
                false};
    }

    void take_fresh(float* params) {
        workspace_.take_moments(batch_.layer);
        const auto sizes = fresh_->sizes(dim_);
        for (int i = 0; i < 4; ++i) {
            Layer& layer = batch_.layer[i / 2];
            Parameter& parameter = i % 2 ? layer.bias : layer.weight;
            parameter.before = fresh_->start[i];
            parameter.value = params;
            params += sizes[i];
        }
    }

    // The classes of the batch, in order of appearance: their text, count and rows.
    void find_classes() {
        const std::int64_t* y = client_.y.const_data_ptr<std::int64_t>();
        seen_.clear();
        for (std::int64_t b = 0; b < batch_.rows; ++b) {
            const std::int64_t label = y[batch_.index[b]];
            std::int64_t& slot = slot_[label];
            if (slot < 0) {
                slot = std::int64_t(seen_.size());
                seen_.push_back(label);
                workspace_.count[slot] = 0;
                const float* text = text_ + label * dim_;
                std::copy(text, text + dim_, workspace_.text + slot * dim_);
            }
            workspace_.count[slot] += 1;
            column_[b] = slot;
        }
        for (const std::int64_t label : seen_) slot_[label] = -1;
        batch_.classes = std::int64_t(seen_.size());
        batch_.text = workspace_.text;
        batch_.count = workspace_.count;
        batch_.column = column_.data();
    }

    const TrainingArguments& all_;
    const float* text_;  // (classes, dim)
    std::int64_t dim_;
    const TrainingClient& client_;
    Workspace& workspace_;
    const Fresh* fresh_;
    std::vector<std::int64_t> slot_;  // of a class in this batch, or -1
    std::vector<std::int64_t> column_, seen_;
    Batch batch_;
};

struct Work {
    Phase phase;
    std::int64_t (*units)(const Batch& batch);
};

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
            {p.update, by_layers}};
}

void run_alone(Epoch& epoch, const Products& products) {
    const auto step = training_step(products);
    if (epoch.unpacked()) {
        const std::int64_t units = feature_units(epoch.batch().dim);
        run(products.pack_weights, epoch.batch(), units, false);
    }
    for (std::int64_t s = 0; s < epoch.steps(); ++s) {
        epoch.begin(s);
        for (const Work& work : step) {
            run(work.phase, epoch.batch(), work.units(epoch.batch()), false);
        }
    }
}

// One phase of several clients at once.
void run_shared(const std::vector<Epoch*>& epochs, const Work& work) {
    std::vector<std::int64_t> first{0};
    for (const Epoch* epoch : epochs) {
        first.push_back(first.back() + work.units(epoch->batch()));
    }
    const auto units = [&](std::int64_t begin, std::int64_t end) {
        std::size_t client = 0;
        for (std::int64_t unit = begin; unit < end; ++unit) {
            while (unit >= first[client + 1]) ++client;
            work.phase(epochs[client]->batch(), unit - first[client]);
        }
    };
    if (first.back() < 2) return units(0, first.back());
    torch::stable::parallel_for(0, first.back(), 1, units);
}

void run_together(std::vector<std::unique_ptr<Epoch>>& epochs,
                  const Products& products) {
    std::vector<Epoch*> active;
    for (auto& epoch : epochs) active.push_back(epoch.get());
    const auto step = training_step(products);
    run_shared(active, {products.pack_weights, by_features});
    for (std::int64_t s = 0;; ++s) {
        const auto done = [s](const Epoch* epoch) { return epoch->steps() <= s; };
        active.erase(std::remove_if(active.begin(), active.end(), done), active.end());
        if (active.empty()) return;
        for (Epoch* epoch : active) epoch->begin(s);
        for (const Work& work : step) run_shared(active, work);
    }
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
    const std::int64_t count = std::int64_t(order.size());
    const std::int64_t threads = torch::stable::get_num_threads();
    const std::int64_t workers = std::min(count, threads);
    const Use use = all.bf16() ? Use::bf16_training : Use::training;
    std::vector<Workspace> workspaces;
    for (std::int64_t w = 0; w < workers; ++w) {
        workspaces.emplace_back(use, rows, all.dim(), std::min(rows, all.classes()),
                                fresh != nullptr);
    }
    std::vector<std::unique_ptr<Epoch>> epochs;
    if (count < threads) {
        for (std::int64_t i = 0; i < count; ++i) {
            epochs.push_back(std::make_unique<Epoch>(all, clients[order[i]],
                                                     workspaces[i], fresh, order[i]));
        }
        run_together(epochs, products(all));
        return;
    }
    share_out(count, workers, [&](std::int64_t worker, std::int64_t i) {
        Epoch epoch(all, clients[order[i]], workspaces[worker], fresh, order[i]);
        run_alone(epoch, products(all));
    });
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
    return losses;
}

std::tuple<Tensor, Tensor> fresh_round(TrainingArguments all) {
    auto clients = take_data(all, true);
    check_indices(all, clients);
    const std::int64_t dim = all.dim();
    expect_count("start", all.params.size(), 4);
    for (int i = 0; i < 4; ++i) {
        Tensor& start = all.params[i];
        if (i % 2 == 0) {
            expect_square(entry("start", i), start, dim);
        } else {
            expect(entry("start", i), start, ScalarType::Float, {dim});
        }
        start = row_major(start);
    }
    Fresh fresh{{}, nullptr, 2 * dim * dim + 2 * dim};
    const auto sizes = fresh.sizes(dim);
    for (int i = 0; i < 4; ++i) fresh.start[i] = floats(all.params[i]);
    Tensor params =
        torch::stable::new_empty(all.text, {std::int64_t(clients.size()), fresh.row});
    fresh.params = params.mutable_data_ptr<float>();
    for (std::size_t c = 0; c < clients.size(); ++c) {
        if (clients[c].steps) continue;  // a client without a step keeps the start
        float* to = fresh.params + std::int64_t(c) * fresh.row;
        for (int i = 0; i < 4; ++i) {
            to = std::copy(fresh.start[i], fresh.start[i] + sizes[i], to);
        }
    }
    Tensor losses = make_losses(all.text, clients);
    train(all, clients, &fresh);
    return {params, losses};
}

}  // namespace fedclip
