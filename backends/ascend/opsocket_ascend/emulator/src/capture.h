// Streams, events and graphs of the emulated NPU. A stream that is captured keeps its work; any other does it at once.
#pragma once
#include "acl/acl.h"

#include <stddef.h>

// What to do with work that comes to a stream. REFUSED has set the message and returns CANN's code for it.
typedef enum { AT_ONCE = 0, KEPT = 1 } Fate;

// The fate of an asynchronous copy (or fill: from NULL) on a stream, or CANN's error as a negative number.
int opsocket_keep_copy(aclrtStream stream, void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind);
int opsocket_keep_fill(aclrtStream stream, void *to, size_t room, int32_t value, size_t bytes);
// ACL_SUCCESS, or why the host may not wait now: some capture forbids it, and is invalid from here on.
aclError opsocket_may_block(const char *function);
// Whether the host memory is pinned: only such can be copied from, or to, by a graph.
int opsocket_is_pinned(const void *address, size_t bytes);
void opsocket_set_message(const char *text);
