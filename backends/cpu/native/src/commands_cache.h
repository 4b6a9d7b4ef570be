// The four operators over a KV cache.
#pragma once
#include "commands.h"

namespace opsocket {

}  // namespace opsocket
