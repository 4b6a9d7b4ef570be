#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "commands.h"
#include "dispatch.h"

namespace opsocket {

constexpr int MAX_THREADS = 255;
constexpr int SPINS = 20000;  // at a barrier, before others are let in
// What lies between two steps of an engine that is quick, and again as much. By the clock: a pause takes 10 to 140
// cycles, as the processor likes.
constexpr auto AWAKE = std::chrono::milliseconds(1);

// Threads may be this many commands apart where commands do not wait for each other. A set of counters is zeroed by
// thread 0 while it is twice as far from all that are in use.
constexpr int DRIFT = 4, SETS = 16;

// So many threads look for each other at a barrier, which costs one trip of a cache line where thread 0 in between
// makes it two; of more threads, each trip would have many takers.
constexpr int FEW = 4;

static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

template <class Condition> static void wait_for(Condition condition) {
    for (int spin = 0; !condition(); spin++)
        if (spin < SPINS) relax(); else sched_yield();
}

struct alignas(64) Flag {
    std::atomic<uint32_t> value{0};
};

struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
};

struct Team {
    Flag arrived[MAX_THREADS];
    Counter counters[SETS][COUNTERS];
    alignas(64) std::atomic<uint32_t> work{0};  // (number of the run << 8) | its threads: one word, so that a thread
                                                // that has no part in a run never looks at the next one's facts
    alignas(64) std::atomic<uint32_t> sleepers{0};

    const Command *const *commands = nullptr;
    int64_t count = 0;
    uint32_t generation = 0;  // of the barrier when the run begins
    std::vector<int> cores;
    int first_core = 0;  // which of them the caller is on: it stays unpinned, since threads that it makes later, another
                         // library's, would inherit that. The others are pinned to the cores after it.
    unsigned char *shared = nullptr;
    size_t shared_bytes = 0;
    std::vector<unsigned char *> own;
    std::mutex turn;
};

constexpr size_t PAGE = size_t(2) << 20;

static size_t whole_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// bytes: of whole pages.
static unsigned char *allocate(size_t bytes) {
    void *memory = std::aligned_alloc(PAGE, bytes);
    if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
    return static_cast<unsigned char *>(memory);
}

// A run's workspace ends where its commands asked for it to end, though there is memory behind it.
static void guard_workspace([[maybe_unused]] const Team &team, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(team.shared, bytes);
    ASAN_POISON_MEMORY_REGION(team.shared + bytes, team.shared_bytes - bytes);
#endif
}

void Worker::barrier() {
    if (count == 1) return;
    uint32_t want = ++generation;
    Flag *arrived = team->arrived;
    auto reached = [&](int i) { return int32_t(arrived[i].value.load(std::memory_order_acquire) - want) >= 0; };
    if (count <= FEW) {
        arrived[index].value.store(want, std::memory_order_release);
        for (int i = 0; i < count; i++)
            if (i != index) wait_for([&] { return reached(i); });
    } else if (index == 0) {
        for (int i = 1; i < count; i++) wait_for([&] { return reached(i); });
        arrived[0].value.store(want, std::memory_order_release);
    } else {
        arrived[index].value.store(want, std::memory_order_release);
        wait_for([&] { return reached(0); });
    }
}

int64_t Worker::next(int counter, int64_t total) {
    int64_t piece = team->counters[counters][counter].value.fetch_add(1, std::memory_order_relaxed);
    return piece < total ? piece : -1;
}

static void execute(Team &team, Worker &worker) {
    // A thread may leave the last barrier when the next run has begun: what follows must not look at that one's list.
    const Command *const *commands = team.commands;
    const int64_t count = team.count;
    int drift = 0;
    for (int64_t i = 0; i < count; i++) {
        const Command *command = commands[i];
        worker.counters = int(i % SETS);
        if (worker.index == 0)
            for (Counter &counter : team.counters[(i + SETS / 2) % SETS])
                counter.value.store(0, std::memory_order_relaxed);
        kernel(command->op)(command, worker);
        if (command->wait || ++drift == DRIFT || i + 1 == count) {
            worker.barrier();
            drift = 0;
        }
    }
}

// The cores that the process may use, as they were when the team was made.
static std::vector<int> usable_cores() {
    std::vector<int> cores;
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed))
        for (int core = 0; core < CPU_SETSIZE; core++)
            if (CPU_ISSET(core, &allowed)) cores.push_back(core);
    return cores;
}

static void pin(int core) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
}

// Spins until `condition` holds; false where it does not within AWAKE.
template <class Condition> static bool comes_soon(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + AWAKE;
    do
        for (int spin = 0; spin < 64; spin++) {
            if (condition()) return true;
            relax();
        }
    while (std::chrono::steady_clock::now() < end);
    return false;
}

static void serve(Team *team, int index, unsigned char *own, uint32_t done) {
    int core = -1;
    for (;;) {
        while (!comes_soon([&] { return team->work.load() != done; })) {
            team->sleepers.fetch_add(1);
            syscall(SYS_futex, &team->work, FUTEX_WAIT_PRIVATE, done, nullptr, nullptr, 0);
            team->sleepers.fetch_sub(1);
        }
        const uint32_t now = done = team->work.load();
        int threads = int(now & 255);
        if (index >= threads) continue;
        if (!team->cores.empty()) {
            int want = team->cores[size_t(team->first_core + index) % team->cores.size()];
            if (want != core) pin(core = want);
        }
        Worker worker{index, threads, own, team->shared, team, team->generation, 0};
        execute(*team, worker);
    }
}

static std::mutex making;
static Team *the_team = nullptr;

static Team &team() {
    std::lock_guard<std::mutex> guard(making);
    if (!the_team) {
        // A child process has none of its parent's threads, and starts with a team of its own.
        static const int registered = pthread_atfork(nullptr, nullptr, [] { the_team = nullptr; });
        (void)registered;
        the_team = new Team();
        the_team->cores = usable_cores();
    }
    return *the_team;
}

static bool grow(Team &team, int threads, size_t shared) {
    while (int(team.own.size()) < threads) {
        unsigned char *own = allocate(OWN_BYTES);
        if (!own) return false;
        int index = int(team.own.size());
        try {
            if (index) std::thread(serve, &team, index, own, team.work.load()).detach();
        } catch (const std::system_error &) {
            std::free(own);
            return false;
        }
        team.own.push_back(own);
    }
    if (shared > team.shared_bytes) {
        size_t bytes = whole_pages(shared + shared / 4);
        unsigned char *memory = allocate(bytes);
        if (!memory) return false;
        std::free(team.shared);
        team.shared = memory;
        team.shared_bytes = bytes;
    }
    return true;
}

bool run(const Command *const *commands, int64_t count, int threads) {
    if (count == 0) return true;
    Team &t = team();
    std::lock_guard<std::mutex> guard(t.turn);
    threads = std::clamp(threads, 1, MAX_THREADS);
    int64_t shared = 0;
    for (int64_t i = 0; i < count; i++) shared = std::max(shared, commands[i]->workspace);
    if (!grow(t, threads, size_t(shared))) return false;
    guard_workspace(t, size_t(shared));
    t.commands = commands;
    t.count = count;
    for (auto &set : t.counters)
        for (Counter &counter : set) counter.value.store(0, std::memory_order_relaxed);
    Worker worker{0, threads, t.own[0], t.shared, &t, t.generation, 0};
    if (threads > 1) {
        auto here = std::find(t.cores.begin(), t.cores.end(), sched_getcpu());
        if (here != t.cores.end()) t.first_core = int(here - t.cores.begin());
        t.work.store((((t.work.load() >> 8) + 1) << 8) | uint32_t(threads));
        if (t.sleepers.load()) syscall(SYS_futex, &t.work, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
    }
    execute(t, worker);
    t.generation = worker.generation;
    return true;
}

}  // namespace opsocket
