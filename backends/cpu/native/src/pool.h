// The one thread pool of the process. The caller is thread 0; the others are pinned to the cores that the process may
// use, spin for a while after their last work, and then sleep.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace opsocket {

struct Command;
struct Team;

constexpr size_t OWN_BYTES = size_t(2) << 20;
constexpr int COUNTERS = 4;

// What a kernel knows of where it runs. Every thread of a team calls the kernel with the same command.
struct Worker {
    int index;              // of this thread, 0 to count - 1
    int count;              // threads that work on this command
    unsigned char *own;     // scratch memory of this thread alone, OWN_BYTES of it, 64-byte aligned
    unsigned char *shared;  // the command's workspace, one for all threads, 64-byte aligned
    Team *team;
    uint32_t generation;  // of the team's barrier, as this thread has counted it
    int counters;         // which set of counters is this command's

    // Wait until all threads have come here; what they wrote before is visible after. All call it equally often.
    void barrier();

    // This thread's share of `total` equal pieces: [begin, end).
    void share(int64_t total, int64_t &begin, int64_t &end) const {
        begin = total * index / count;
        end = total * (index + 1) / count;
    }

    // The next of `total` pieces that no thread has taken, or -1. `counter`: 0 to COUNTERS - 1, each of which is 0 when
    // the command begins.
    int64_t next(int counter, int64_t total);
};

// Runs a list of commands, in order, on `threads` threads. Calls from several threads take turns. False where there is
// no memory for a workspace or a thread; nothing has run then.
bool run(const Command *const *commands, int64_t count, int threads);

}  // namespace opsocket
