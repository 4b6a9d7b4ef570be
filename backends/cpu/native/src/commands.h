// What crosses the border between Python and the kernels: one struct per operator, all beginning with `Command`.
// opsocket_cpu/native/commands.py mirrors them field by field; `opsocket_command_size` lets a test hold them together.
//
// A command holds no batch: it points at its plan's batch struct, whose content `plan.update` replaces at a stable
// address. So one command is run any number of times, alone or in a list.
#pragma once
#include <cstddef>
#include <cstdint>

namespace opsocket {

enum DType : int32_t { F32 = 0, F16 = 1, BF16 = 2 };

enum Op : int32_t {
    OP_NONE = 0,  // does nothing: what a call costs by itself
    OP_ADD,
    OP_SILU_MUL,
    OP_RMS_NORM,
    OP_ROPE,
    OP_TAKE_ROWS,
    OP_ARGMAX,
    OP_SAMPLE,
    OP_QUANTIZE_ACTIVATION,
    OP_MERGE_STATES,
    OP_MOE_ROUTE,
    OP_MOE_SORT,
    OP_MOE_COMBINE,
    OP_EMBEDDING,
    OP_MATMUL,          // float activations
    OP_MATMUL_A8,       // int8 activations
    OP_CACHE_WRITE,
    OP_CACHE_READ,
    OP_CACHE_MOVE,
    OP_CACHE_COPY_BLOCKS,
    OP_ATTENTION,
    OP_READ,            // reads memory and does nothing with it: the limit of all that streams
    OP_RATE,            // computes in registers and stores nothing of it: the limit of all that computes
    OP_COUNT
};

// op: which kernel. wait: whether every thread must have finished before the next command begins. workspace: bytes of
// memory that all threads share while the command runs.
struct Command {
    int32_t op;
    int32_t wait;
    int64_t workspace;
};

// A plan's batch and an operator's arrays are plain pointers; strides are in elements, and rows are dense unless a
// stride says otherwise.
struct Read : Command {
    const void *data;
    int64_t bytes;
    int64_t *sums;  // [threads * 8]: something has to come of what is read
};

enum RateKind : int32_t { RATE_F32 = 0, RATE_INT8 = 1, RATE_BF16 = 2 };

// Every thread does `steps` steps. operations: what one step comes to, counting a product and its sum as two; 0 where
// this level has no such instruction.
struct Rate : Command {
    int32_t kind;
    int64_t steps;
    int64_t *operations;  // [1]
    float *sums;          // [threads * 16]
};

}  // namespace opsocket

#include "commands_attention.h"
#include "commands_cache.h"
#include "commands_experts.h"
#include "commands_matmul.h"
#include "commands_model.h"
