// CANN's older operator interface, as far as torch_npu describes tensors by it: descriptions, buffers, and one door to
// the Python side for every operator. Attributes are not emulated; an operator that is given any fails at making them.
#define FUNC_VISIBILITY
#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "memory.h"
#include "opapi.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_TENSORS = 16 };

// The shape and format that an operator's author sees are the description's; how the elements lie is set apart from them.
struct aclTensorDesc { Handle tensor; };
struct aclDataBuffer { void *data; size_t bytes; };

typedef int (*Callback)(const char *name, const Handle *const *inputs, int input_count, const Handle *const *outputs,
                        int output_count);
static Callback callback;
__attribute__((visibility("default"))) void opsocket_set_aclop_callback(Callback function) { callback = function; }

aclTensorDesc *aclCreateTensorDesc(aclDataType dtype, int dimensions, const int64_t *shape, aclFormat format) {
  if (dimensions < 0 || dimensions > MOST_DIMENSIONS) return NULL;
  aclTensorDesc *made = calloc(1, sizeof *made);
  Handle *tensor = &made->tensor;
  tensor->magic = MAGIC;
  tensor->kind = TENSOR;
  tensor->dtype = dtype;
  tensor->format = format;
  tensor->dimensions = tensor->storage_dimensions = dimensions;
  int64_t dense = 1;
  for (int d = dimensions - 1; d >= 0; d--) {
    tensor->shape[d] = tensor->storage[d] = shape[d];
    tensor->strides[d] = dense;
    dense *= shape[d];
  }
  return made;
}
void aclDestroyTensorDesc(const aclTensorDesc *desc) { free((void *)desc); }

aclError aclSetTensorFormat(aclTensorDesc *desc, aclFormat format) {
  desc->tensor.format = format;
  return ACL_SUCCESS;
}
aclError aclSetTensorShape(aclTensorDesc *desc, int dimensions, const int64_t *shape) {
  if (dimensions < 0 || dimensions > MOST_DIMENSIONS) return ACL_ERROR_INVALID_PARAM;
  desc->tensor.storage_dimensions = dimensions;
  memcpy(desc->tensor.storage, shape, (size_t)dimensions * sizeof *shape);
  return ACL_SUCCESS;
}

aclDataBuffer *aclCreateDataBuffer(void *data, size_t bytes) {
  aclDataBuffer *made = calloc(1, sizeof *made);
  *made = (aclDataBuffer){data, bytes};
  return made;
}
aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) { free((void *)buffer); return ACL_SUCCESS; }

static const Handle *placed(Handle *handle, const aclTensorDesc *desc, const aclDataBuffer *buffer) {
  *handle = desc->tensor;
  handle->data = buffer->data;
  return handle;
}

aclError aclopCompileAndExecute(const char *name, int input_count, const aclTensorDesc *const input_descs[],
                                const aclDataBuffer *const inputs[], int output_count,
                                const aclTensorDesc *const output_descs[], aclDataBuffer *const outputs[],
                                const aclopAttr *attributes, aclopEngineType engine, aclopCompileType compile,
                                const char *path, aclrtStream stream) {
  if (!callback || input_count + output_count > MOST_TENSORS) return ACL_ERROR_FEATURE_UNSUPPORTED;
  Handle handles[MOST_TENSORS];
  const Handle *tensors[MOST_TENSORS];
  for (int i = 0; i < input_count; i++) tensors[i] = placed(handles + i, input_descs[i], inputs[i]);
  for (int o = 0; o < output_count; o++) {
    int at = input_count + o;
    tensors[at] = placed(handles + at, output_descs[o], outputs[o]);
  }
  return callback(name, tensors, input_count, tensors + input_count, output_count);
}
