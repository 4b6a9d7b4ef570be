// Attention and the merge of its parts.
#pragma once
#include "commands.h"

namespace opsocket {

}  // namespace opsocket
