// Decode: parts of sequences with few queries, bound by memory. Helper `decode` writes it.
#pragma once
#include "attention_part.h"

namespace opsocket {
namespace OPSOCKET_LEVEL {

// Whether `attend_part` computes the parts of a sequence with so many queries.
inline bool decodes(const Attention &, int32_t) { return false; }

inline void attend_part(const Part &) {}

}  // namespace OPSOCKET_LEVEL
}  // namespace opsocket
