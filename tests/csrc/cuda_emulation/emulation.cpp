#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <random>
#include <vector>

Index threadIdx, blockIdx;

namespace emulation {
namespace {

constexpr std::size_t kStack = 256 << 10;
constexpr int kSpins = 1 << 22;  // without anything else happening

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool zeros;

    void run() const {
        if (zeros) {
            std::memset(to, 0, std::size_t(bytes));
        } else {
            std::memcpy(to, from, std::size_t(bytes));
        }
    }
};

struct Fibre {
    ucontext_t context;
    unsigned block, thread;
    bool done = false;
    std::vector<Copy> copies;              // since the last commit
    std::deque<std::vector<Copy>> groups;  // under way
};

// Threads that wait for one another: those of a block, or of a warp.
struct Meeting {
    std::vector<Fibre*> waiting;
    int line = 0;
};

struct Warp {
    Meeting meeting;
    std::uint64_t slots[2][32];
    unsigned turn[32] = {};
    float factors[2][32][6];  // a, b
    unsigned product[32] = {};
};

struct Block {
    Meeting barrier;
    std::vector<Warp> warps;
    unsigned alive = 0;
    std::unique_ptr<float[]> shared;
};

struct Launch {
    std::vector<Fibre> fibres;
    std::vector<Block> blocks;
    std::vector<Fibre*> ready;
    Fibre* current = nullptr;
    ucontext_t scheduler;
    std::mt19937_64 random;
    unsigned favourite = 0;  // a block that runs ahead of the others
    const std::function<void()>* kernel = nullptr;
    std::string error;
    int spins = 0;
};

Launch* now = nullptr;

void switch_out() { swapcontext(&now->current->context, &now->scheduler); }

void fail(const std::string& what) {
    const Fibre& f = *now->current;
    now->error = what + ", block " + std::to_string(f.block) + " thread " +
                 std::to_string(f.thread);
    switch_out();  // never comes back
}

void meet(Meeting& meeting, std::size_t size, int line, const char* what) {
    if (!meeting.waiting.empty() && meeting.line != line) {
        fail(std::string(what) + " of line " + std::to_string(line) +
             " met that of line " + std::to_string(meeting.line));
    }
    meeting.line = line;
    now->spins = 0;
    if (meeting.waiting.size() + 1 < size) {
        meeting.waiting.push_back(now->current);
        switch_out();
        return;
    }
    now->ready.insert(now->ready.end(), meeting.waiting.begin(), meeting.waiting.end());
    meeting.waiting.clear();
    pause();
}

void enter() {
    (*now->kernel)();
    now->current->done = true;
}

Fibre* choose() {
    auto& ready = now->ready;
    if (now->random() % 4096 == 0) now->favourite = now->random() % now->blocks.size();
    std::size_t at = 0;
    for (int tries = 0; tries < 4; ++tries) {
        at = now->random() % ready.size();
        if (ready[at]->block == now->favourite) break;
    }
    std::swap(ready[at], ready.back());
    Fibre* fibre = ready.back();
    ready.pop_back();
    return fibre;
}

// The others of the block may have waited for this thread alone.
void leave(Block& block) {
    --block.alive;
    Meeting& barrier = block.barrier;
    if (block.alive == 0 || barrier.waiting.size() < block.alive) return;
    now->ready.insert(now->ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
}

void run_all() {
    std::size_t left = now->fibres.size();
    while (left && now->error.empty()) {
        if (now->ready.empty()) {
            now->error = "deadlock: a barrier that not all threads reach, line " +
                         std::to_string(now->blocks[0].barrier.line);
            return;
        }
        Fibre* fibre = now->current = choose();
        threadIdx.x = fibre->thread;
        blockIdx.x = fibre->block;
        swapcontext(&now->scheduler, &fibre->context);
        if (!fibre->done) continue;
        leave(now->blocks[fibre->block]);
        now->spins = 0;
        --left;
    }
}

}  // namespace

float* shared_memory() { return now->blocks[now->current->block].shared.get(); }

void pause() {
    if (++now->spins > kSpins) fail("waiting without end");
    now->ready.push_back(now->current);
    switch_out();
}

void sync_threads(int line) {
    Block& block = now->blocks[now->current->block];
    meet(block.barrier, block.alive, line, "barrier");
}

namespace {

float tf32(float value) {  // the rest of the bits is ignored
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= 0xffffe000;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

}  // namespace

void multiply(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
    const unsigned thread = now->current->thread, lane = thread % 32;
    Warp& warp = now->blocks[now->current->block].warps[thread / 32];
    auto& factors = warp.factors[warp.product[lane]++ % 2];
    for (int i = 0; i < 4; ++i) factors[lane][i] = tf32(a[i]);
    for (int i = 0; i < 2; ++i) factors[lane][4 + i] = tf32(b[i]);
    meet(warp.meeting, 32, 0, "product");
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        double sum = d[i];
        for (unsigned k = 0; k < 8; ++k) {
            sum += double(factors[row * 4 + k % 4][k / 4 * 2 + i / 2]) *
                   factors[column * 4 + k % 4][4 + k / 4];
        }
        d[i] = float(sum);
    }
}

void start_copy(void* to, const void* from, int bytes, bool zeros) {
    const Copy copy{to, from, bytes, zeros};
    if (reinterpret_cast<std::uintptr_t>(to) % std::size_t(bytes) ||
        (!zeros && reinterpret_cast<std::uintptr_t>(from) % std::size_t(bytes))) {
        fail("a copy that is not aligned");
    }
    if (now->random() % 2) {
        copy.run();
    } else {
        now->current->copies.push_back(copy);
    }
}

void commit_copies() {
    Fibre& fibre = *now->current;
    fibre.groups.push_back(std::move(fibre.copies));
    fibre.copies.clear();
}

void wait_for_copies(std::size_t pending) {
    auto& groups = now->current->groups;
    for (; groups.size() > pending; groups.pop_front()) {
        for (const Copy& copy : groups.front()) copy.run();
    }
}

std::uint64_t exchange(std::uint64_t bits, int lanes, int line) {
    const unsigned thread = now->current->thread, lane = thread % 32;
    Warp& warp = now->blocks[now->current->block].warps[thread / 32];
    std::uint64_t* slots = warp.slots[warp.turn[lane]++ % 2];
    slots[lane] = bits;
    meet(warp.meeting, 32, line, "shuffle");
    return slots[lane ^ unsigned(lanes)];
}

std::string launch(unsigned blocks, unsigned threads, std::int64_t shared_floats,
                   std::uint64_t seed, const std::function<void()>& kernel) {
    Launch launch;
    launch.random.seed(seed);
    launch.kernel = &kernel;
    launch.blocks.resize(blocks);
    launch.fibres.resize(std::size_t(blocks) * threads);
    const std::size_t bytes = launch.fibres.size() * kStack;
    char* stacks =
        static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) return "no memory for the stacks";
    now = &launch;
    for (Block& block : launch.blocks) {
        block.warps.resize(threads / 32);
        block.alive = threads;
        block.shared.reset(new float[shared_floats]);
        std::fill_n(block.shared.get(), shared_floats,
                    std::numeric_limits<float>::quiet_NaN());
    }
    for (std::size_t i = 0; i < launch.fibres.size(); ++i) {
        Fibre& fibre = launch.fibres[i];
        fibre.block = unsigned(i / threads);
        fibre.thread = unsigned(i % threads);
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = stacks + i * kStack;
        fibre.context.uc_stack.ss_size = kStack;
        fibre.context.uc_link = &launch.scheduler;
        makecontext(&fibre.context, enter, 0);
        launch.ready.push_back(&fibre);
    }
    run_all();
    munmap(stacks, bytes);
    now = nullptr;
    return launch.error;
}

}  // namespace emulation
