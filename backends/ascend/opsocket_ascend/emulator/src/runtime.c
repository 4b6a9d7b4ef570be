// Stand-in for libascendcl: what torch_npu asks of CANN's runtime, over `memory.c`. Everything runs at once, in the
// order of the calls: streams and events carry no work, so that missing synchronization is not seen here.
// Compiled against the headers of the torch_npu wheel, so that a wrong prototype does not compile.
#define FUNC_VISIBILITY
#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 1, CUBE_CORES = 24, VECTOR_CORES = 48, OUT_OF_MEMORY = 207001, BUSY = 507033, LONGEST = 512 };
#define EXPORT __attribute__((visibility("default")))

static _Thread_local int32_t current = 0;
static int contexts[DEVICES];
static char message[LONGEST];

EXPORT void opsocket_set_message(const char *text) { snprintf(message, sizeof message, "%s", text); }

// What stands in for a function that is not emulated: it says so and fails.
EXPORT aclError opsocket_not_emulated(const char *name) {
  snprintf(message, sizeof message, "opsocket's emulated NPU has no %s", name);
  fprintf(stderr, "%s\n", message);
  return ACL_ERROR_FEATURE_UNSUPPORTED;
}

static aclError refuse(const char *text) {
  opsocket_set_message(text);
  return ACL_ERROR_INVALID_PARAM;
}

static const char *setting(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

// ---- Life, devices and contexts ----
aclError aclInit(const char *config) { return ACL_SUCCESS; }
aclError aclFinalize(void) { return ACL_SUCCESS; }
const char *aclGetRecentErrMsg(void) { return message; }
const char *aclrtGetSocName(void) { return setting("OPSOCKET_EMULATE", "Ascend910B3"); }
aclError aclrtGetDeviceCount(uint32_t *count) { *count = DEVICES; return ACL_SUCCESS; }
aclError aclrtGetDevice(int32_t *device) { *device = current; return ACL_SUCCESS; }
aclError aclrtResetDevice(int32_t device) { return ACL_SUCCESS; }
aclError aclrtGetCurrentContext(aclrtContext *context) { *context = &contexts[current]; return ACL_SUCCESS; }
aclError aclrtSetCurrentContext(aclrtContext context) { return ACL_SUCCESS; }

aclError aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= DEVICES) return refuse("no such device");
  if (!strcmp(setting("OPSOCKET_EMULATE_FAULT", ""), "busy")) {
    opsocket_set_message("device setup failed: the device is held by another process");
    return BUSY;
  }
  current = device;
  return ACL_SUCCESS;
}

aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
  *active = device == current;
  return ACL_SUCCESS;
}

aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) { *can = 0; return ACL_SUCCESS; }
aclError aclrtGetDeviceInfo(uint32_t device, aclrtDevAttr attribute, int64_t *value) {
  *value = CUBE_CORES;
  return ACL_SUCCESS;
}
aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t *value) {
  *value = CUBE_CORES;
  return ACL_SUCCESS;
}
static aclError cores(aclrtDevResLimitType type, uint32_t *value) {
  *value = type == ACL_RT_DEV_RES_VECTOR_CORE ? VECTOR_CORES : CUBE_CORES;
  return ACL_SUCCESS;
}
aclError aclrtGetDeviceResLimit(int32_t device, aclrtDevResLimitType type, uint32_t *value) { return cores(type, value); }
aclError aclrtGetStreamResLimit(aclrtStream stream, aclrtDevResLimitType type, uint32_t *value) { return cores(type, value); }
aclError aclrtGetResInCurrentThread(aclrtDevResLimitType type, uint32_t *value) { return cores(type, value); }

// ---- Versions and options ----
aclError aclsysGetVersionStr(char *package, char *version) {
  strcpy(version, setting("OPSOCKET_EMULATE_CANN", "8.5.0"));
  return ACL_SUCCESS;
}
aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion *version) {
  memset(version, 0, sizeof *version);
  snprintf(version->version, sizeof version->version, "%s", setting("OPSOCKET_EMULATE_CANN", "8.5.0"));
  sscanf(version->version, "%[0-9].%[0-9].%[0-9A-Za-z]", version->majorVersion, version->minorVersion,
         version->releaseVersion);
  return ACL_SUCCESS;
}
aclError aclSetCompileopt(aclCompileOpt option, const char *value) { return ACL_SUCCESS; }
size_t aclGetCompileoptSize(aclCompileOpt option) { return LONGEST; }
aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t length) { strcpy(value, "disable"); return ACL_SUCCESS; }
aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) { *value = 0; return ACL_SUCCESS; }
aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) { return ACL_SUCCESS; }
aclError aclrtCtxGetSysParamOpt(aclSysParamOpt option, int64_t *value) { *value = 0; return ACL_SUCCESS; }
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return ACL_SUCCESS; }
aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) { return ACL_SUCCESS; }
aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t flag) { return ACL_SUCCESS; }
aclError aclrtSetOpWaitTimeout(uint32_t seconds) { return ACL_SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) { return ACL_SUCCESS; }
aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) { return ACL_SUCCESS; }
aclError aclrtPeekAtLastError(aclrtLastErrLevel level) { return ACL_SUCCESS; }
aclError aclrtGetLastError(aclrtLastErrLevel level) { return ACL_SUCCESS; }

// ---- Streams and events ----
static aclError make(void **handle) { *handle = calloc(1, 64); return *handle ? ACL_SUCCESS : ACL_ERROR_BAD_ALLOC; }
aclError aclrtCreateStream(aclrtStream *stream) { return make(stream); }
aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag) { return make(stream); }
aclError aclrtDestroyStream(aclrtStream stream) { free(stream); return ACL_SUCCESS; }
aclError aclrtDestroyStreamForce(aclrtStream stream) { free(stream); return ACL_SUCCESS; }
aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) { *id = 1; return ACL_SUCCESS; }
aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) { *status = ACL_STREAM_STATUS_COMPLETE; return ACL_SUCCESS; }
aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) { return ACL_SUCCESS; }
aclError aclrtSynchronizeStream(aclrtStream stream) { return ACL_SUCCESS; }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t milliseconds) { return ACL_SUCCESS; }
aclError aclrtSynchronizeDevice(void) { return ACL_SUCCESS; }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) { return ACL_SUCCESS; }
aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag) { return make(event); }
aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag) { return make(event); }
aclError aclrtDestroyEvent(aclrtEvent event) { free(event); return ACL_SUCCESS; }
aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) { return ACL_SUCCESS; }
aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) { return ACL_SUCCESS; }
aclError aclrtSynchronizeEvent(aclrtEvent event) { return ACL_SUCCESS; }
aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
  *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end) { *milliseconds = 0; return ACL_SUCCESS; }
aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void *argument) {
  function(argument);
  return ACL_SUCCESS;
}

// ---- Memory ----
aclError aclrtMalloc(void **address, size_t bytes, aclrtMemMallocPolicy policy) {
  *address = opsocket_device_allocate(bytes);
  if (*address) return ACL_SUCCESS;
  opsocket_set_message("the emulated device's memory is used up");
  return OUT_OF_MEMORY;
}
aclError aclrtMallocAlign32(void **address, size_t bytes, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(address, bytes, policy);
}
aclError aclrtFree(void *address) {
  return opsocket_device_release(address) ? refuse("aclrtFree of what aclrtMalloc did not give") : ACL_SUCCESS;
}
aclError aclrtMallocHost(void **address, size_t bytes) {
  *address = aligned_alloc(64, (bytes + 63) / 64 * 64);
  return *address ? ACL_SUCCESS : ACL_ERROR_BAD_ALLOC;
}
aclError aclrtMallocHostWithCfg(void **address, uint64_t bytes, aclrtMallocConfig *config) {
  return aclrtMallocHost(address, bytes);
}
aclError aclrtFreeHost(void *address) { free(address); return ACL_SUCCESS; }
aclError aclrtHostRegister(void *address, uint64_t bytes, aclrtHostRegisterType type, void **device) {
  *device = address;
  return ACL_SUCCESS;
}
aclError aclrtHostUnregister(void *address) { return ACL_SUCCESS; }
aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t *left, size_t *all) {
  *left = opsocket_device_free();
  *all = opsocket_device_total();
  return ACL_SUCCESS;
}

// Where the bytes of one side of a copy are; NULL where they are not on the side that the kind of copy says.
static void *side(const void *address, size_t bytes, int on_device) {
  if (on_device) return opsocket_bytes_behind(address, bytes);
  return opsocket_is_device(address) ? NULL : (void *)address;
}

aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
  if (bytes == 0) return ACL_SUCCESS;
  if (bytes > room) return refuse("aclrtMemcpy of more than there is room for");
  int to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  int from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  void *target = side(to, bytes, to_device), *source = side(from, bytes, from_device);
  if (!target || !source) return refuse("aclrtMemcpy with an address that is not on the side that its kind names");
  memmove(target, source, bytes);
  return ACL_SUCCESS;
}
aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
  return aclrtMemcpy(to, room, from, bytes, kind);
}
aclError aclrtMemset(void *address, size_t room, int32_t value, size_t bytes) {
  if (bytes == 0) return ACL_SUCCESS;
  void *target = bytes <= room ? opsocket_bytes_behind(address, bytes) : NULL;
  if (!target) return refuse("aclrtMemset outside of an allocation");
  memset(target, value, bytes);
  return ACL_SUCCESS;
}
aclError aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
  return aclrtMemset(address, room, value, bytes);
}
