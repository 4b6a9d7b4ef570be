// Matrix products with packed weights, their packing, and the lookup of rows.
#pragma once
#include "commands.h"
#include "panel.h"

namespace opsocket {

}  // namespace opsocket
