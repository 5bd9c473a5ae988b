#include "cpu/team.h"

#include <algorithm>
#include <thread>

namespace fedclip::cpu {
namespace {

// About 2 and 50 us: the latter is longer than members are apart on an idle machine.
constexpr int kLeastSpins = 64, kMostSpins = 2048;

constexpr int kUnitBits = 20;  // of a unit's number in a share
constexpr std::uint64_t kUnits = (1 << kUnitBits) - 1;

std::atomic<std::int64_t> size_of_teams{0};

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

std::uint64_t pack_share(int turn, std::int64_t begin, std::int64_t end) {
    return std::uint64_t(turn) << 2 * kUnitBits | std::uint64_t(begin) << kUnitBits |
           std::uint64_t(end);
}

}  // namespace

std::int64_t team_size() { return size_of_teams; }
void set_team_size(std::int64_t members) { size_of_teams = members; }

// The value, once it is another than `before`.
int Waiter::await(const std::atomic<int>& value, int before) {
    for (int spin = 0; spin < spins_; ++spin) {
        const int now = value.load(std::memory_order_acquire);
        if (now != before) {
            spins_ = std::min(2 * spins_, kMostSpins);
            return now;
        }
        pause();
    }
    spins_ = std::min(spins_, kLeastSpins);
    value.wait(before, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

Team::Team(Crew& crew, std::int64_t most)
    : crew_(crew), waiter_(crew.spins_), shares_(std::size_t(most)) {}

void Team::run(const Work& work, const Batch& batch) {
    if (crew_.idle_.load(std::memory_order_relaxed)) crew_.grow(*this);
    const std::int64_t all = work.units(batch), units = all / work.layers;
    if (size_ == 1 || units < 2 || units > std::int64_t(kUnits)) {
        for (std::int64_t unit = 0; unit < all; ++unit) work.phase(batch, unit);
        return;
    }
    const int turn = turn_.load(std::memory_order_relaxed) + 1;
    work_ = &work;
    batch_ = &batch;
    units_ = int(units);
    done_.store(0, std::memory_order_relaxed);
    for (int m = 0; m < size_; ++m) {
        const std::uint64_t share =
            pack_share(turn, units * m / size_, units * (m + 1) / size_);
        shares_[m].left.store(share, std::memory_order_release);
    }
    turn_.store(turn, std::memory_order_release);
    turn_.notify_all();
    int done = work_on(turn, 0);
    done += done_.fetch_add(done, std::memory_order_acq_rel);
    while (done != units_) done = waiter_.await(done_, done);
}

// Begins the next unit of a share, if there is one of that phase.
bool Team::take(Share& share, int turn, std::int64_t* unit) const {
    std::uint64_t left = share.left.load(std::memory_order_acquire);
    for (;;) {
        const std::uint64_t begin = left >> kUnitBits & kUnits, end = left & kUnits;
        const std::uint64_t wanted = pack_share(turn, 0, 0);
        if (left >> 2 * kUnitBits != wanted >> 2 * kUnitBits || begin == end) {
            return false;
        }
        if (share.left.compare_exchange_weak(left, left + kUnits + 1,
                                             std::memory_order_acq_rel)) {
            *unit = std::int64_t(begin);
            return true;
        }
    }
}

// Own units, then those of the others; how many.
int Team::work_on(int turn, int member) {
    int done = 0;
    const int members = int(shares_.size());
    for (int m = 0; m < members; ++m) {
        Share& share = shares_[(member + m) % members];
        for (std::int64_t unit; take(share, turn, &unit); ++done) {
            for (int layer = 0; layer < work_->layers; ++layer) {
                work_->phase(*batch_, layer * units_ + unit);
            }
        }
    }
    return done;
}

// What a member other than the leader does, from the phase after number `turn` on.
void Team::serve(int member, int turn) {
    Waiter waiter(crew_.spins_);
    for (;;) {
        turn = waiter.await(turn_, turn);
        if (dissolved_) return;
        const int done = work_on(turn, member);
        if (!done) continue;
        const int all = units_;  // as of now: the leader may go on when all are done
        if (done_.fetch_add(done, std::memory_order_acq_rel) + done == all) {
            done_.notify_one();
        }
    }
}

void Team::dissolve() {
    dissolved_ = true;
    turn_.fetch_add(1, std::memory_order_release);
    turn_.notify_all();
}

Crew::Crew(std::int64_t threads, std::int64_t teams, std::int64_t most)
    : threads_(threads),
      most_(std::min(threads, most)),
      spins_(threads <= std::int64_t(std::thread::hardware_concurrency()) ? kMostSpins
                                                                          : 0) {
    for (std::int64_t team = 0; team < teams; ++team) {
        teams_.push_back(std::make_unique<Team>(*this, most_));
    }
}

// The number of the team that this thread is to lead, or -1.
std::int64_t Crew::join() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (led_ == teams_.size()) return -1;
    leading_ += 1;
    return std::int64_t(led_++);
}

void Crew::leave(Team& team) {
    team.dissolve();
    const std::lock_guard<std::mutex> lock(mutex_);
    leading_ -= 1;
    change_.notify_all();
}

void Crew::help() {
    for (;;) {
        Helper helper;
        std::unique_lock<std::mutex> lock(mutex_);
        if (!leading_) return;
        waiting_.push_back(&helper);
        idle_ += 1;
        lock.unlock();
        const auto wanted = [&] {
            return helper.team.load(std::memory_order_acquire) || !leading_;
        };
        for (int spin = 0; spin < spins_ && !wanted(); ++spin) pause();
        lock.lock();
        change_.wait(lock, wanted);
        Team* team = helper.team;
        if (!team) {
            waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &helper));
            idle_ -= 1;
            return;
        }
        lock.unlock();
        team->serve(helper.member, helper.turn);
    }
}

// Takes on waiting threads, up to an equal share of the crew for each team.
void Crew::grow(Team& team) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::int64_t leading = leading_;
    const std::int64_t wanted = std::min((threads_ + leading - 1) / leading, most_);
    const int before = team.size_;
    while (team.size_ < wanted && !waiting_.empty()) {
        Helper* helper = waiting_.back();
        waiting_.pop_back();
        idle_ -= 1;
        helper->member = team.size_++;
        helper->turn = team.turn_.load(std::memory_order_relaxed);
        helper->team.store(&team, std::memory_order_release);
    }
    if (team.size_ != before) change_.notify_all();
}

}  // namespace fedclip::cpu
