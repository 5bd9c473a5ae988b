#include "cpu/workspace.h"

namespace fedclip::cpu {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

std::int64_t row_units(std::int64_t rows) {
    return round_up(rows, kernels().lanes) / kernels().lanes;
}

std::int64_t feature_units(std::int64_t dim) {
    const std::int64_t width = 2 * kernels().lanes;
    return round_up(dim, width) / width;
}

float* Workspace::take(std::int64_t size) {
    float* start = memory_ ? memory_.get() + used_ : nullptr;
    // An odd number of lines between buffers: at equal offsets they then differ in the
    // address bits that choose a cache set.
    used_ += round_up(size, 2 * kLine) + 5 * kLine;
    return start;
}

Workspace::Workspace(Use use, std::int64_t rows, std::int64_t dim, std::int64_t classes,
                     bool moments) {
    const std::int64_t width = 2 * kernels().lanes;
    const std::int64_t features = round_up(dim, width),
                       all_rows = round_up(rows, width);
    const std::int64_t matrix = features * all_rows;
    const Panels panels{nullptr, width, all_rows * width};
    // twice: to count, then to hand out
    for (int pass = 0; pass < 2; ++pass) {
        used_ = 0;
        Batch& b = buffers_;
        b.dim = dim;
        b.h_chunks = take(matrix);
        b.z_chunks = take(matrix);
        if (use != Use::backward) b.x_chunks = take(matrix);
        if (use != Use::forward) {
            b.du_chunks = take(matrix);
            b.da_chunks = take(matrix);
            b.x_panels = b.h_panels = panels;
            b.x_panels.data = take(matrix);
            b.h_panels.data = take(matrix);
            b.w2_panels = take(dim * features);
        }
        if (use == Use::training || use == Use::bf16_training) {
            b.logits = take(classes * all_rows);
            b.column_exp = take(classes * all_rows);
            b.column_lse = take(2 * classes);
            b.dot = take(all_rows);
            text = take(classes * dim);
            count = take(classes);
        }
        if (use == Use::bf16_training) take_pairs(all_rows, features);
        for (Layer& layer : moments_) {
            if (!moments) break;
            layer.weight.exp_avg = take(dim * dim);
            layer.weight.exp_avg_sq = take(dim * dim);
            layer.bias.exp_avg = take(dim);
            layer.bias.exp_avg_sq = take(dim);
        }
        if (pass == 1) return;
        const std::size_t bytes = static_cast<std::size_t>(used_) * sizeof(float);
        memory_ = take_scratch(bytes);
    }
}

void Workspace::take_pairs(std::int64_t all_rows, std::int64_t features) {
    const auto pairs = [this](std::int64_t numbers) {
        return reinterpret_cast<Pair*>(take(numbers / 2));
    };
    const std::int64_t width = 2 * kernels().lanes, matrix = all_rows * features;
    Factors<Pair>& f = buffers_.pairs;
    f.x = pairs(matrix);
    f.h = pairs(matrix);
    f.du = pairs(matrix);
    f.du_rows = pairs(matrix);
    f.da_rows = pairs(matrix);
    f.x_panels = {pairs(matrix), width, all_rows / 2 * width};
    f.h_panels = {pairs(matrix), width, all_rows / 2 * width};
    f.weight[0] = pairs(features * features);
    f.weight[1] = pairs(features * features);
    f.weight_row = features / 2;
    f.w2_panels = pairs(features * features);
}

void Workspace::take_moments(Layer (&layer)[2]) const {
    for (int i = 0; i < 2; ++i) {
        layer[i].weight.exp_avg = moments_[i].weight.exp_avg;
        layer[i].weight.exp_avg_sq = moments_[i].weight.exp_avg_sq;
        layer[i].bias.exp_avg = moments_[i].bias.exp_avg;
        layer[i].bias.exp_avg_sq = moments_[i].bias.exp_avg_sq;
    }
}

Batch Workspace::batch(std::int64_t rows) const {
    Batch batch = buffers_;
    batch.rows = rows;
    return batch;
}

void run(Phase phase, const Batch& batch, std::int64_t units, bool parallel) {
    if (!parallel || units < 2) {
        for (std::int64_t unit = 0; unit < units; ++unit) phase(batch, unit);
        return;
    }
    torch::stable::parallel_for(0, units, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t unit = begin; unit < end; ++unit) phase(batch, unit);
    });
}

}  // namespace fedclip::cpu
