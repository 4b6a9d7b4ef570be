// What an aclTensor, an aclScalar, an aclIntArray are here. `handles.py` reads this struct by ctypes.
#pragma once
#include <stdint.h>

enum { MOST_DIMENSIONS = 8, MAGIC = 0x0950c4e7 };
typedef enum { TENSOR = 1, TENSOR_LIST, INTS, FLOATS, BOOLS, SCALAR, SCALAR_LIST } Kind;

// values: int64 of INTS and BOOLS, double of FLOATS, `Handle *` of lists, the raw 16 bytes of a SCALAR. count: how many.
typedef struct Handle {
  int32_t magic, kind, dtype, format, dimensions, storage_dimensions;
  int64_t shape[MOST_DIMENSIONS], strides[MOST_DIMENSIONS], storage[MOST_DIMENSIONS];
  int64_t offset;
  void *data;
  uint64_t count;
  int64_t *values;
} Handle;
