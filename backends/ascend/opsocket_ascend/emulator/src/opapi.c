// Stand-in for libopapi: the handles that aclnn calls take, and one door to all of them. Every aclnn function that
// torch_npu knows is a trampoline (generated, see build.py) that hands its raw argument registers to `opsocket_call`,
// and that to the callback of the Python side, which knows each function's signature.
#include "opapi.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { NO_CALLBACK = 561103 };

static Handle *make(Kind kind, uint64_t count, uint64_t bytes_each) {
  Handle *handle = calloc(1, sizeof(Handle));
  handle->magic = MAGIC;
  handle->kind = kind;
  handle->count = count;
  handle->values = calloc(count ? count : 1, bytes_each);
  return handle;
}

static int destroy(const void *pointer) {
  Handle *handle = (Handle *)pointer;
  if (!handle) return 0;
  handle->magic = 0;
  free(handle->values);
  free(handle);
  return 0;
}

EXPORT Handle *aclCreateTensor(const int64_t *shape, uint64_t dimensions, int dtype, const int64_t *strides, int64_t offset,
                               int format, const int64_t *storage, uint64_t storage_dimensions, void *data) {
  if (dimensions > MOST_DIMENSIONS || storage_dimensions > MOST_DIMENSIONS) return NULL;
  Handle *handle = make(TENSOR, 0, 1);
  handle->dtype = dtype;
  handle->format = format;
  handle->dimensions = (int32_t)dimensions;
  handle->storage_dimensions = (int32_t)storage_dimensions;
  handle->offset = offset;
  handle->data = data;
  memcpy(handle->shape, shape, dimensions * sizeof *shape);
  int64_t dense = 1;
  for (int64_t d = (int64_t)dimensions - 1; d >= 0; d--) {
    handle->strides[d] = strides ? strides[d] : dense;
    dense *= shape[d];
  }
  memcpy(handle->storage, storage, storage_dimensions * sizeof *storage);
  return handle;
}

static Handle *list(Kind kind, const void *const *items, uint64_t count) {
  Handle *handle = make(kind, count, sizeof(int64_t));
  memcpy(handle->values, items, count * sizeof *items);
  return handle;
}

// A list owns what is in it, as CANN has it.
static int destroy_list(const void *pointer) {
  Handle *handle = (Handle *)pointer;
  for (uint64_t i = 0; handle && i < handle->count; i++) destroy((void *)handle->values[i]);
  return destroy(pointer);
}

EXPORT Handle *aclCreateTensorList(const void *const *items, uint64_t count) { return list(TENSOR_LIST, items, count); }
EXPORT Handle *aclCreateScalarList(const void *const *items, uint64_t count) { return list(SCALAR_LIST, items, count); }

EXPORT Handle *aclCreateIntArray(const int64_t *values, uint64_t count) {
  Handle *handle = make(INTS, count, sizeof *values);
  memcpy(handle->values, values, count * sizeof *values);
  return handle;
}

EXPORT Handle *aclCreateFloatArray(const float *values, uint64_t count) {
  Handle *handle = make(FLOATS, count, sizeof(double));
  for (uint64_t i = 0; i < count; i++) ((double *)handle->values)[i] = values[i];
  return handle;
}

EXPORT Handle *aclCreateBoolArray(const bool *values, uint64_t count) {
  Handle *handle = make(BOOLS, count, sizeof(int64_t));
  for (uint64_t i = 0; i < count; i++) handle->values[i] = values[i];
  return handle;
}

EXPORT Handle *aclCreateScalar(void *value, int dtype) {
  enum { FLOAT = 0, INT32 = 3, BYTES_4 = 4, BYTES_2 = 2, BYTES_8 = 8 };
  static const unsigned char sizes[] = {4, 2, 1, 4, 1, 0, 2, 2, 4, 8, 8, 8, 1};
  uint64_t bytes = dtype >= 0 && dtype < (int)sizeof sizes ? sizes[dtype] : BYTES_2;
  Handle *handle = make(SCALAR, 1, 16);
  handle->dtype = dtype;
  memcpy(handle->values, value, bytes);
  return handle;
}

EXPORT int aclDestroyTensor(const void *handle) { return destroy(handle); }
EXPORT int aclDestroyIntArray(const void *handle) { return destroy(handle); }
EXPORT int aclDestroyFloatArray(const void *handle) { return destroy(handle); }
EXPORT int aclDestroyBoolArray(const void *handle) { return destroy(handle); }
EXPORT int aclDestroyScalar(const void *handle) { return destroy(handle); }
EXPORT int aclDestroyTensorList(const void *handle) { return destroy_list(handle); }
EXPORT int aclDestroyScalarList(const void *handle) { return destroy_list(handle); }

// integers: rdi, rsi, rdx, rcx, r8, r9 as they came. floats: xmm0 to xmm7. stack: the caller's, first argument first.
typedef int (*Callback)(const char *name, const uint64_t *integers, const double *floats, const uint64_t *stack);
static Callback callback;

EXPORT void opsocket_set_callback(Callback function) { callback = function; }

__attribute__((visibility("hidden"))) int opsocket_call(const char *name, const uint64_t *integers, const double *floats,
                                                        const uint64_t *stack) {
  return callback ? callback(name, integers, floats, stack) : NO_CALLBACK;
}
