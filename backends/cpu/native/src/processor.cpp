#include "processor.h"

namespace opsocket {

static bool is_intel() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

const Processor processor = {
    .bf16_dots_pay = !is_intel(), .transient_lines_pay = !is_intel(), .ahead_into_level_2 = is_intel(),
    .rows_together = is_intel() ? 8 : 6,
    .pipes_beside_products = !is_intel(),
};

}  // namespace opsocket
