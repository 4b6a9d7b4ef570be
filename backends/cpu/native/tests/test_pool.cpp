// The pool: every piece is done once by whatever number of threads, barriers hold, lists keep their order, a child
// process works, calls from several threads take turns.
#include "pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "check.h"
#include "commands.h"

using namespace opsocket;

static Add add_of(const float *a, const float *b, float *y, int64_t rows, int64_t width, int32_t wait) {
    Add c{};
    c.op = OP_ADD, c.wait = wait, c.rows = rows, c.width = width, c.dtype = F32;
    c.a = a, c.b = b, c.y = y, c.a_stride = c.b_stride = c.y_stride = width;
    return c;
}

// Each command doubles what the one before has left: right only where all of it was there.
static bool doubles(int threads, int length) {
    constexpr int64_t ROWS = 37, WIDTH = 5;
    std::vector<float> x(ROWS * WIDTH, 1.0f);
    std::vector<Add> commands(size_t(length), add_of(x.data(), x.data(), x.data(), ROWS, WIDTH, 1));
    std::vector<const Command *> list;
    for (Add &c : commands) list.push_back(&c);
    if (!run(list.data(), int64_t(list.size()), threads)) return false;
    for (float v : x)
        if (v != std::ldexp(1.0f, length)) return false;
    return true;
}

static void many_threads_in_turn() {
    for (int round = 0; round < 20; round++)
        for (int threads : {1, 4, 2, 3, 1, 7})
            CHECK(doubles(threads, 1 + round), "%d threads, %d commands", threads, 1 + round);
}

// Commands that do not wait for each other: more of them than threads may be apart.
static void no_waiting() {
    constexpr int64_t ROWS = 9, WIDTH = 3;
    std::vector<float> a(ROWS * WIDTH, 1.5f);
    std::vector<std::vector<float>> ys(40, std::vector<float>(ROWS * WIDTH, 0.0f));
    std::vector<Add> commands;
    for (auto &y : ys) commands.push_back(add_of(a.data(), a.data(), y.data(), ROWS, WIDTH, 0));
    std::vector<const Command *> list;
    for (Add &c : commands) list.push_back(&c);
    CHECK(run(list.data(), int64_t(list.size()), 3), "no memory");
    for (auto &y : ys)
        for (float v : y) CHECK(v == 3.0f, "%g", v);
}

static void callers_take_turns() {
    std::vector<std::thread> callers;
    bool good[4] = {};
    for (bool &ok : good)
        callers.emplace_back([&ok] {
            ok = true;
            for (int round = 0; round < 30; round++) ok &= doubles(2, 10);
        });
    for (std::thread &caller : callers) caller.join();
    for (bool ok : good) CHECK(ok, "a call was disturbed by another");
}

static void a_child_process_works() {
#if !defined(__SANITIZE_THREAD__)  // which does not follow threads that are begun after a fork
    if (std::getenv("OPSOCKET_EMULATED")) return;  // qemu's user mode can't start threads after a fork
    std::fflush(stdout);
    pid_t child = fork();
    if (child == 0) _exit(doubles(3, 20) ? 0 : 1);
    int status = 1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d", status);
    CHECK(doubles(3, 20), "the parent, afterwards");
#endif
}

int main() {
    test::use_this_level();
    many_threads_in_turn();
    no_waiting();
    callers_take_turns();
    a_child_process_works();
    return test::failures();
}
