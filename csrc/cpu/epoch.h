// The training of one client in progress: its batches one after another.
#pragma once

#include <algorithm>
#include <vector>

#include "clients.h"
#include "cpu/workspace.h"

namespace fedclip::cpu {

inline Parameter parameter(const TrainingClient& client, int i) {
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

// One client, in a workspace of its own.
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

}  // namespace fedclip::cpu
