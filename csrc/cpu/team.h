// Teams of threads.  The threads of a call are its crew: some lead a team, which trains
// a client from its first phase to its last; the others wait, and a leader takes on its
// share of them as soon as there are any.  So all work where there are fewer clients
// than threads, where the caches of one core are too small for a client, and on the
// last clients of a list.
//
// The units of a phase are dealt to the members in runs, the same rows to the same
// member in each phase, which has them in its cache.  Who is through with its run goes
// on with those of the others: nobody waits for a thread that has no processor just
// now, but for a unit that it has begun.  Who computes a unit changes no bit.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/kernels.h"

namespace fedclip::cpu {

// A phase, and how many units it has in each of `layers`, one layer's behind the
// other's.
struct Work {
    Phase phase;
    std::int64_t (*units)(const Batch& batch);
    int layers = 1;
};

// Members that a team is to have from its start, or 0: as the caches ask for.  Tests
// and benchmarks set it.
std::int64_t team_size();
void set_team_size(std::int64_t members);

// Waits for another thread: spins, and sleeps once that has not helped.  It then spins
// less the next time, as others are at work on this machine: who has spun his time away
// must wait for a processor when there is something to do.
class Waiter {
  public:
    explicit Waiter(int spins) : spins_(spins) {}
    int await(const std::atomic<int>& value, int before);

  private:
    int spins_;
};

class Crew;

// A leader and the members that it has taken on.
class Team {
  public:
    // Takes on up to `most` members in all; more are of no use.
    Team(Crew& crew, std::int64_t most);

    // All units of a phase: called by the leader.
    void run(const Work& work, const Batch& batch);

  private:
    friend class Crew;

    // The units of a member that nobody has begun: the number of the phase, the first
    // and the end, in one word.
    struct alignas(64) Share {
        std::atomic<std::uint64_t> left{0};
    };

    void serve(int member, int turn);
    void dissolve();
    int work_on(int turn, int member);
    bool take(Share& share, int turn, std::int64_t* unit) const;

    Crew& crew_;
    Waiter waiter_;
    std::vector<Share> shares_;
    int size_ = 1;
    const Work* work_ = nullptr;  // these three: of a unit that is not done
    const Batch* batch_ = nullptr;
    int units_ = 0;
    std::atomic<bool> dissolved_{false};
    alignas(64) std::atomic<int> turn_{0};  // counts the phases that have begun
    alignas(64) std::atomic<int> done_{0};  // units of this one
};

class Crew {
  public:
    // Of up to `threads` threads, of which up to `teams` lead one of up to `most`.
    Crew(std::int64_t threads, std::int64_t teams, std::int64_t most);

    // What each thread does: lead(i, team), if it is among the first, and then help the
    // others until all leaders are done.  Any number of threads may come, at any time.
    template <class F>
    void work(const F& lead) {
        const std::int64_t leader = join();
        if (leader >= 0) {
            const Leave leave{*this, *teams_[leader]};
            lead(leader, leave.team);
        }
        help();
    }

  private:
    friend class Team;

    struct Helper {
        std::atomic<Team*> team{nullptr};
        int member = 0, turn = 0;
    };
    struct Leave {
        Crew& crew;
        Team& team;
        ~Leave() { crew.leave(team); }
    };

    std::int64_t join();
    void leave(Team& team);
    void help();
    void grow(Team& team);

    const std::int64_t threads_, most_;
    const int spins_;                           // 0 if threads are more than processors
    std::vector<std::unique_ptr<Team>> teams_;  // last until all threads are done
    std::atomic<std::int64_t> idle_{0};         // of `waiting_`
    std::atomic<std::int64_t> leading_{0};      // teams at work
    std::mutex mutex_;
    std::condition_variable change_;
    std::size_t led_ = 0;  // teams that have or had a leader
    std::vector<Helper*> waiting_;
};

}  // namespace fedclip::cpu
