// The operator `local_round`, and `local_epoch` for one client: all clients in one
// kernel, round.cuh.
#include <cstdlib>
#include <limits>

#include "clients.h"
#include "launch.h"
#include "ops.h"
#include "prepare.cuh"

namespace fedclip {

using namespace gpu;

namespace {

constexpr const char* kOp = "local_round";
using Clients = std::vector<TrainingClient>;

// FEDCLIP_CUDA_GROUP, the blocks that train one client; 0: by the rule of choose_shape.
int group_asked() {
    const char* text = std::getenv("FEDCLIP_CUDA_GROUP");
    if (!text || !*text) return 0;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    check(*end == 0 && value >= 1 && value <= 4096, "FEDCLIP_CUDA_GROUP=", text,
          ": expected a number of blocks, 1 to 4096");
    return int(value);
}

// The grid for some clients: groups of blocks that are all resident at once.
struct Grid {
    void (*kernel)(Round);
    Shape shape;
    int groups;
    std::size_t shared_bytes;
};

Grid choose_grid(const Launch& launch, const TrainingArguments& all,
                 std::int64_t active) {
    const int blocks = launch.attribute(cudaDevAttrMultiProcessorCount);
    const int shared = launch.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    check(launch.attribute(cudaDevAttrCooperativeLaunch) != 0, kOp,
          ": this GPU has no cooperative launch");
    const Shape shape = choose_shape(int(all.dim()), blocks,
                                     shared / int(sizeof(float)), group_asked());
    auto kernel = all.bf16() ? train_round<true, true> : train_round<false, true>;
    cudaFuncAttributes
        built;  // for an older GPU it is empty, also where a newer runs it
    launch.check(cudaFuncGetAttributes(&built, kernel));
    if (!shape.fast() || built.ptxVersion < 80) {
        kernel = all.bf16() ? train_round<true, false> : train_round<false, false>;
    }
    const std::size_t bytes = std::size_t(shape.shared_floats()) * sizeof(float);
    check(bytes <= std::size_t(shared), kOp, ": ", all.dim(),
          " features take more shared memory than the ", shared,
          " bytes of this GPU; FEDCLIP_CUDA=0 trains without this kernel");
    launch.check(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
    int resident = 0;
    launch.check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel,
                                                               kTrainThreads, bytes));
    const std::int64_t groups = std::int64_t(resident) * blocks / shape.group;
    check(groups > 0, kOp, ": no room for ", shape.group,
          " blocks at once on this GPU");
    return {kernel, shape, int(std::min(groups, active)), bytes};
}

// The clients and their steps, for the kernels.
struct Plan {
    std::vector<Client> clients;
    std::vector<AdamStep> adam;            // of every step
    std::vector<int> client_of;            // of every step
    std::vector<std::int64_t> steps;       // of every client
    std::int64_t samples = 0, active = 0;  // active: clients with steps
    std::int64_t rows = 1;                 // of the largest batch

    Plan(const TrainingArguments& all, const Clients& from) {
        for (const TrainingClient& client : from) add(all, client);
    }

  private:
    void add(const TrainingArguments& all, const TrainingClient& from) {
        Client to{};
        to.x = floats(from.x);
        to.y = from.y.const_data_ptr<std::int64_t>();
        to.perm = from.perm.const_data_ptr<std::int64_t>();
        for (int i = 0; i < 12; ++i) to.state[i] = from.parameters[i].data();
        to.losses = from.losses;
        to.rows = from.x.size(0);
        check(to.rows <= std::numeric_limits<int>::max(), "x[", clients.size(),
              "]: expected fewer than 2^31 rows, got ", to.rows);
        to.samples = from.perm.numel();
        to.steps = from.steps;
        to.first_sample = samples;
        to.first_step = std::int64_t(adam.size());
        client_of.insert(client_of.end(), std::size_t(from.steps), int(clients.size()));
        add_adam(all, from.step, from.steps);
        samples += to.samples;
        active += to.steps > 0;
        rows = std::max(rows, std::min(all.batch_size, to.samples));
        steps.push_back(to.steps);
        clients.push_back(to);
    }

    // Most clients take the same steps as the one before: its powers are theirs.
    void add_adam(const TrainingArguments& all, std::int64_t taken,
                  std::int64_t steps) {
        if (taken != taken_ || steps > std::int64_t(powers_.size())) {
            taken_ = taken;
            powers_.clear();
            for (std::int64_t t = taken + 1; t <= taken + steps; ++t) {
                powers_.push_back(adam_step(all.lr, all.beta1, all.beta2, all.eps, t));
            }
        }
        adam.insert(adam.end(), powers_.begin(), powers_.begin() + steps);
    }

    std::int64_t taken_ = -1;
    std::vector<AdamStep> powers_;  // after `taken_` steps
};

// One call on its way through the device.
class Training {
  public:
    Training(const Launch& launch, const TrainingArguments& all, const Clients& clients)
        : launch_(launch), all_(all), text_(all.text), plan_(all, clients) {}

    void start() {
        if (plan_.active) {
            grid_ = choose_grid(launch_, all_, plan_.active);
        }
        of_clients_ = tables_.add(plan_.clients);
        of_client_ = tables_.add(plan_.client_of);
        of_adam_ = tables_.add(plan_.adam);
        tables_.send(launch_, text_);
        prepare();
        if (plan_.active) train();
    }

    // Waits for the device; raises for the first index out of range, if any.
    void finish(const Clients& clients) const {
        unsigned long long code = kNoError;
        launch_.check(cudaMemcpyAsync(&code, error(), sizeof code,
                                      cudaMemcpyDeviceToHost, launch_.stream()));
        launch_.check(cudaStreamSynchronize(launch_.stream()));
        if (code == kNoError) return;
        const IndexError wrong = IndexError::from(code);
        const TrainingClient& client = clients[wrong.client];
        const Tensor& indices = wrong.of_perm ? client.perm : client.y;
        const std::int64_t* at = indices.const_data_ptr<std::int64_t>() + wrong.at;
        std::int64_t value = 0;
        launch_.check(cudaMemcpy(&value, at, sizeof value, cudaMemcpyDeviceToHost));
        refuse_index(wrong.of_perm ? "perm" : "y", std::size_t(wrong.client),
                     wrong.of_perm ? client.x.size(0) : all_.classes(), value,
                     wrong.at);
    }

  private:
    unsigned long long* error() const {
        return static_cast<unsigned long long*>(error_.mutable_data_ptr());
    }

    void prepare() {
        const std::int64_t samples = plan_.samples;
        const std::int64_t steps = std::int64_t(plan_.adam.size());
        indices_ = launch_.bytes(text_, (5 * samples + steps + 1) * sizeof(int));
        error_ = launch_.filled(text_, sizeof(kNoError), 0xff);
        int* start = static_cast<int*>(indices_.mutable_data_ptr());
        table_ = {start,
                  start + samples,
                  start + 2 * samples,
                  start + 3 * samples,
                  start + 4 * samples,
                  start + 5 * samples};
        const unsigned blocks = unsigned(steps + std::int64_t(plan_.clients.size()));
        launch_.run(prepare_round, blocks, kThreads * sizeof(int),
                    tables_.at<Client>(of_clients_), tables_.at<int>(of_client_), steps,
                    all_.batch_size, all_.classes(), table_, error());
    }

    // All groups at once; fewer, where less than the whole GPU is granted (a green
    // context, some shares of MPS).  A client's bits do not depend on their number.
    void train() {
        while (!launched_all_groups()) grid_.groups = (grid_.groups + 1) / 2;
    }

    bool launched_all_groups() {
        const Schedule schedule = share_out_clients(plan_.steps, grid_.groups);
        Tables lists;
        const std::size_t order = lists.add(schedule.order),
                          begin = lists.add(schedule.begin);
        lists.send(launch_, text_);
        const Space space(grid_.shape, plan_.rows,
                          std::min(plan_.rows, all_.classes()));
        workspace_ = torch::stable::new_empty(text_, {grid_.groups * space.size});
        barriers_ =
            launch_.filled(text_, grid_.groups * kBarrierPitch * sizeof(unsigned), 0);
        Round round{tables_.at<Client>(of_clients_),
                    lists.at<int>(order),
                    lists.at<int>(begin),
                    tables_.at<AdamStep>(of_adam_),
                    table_,
                    floats(text_),
                    workspace_.mutable_data_ptr<float>(),
                    static_cast<unsigned*>(barriers_.mutable_data_ptr()),
                    error(),
                    grid_.shape,
                    space,
                    all_.batch_size,
                    float(1 - all_.beta1),
                    float(1 - all_.beta2),
                    float(all_.weight_decay),
                    float(all_.logit_scale)};
        void* arguments[] = {&round};
        const dim3 blocks(unsigned(grid_.groups * grid_.shape.group));
        const cudaError_t error = cudaLaunchCooperativeKernel(
            grid_.kernel, blocks, dim3(kTrainThreads), arguments, grid_.shared_bytes,
            launch_.stream());
        if (error == cudaErrorCooperativeLaunchTooLarge && grid_.groups > 1) {
            (void)cudaGetLastError();
            return false;
        }
        launch_.check(error);
        return true;
    }

    const Launch& launch_;
    const TrainingArguments& all_;
    const Tensor& text_;
    Plan plan_;
    Grid grid_{};
    Tables tables_;
    std::size_t of_clients_ = 0, of_client_ = 0, of_adam_ = 0;
    ClassTable table_{};
    Tensor indices_, error_, workspace_, barriers_;
};

}  // namespace

Tensor local_round(TrainingArguments arguments) {
    const TrainingArguments& all = arguments;
    const Launch launch(kOp, all.x.empty() ? all.text : all.x[0]);
    launch.refuse_capture();  // it waits for the device
    auto clients = take_clients(arguments);
    const Tensor losses = make_losses(all.text, clients);
    if (clients.empty()) return losses;
    check(all.dim() >= 1, "x[0]: expected at least one column, got ",
          describe(all.x[0]));
    Training training(launch, all, clients);
    training.start();
    training.finish(clients);
    write_back(clients);
    let_go_of(arguments, clients);
    return losses;
}

}  // namespace fedclip
