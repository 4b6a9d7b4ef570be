// Reads memory as fast as the level can: what every kernel that streams is measured against.
#include "kernels.h"
#include "processor.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

void read(const Command *command, Worker &worker) {
    const Read &c = *static_cast<const Read *>(command);
    constexpr int64_t step = 4 * sizeof(I), ahead = 8192;  // bytes; worth a twentieth on two cores of a Zen 5
    int64_t begin, end;
    worker.share(c.bytes / step, begin, end);
    const char *p = static_cast<const char *>(c.data) + begin * step, *stop = p + (end - begin) * step;
    I s[4] = {};
    for (; p < stop; p += step) {
        for (int64_t j = 0; j < step; j += 64) ask_for_line(p + ahead + j);
        for (int j = 0; j < 4; j++) s[j] += load_as<I>(p + j * sizeof(I));
    }
    c.sums[worker.index * 8] = sum(s[0] + s[1] + s[2] + s[3]);
}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
