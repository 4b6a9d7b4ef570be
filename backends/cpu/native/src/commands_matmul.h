// Matrix products with packed weights, their packing, and the lookup of rows.
#pragma once
#include "commands.h"

namespace opsocket {

}  // namespace opsocket
