// Stand-in for libascendcl: what torch_npu asks of CANN's runtime, over `memory.c`, and `capture.c` for streams.
// Compiled against the headers of the torch_npu wheel, so that a wrong prototype does not compile.
#define FUNC_VISIBILITY
#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "capture.h"
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

// Executors are numbers here, and one that only asked for the size of a workspace is kept nowhere.
int aclDestroyAclOpExecutor(void *executor) { return 0; }

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
// Pinned host memory, by its start: a list, since there is little of it.
typedef struct Pinned { char *start; size_t bytes; struct Pinned *next; } Pinned;
static Pinned *pinned;
static void pin(void *address, size_t bytes) {
  Pinned *made = malloc(sizeof *made);
  *made = (Pinned){address, bytes, pinned};
  pinned = made;
}
static void unpin(void *address) {
  for (Pinned **at = &pinned; *at; at = &(*at)->next) {
    Pinned *found = *at;
    if (found->start != address) continue;
    *at = found->next;
    free(found);
    return;
  }
}
int opsocket_is_pinned(const void *address, size_t bytes) {
  const char *start = address;
  for (const Pinned *at = pinned; at; at = at->next)
    if (start >= at->start && start + bytes <= at->start + at->bytes) return 1;
  return 0;
}

aclError aclrtMallocHost(void **address, size_t bytes) {
  *address = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!*address) return ACL_ERROR_BAD_ALLOC;
  pin(*address, bytes);
  return ACL_SUCCESS;
}
aclError aclrtMallocHostWithCfg(void **address, uint64_t bytes, aclrtMallocConfig *config) {
  return aclrtMallocHost(address, bytes);
}
aclError aclrtFreeHost(void *address) { unpin(address); free(address); return ACL_SUCCESS; }
aclError aclrtHostRegister(void *address, uint64_t bytes, aclrtHostRegisterType type, void **device) {
  pin(address, bytes);
  *device = address;
  return ACL_SUCCESS;
}
aclError aclrtHostUnregister(void *address) { unpin(address); return ACL_SUCCESS; }
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

static aclError copy(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
  if (bytes == 0) return ACL_SUCCESS;
  if (bytes > room) return refuse("aclrtMemcpy of more than there is room for");
  int to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  int from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  void *target = side(to, bytes, to_device), *source = side(from, bytes, from_device);
  if (!target || !source) return refuse("aclrtMemcpy with an address that is not on the side that its kind names");
  memmove(target, source, bytes);
  return ACL_SUCCESS;
}
aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
  aclError error = opsocket_may_block("aclrtMemcpy");
  return error ? error : copy(to, room, from, bytes, kind);
}
aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
  int fate = opsocket_keep_copy(stream, to, room, from, bytes, kind);
  return fate == KEPT ? ACL_SUCCESS : fate == AT_ONCE ? copy(to, room, from, bytes, kind) : -fate;
}
static aclError fill(void *address, size_t room, int32_t value, size_t bytes) {
  if (bytes == 0) return ACL_SUCCESS;
  void *target = bytes <= room ? opsocket_bytes_behind(address, bytes) : NULL;
  if (!target) return refuse("aclrtMemset outside of an allocation");
  memset(target, value, bytes);
  return ACL_SUCCESS;
}
aclError aclrtMemset(void *address, size_t room, int32_t value, size_t bytes) {
  aclError error = opsocket_may_block("aclrtMemset");
  return error ? error : fill(address, room, value, bytes);
}
aclError aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t bytes, aclrtStream stream) {
  int fate = opsocket_keep_fill(stream, address, room, value, bytes);
  return fate == KEPT ? ACL_SUCCESS : fate == AT_ONCE ? fill(address, room, value, bytes) : -fate;
}
