// Streams and events, and CANN's graphs (aclmdlRI...): while a stream is captured its work is kept, and a replay does it
// again, in order, with what memory holds then. A task group is a run of kept calls that an update replaces.
// Work is done when it is asked for, so that an order that nobody asked for is not missed by its result. What would be
// one is looked for by clocks: each stream knows how far every other had come in what it has waited for.
#define FUNC_VISIBILITY
#include "capture.h"
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STREAMS = 256 };
#define EXPORT __attribute__((visibility("default")))

typedef struct { uint64_t at[STREAMS]; } Clock;
typedef enum { CALL, COPY, FILL, WAIT_VALUE, WRITE_VALUE } TaskKind;

// number: of an aclnn call, as the Python side counts them; or the value that is waited for or written at `to`.
typedef struct {
  TaskKind kind;
  uint64_t number;
  void *to;
  const void *from;
  size_t room, bytes;
  int32_t value;
  aclrtMemcpyKind direction;
} Task;

// replayed_on, replayed_at: the stream of the last replay, and its clock after it.
typedef struct {
  Task *tasks;
  size_t count, room;
  aclmdlRICaptureMode mode;
  int is_open, is_invalid, replayed_on;
  uint64_t replayed_at;
} Model;

typedef struct { Model *model; size_t first, last; } Group;

// model: that it is captured into. group: that is open on it while captured, or that is updated on it.
typedef struct {
  int32_t id;
  Clock seen;
  Model *model;
  Group *group;
  size_t updated;
  int is_updating;
} Stream;

// is_set, when: recorded, and not reset since. model: the capture that it was recorded in.
typedef struct { int is_set; Clock when; Model *model; } Event;

// A number in device memory that streams wait for: torch_npu's external events. written: the clock of its last writer.
// used_on, used_at: the last stream to wait for it or to write it, and when.
typedef struct Value {
  void *address;
  Clock written;
  int32_t used_on;
  uint64_t used_at;
  struct Value *next;
} Value;

static Stream unnamed;  // NULL of the interface
static int32_t streams = 1;
static Clock host;
static Model *open_model;
static _Thread_local aclmdlRICaptureMode thread_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

typedef int (*Run)(uint64_t number);
typedef void (*Drop)(uint64_t number);
static Run run_call;
static Drop drop_call;
EXPORT void opsocket_set_graph_calls(Run run, Drop drop) { run_call = run; drop_call = drop; }

static aclError refuse(aclError code, const char *text) { opsocket_set_message(text); return code; }
static aclError break_capture(Model *model, aclError code, const char *text) {
  model->is_invalid = 1;
  return refuse(code, text);
}
static Stream *of(aclrtStream stream) { return stream ? stream : &unnamed; }

// ---- What was before what ----
static void join(Clock *clock, const Clock *other) {
  for (int i = 0; i < STREAMS; i++)
    if (other->at[i] > clock->at[i]) clock->at[i] = other->at[i];
}
// One more piece of work on a stream: after all that the host has waited for.
static uint64_t tick(Stream *stream) { join(&stream->seen, &host); return ++stream->seen.at[stream->id]; }
static void host_waits(const Clock *clock) { join(&host, clock); }

// ---- Streams ----
static Stream *all_streams[STREAMS] = {&unnamed};
aclError aclrtCreateStream(aclrtStream *stream) {
  if (streams >= STREAMS) return refuse(ACL_ERROR_BAD_ALLOC, "more streams than are emulated");
  Stream *made = calloc(1, sizeof *made);
  made->id = streams++;
  *stream = all_streams[made->id] = made;
  return ACL_SUCCESS;
}
aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t priority, uint32_t flag) { return aclrtCreateStream(stream); }
aclError aclrtDestroyStream(aclrtStream stream) { return ACL_SUCCESS; }  // its clock stays comparable
aclError aclrtDestroyStreamForce(aclrtStream stream) { return ACL_SUCCESS; }
aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) { *id = of(stream)->id; return ACL_SUCCESS; }
aclError aclrtSetStreamAttribute(aclrtStream stream, aclrtStreamAttr attribute, aclrtStreamAttrValue *value) { return ACL_SUCCESS; }

aclError opsocket_may_block(const char *function) {
  char text[160];
  if (!open_model || open_model->mode == ACL_MODEL_RI_CAPTURE_MODE_RELAXED) return ACL_SUCCESS;
  snprintf(text, sizeof text, "%s: the host may not wait while a stream is captured", function);
  return break_capture(open_model, ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, text);
}
static aclError wait_for_stream(aclrtStream stream) {
  if (of(stream)->model) {
    return break_capture(of(stream)->model, ACL_ERROR_RT_STREAM_CAPTURED, "the host waits for a stream that is captured");
  }
  tick(of(stream));
  host_waits(&of(stream)->seen);
  return ACL_SUCCESS;
}
static aclError wait_for_device(void) {
  aclError error = opsocket_may_block("aclrtSynchronizeDevice");
  for (int32_t i = 0; !error && i < streams; i++) host_waits(&all_streams[i]->seen);
  return error;
}
aclError aclrtSynchronizeStream(aclrtStream stream) { return wait_for_stream(stream); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t milliseconds) { return wait_for_stream(stream); }
aclError aclrtSynchronizeDevice(void) { return wait_for_device(); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) { return wait_for_device(); }
aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus *status) {
  *status = ACL_STREAM_STATUS_COMPLETE;
  return wait_for_stream(stream);
}

// ---- Tasks ----
static aclError keep(Model *model, Task task) {
  if (model->is_invalid) return refuse(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "work on a stream whose capture is invalid");
  if (model->count == model->room) {
    model->room = model->room ? 2 * model->room : 64;
    model->tasks = realloc(model->tasks, model->room * sizeof *model->tasks);
  }
  model->tasks[model->count++] = task;
  return ACL_SUCCESS;
}

static int fate(Stream *stream, Task task) {
  if (stream->is_updating) return -refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a copy while tasks are updated: calls alone are");
  if (!stream->model) { tick(stream); return AT_ONCE; }
  aclError error = keep(stream->model, task);
  return error ? -error : KEPT;
}

int opsocket_keep_copy(aclrtStream stream, void *to, size_t room, const void *from, size_t bytes, aclrtMemcpyKind kind) {
  Stream *here = of(stream);
  const void *side = kind == ACL_MEMCPY_HOST_TO_DEVICE ? from : kind == ACL_MEMCPY_DEVICE_TO_HOST ? to : NULL;
  if (here->model && side && !opsocket_is_pinned(side, bytes)) {
    return -break_capture(here->model, ACL_ERROR_RT_CAPTURE_MODE_BLOCK_ASYNC,
                          "a copy from or to host memory that is not pinned, which waits, while its stream is captured");
  }
  return fate(here, (Task){.kind = COPY, .to = to, .room = room, .from = from, .bytes = bytes, .direction = kind});
}
int opsocket_keep_fill(aclrtStream stream, void *to, size_t room, int32_t value, size_t bytes) {
  return fate(of(stream), (Task){.kind = FILL, .to = to, .room = room, .value = value, .bytes = bytes});
}

// The fate of an aclnn call. replaced: the call that it takes the place of in an updated group, else 0.
EXPORT int opsocket_keep_call(aclrtStream stream, uint64_t number, uint64_t *replaced) {
  Stream *here = of(stream);
  *replaced = 0;
  if (!here->is_updating) return fate(here, (Task){.kind = CALL, .number = number});
  Group *group = here->group;
  if (group->first + here->updated >= group->last) {
    return -refuse(ACL_ERROR_INVALID_PARAM, "an update with more calls than the task group was captured with");
  }
  Task *task = &group->model->tasks[group->first + here->updated++];
  *replaced = task->number;
  task->number = number;
  return KEPT;
}

// ---- Events, and values that are waited for ----
aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flag) {
  *event = calloc(1, sizeof(Event));
  return *event ? ACL_SUCCESS : ACL_ERROR_BAD_ALLOC;
}
aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flag) { return aclrtCreateEventExWithFlag(event, flag); }
aclError aclrtDestroyEvent(aclrtEvent event) { free(event); return ACL_SUCCESS; }

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream) {
  Event *event = handle;
  tick(of(stream));
  *event = (Event){1, of(stream)->seen, of(stream)->model};
  return ACL_SUCCESS;
}
aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent handle) {
  Event *event = handle;
  Model *model = of(stream)->model;
  if (!event->is_set || (model && event->model == model)) return ACL_SUCCESS;
  if (model) return break_capture(model, ACL_ERROR_RT_CAPTURE_DEPENDENCY, "a captured stream waits for an event from outside");
  if (event->model && event->model == open_model) {
    return break_capture(open_model, ACL_ERROR_RT_EVENT_CAPTURED, "a second stream in a capture: not emulated");
  }
  tick(of(stream));
  join(&of(stream)->seen, &event->when);
  return ACL_SUCCESS;
}
aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream) {
  Event *event = handle;
  tick(of(stream));
  event->is_set = 0;
  return ACL_SUCCESS;
}

static Value *values;
static Value *value_at(void *address) {
  Value *found = values;
  while (found && found->address != address) found = found->next;
  if (found) return found;
  found = calloc(1, sizeof *found);
  found->address = address;
  found->next = values;
  return values = found;
}
static void use(Value *value, Stream *stream) {
  value->used_on = stream->id;
  value->used_at = tick(stream);
}

static aclError write_value(Stream *stream, void *address, uint64_t number) {
  uint64_t *place = opsocket_bytes_behind(address, sizeof *place);
  if (!place) return refuse(ACL_ERROR_INVALID_PARAM, "aclrtValueWrite outside of an allocation");
  Value *value = value_at(address);
  tick(stream);
  if (value->used_at > stream->seen.at[value->used_on]) {
    return refuse(ACL_ERROR_INVALID_PARAM, "an event is recorded while another stream, which was not waited for, may still use it");
  }
  use(value, stream);
  value->written = stream->seen;
  *place = number;
  return ACL_SUCCESS;
}
static aclError wait_value(Stream *stream, void *address, uint64_t number) {
  const uint64_t *place = opsocket_bytes_behind(address, sizeof *place);
  if (!place) return refuse(ACL_ERROR_INVALID_PARAM, "aclrtValueWait outside of an allocation");
  if (*place != number) return refuse(ACL_ERROR_INVALID_PARAM, "a wait for an event that nobody has recorded: a chip would hang");
  Value *value = value_at(address);
  join(&stream->seen, &value->written);
  use(value, stream);
  return ACL_SUCCESS;
}
aclError aclrtValueWrite(void *address, uint64_t number, uint32_t flag, aclrtStream stream) {
  Stream *here = of(stream);
  if (here->model) return keep(here->model, (Task){.kind = WRITE_VALUE, .to = address, .number = number});
  return write_value(here, address, number);
}
aclError aclrtValueWait(void *address, uint64_t number, uint32_t flag, aclrtStream stream) {
  enum { EQUAL = 1 };
  Stream *here = of(stream);
  if (flag != EQUAL) return refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "aclrtValueWait for other than equal values: not emulated");
  if (here->model) return keep(here->model, (Task){.kind = WAIT_VALUE, .to = address, .number = number});
  return wait_value(here, address, number);
}
aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  Event *event = handle;
  aclError error = opsocket_may_block("aclrtSynchronizeEvent");
  if (!error && event->is_set) host_waits(&event->when);
  return error;
}
aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
  *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start, aclrtEvent end) { *milliseconds = 0; return ACL_SUCCESS; }
aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void *argument) {
  if (of(stream)->model) {
    return break_capture(of(stream)->model, ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a host function in a capture: not emulated");
  }
  function(argument);
  return ACL_SUCCESS;
}

// ---- Capture ----
aclError aclmdlRICaptureBegin(aclrtStream stream, aclmdlRICaptureMode mode) {
  if (!stream) return refuse(ACL_ERROR_RT_STREAM_CAPTURE_IMPLICIT, "the default stream can't be captured");
  if (open_model) return refuse(ACL_ERROR_RT_STREAM_CAPTURED, "a second capture at a time: not emulated");
  Model *model = calloc(1, sizeof *model);
  model->is_open = 1;
  model->mode = mode;
  open_model = of(stream)->model = model;
  return ACL_SUCCESS;
}
aclError aclmdlRICaptureGetInfo(aclrtStream stream, aclmdlRICaptureStatus *status, aclmdlRI *found) {
  Model *model = of(stream)->model;
  *status = !model                ? ACL_MODEL_RI_CAPTURE_STATUS_NONE
            : model->is_invalid ? ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED
                                : ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
  if (found) *found = model;
  return ACL_SUCCESS;
}
aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode *mode) {
  aclmdlRICaptureMode before = thread_mode;
  thread_mode = *mode;
  *mode = before;
  return ACL_SUCCESS;
}
aclError aclmdlRIDestroy(aclmdlRI handle) {
  Model *model = handle;
  for (size_t i = 0; i < model->count; i++)
    if (model->tasks[i].kind == CALL) drop_call(model->tasks[i].number);
  free(model->tasks);
  free(model);
  return ACL_SUCCESS;
}
aclError aclmdlRICaptureEnd(aclrtStream stream, aclmdlRI *ended) {
  Stream *here = of(stream);
  Model *model = here->model;
  *ended = NULL;
  if (!model) return refuse(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the end of a capture on a stream that is not captured");
  open_model = here->model = NULL;
  model->is_open = 0;
  if (model->is_invalid || here->group) {
    aclmdlRIDestroy(model);
    here->group = NULL;
    return refuse(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture is invalid: see the error before, or a task group is open");
  }
  *ended = model;
  return ACL_SUCCESS;
}

static aclError replay_task(const Task *task, Stream *stream) {
  switch (task->kind) {
    case CALL: return run_call(task->number);
    case COPY: return aclrtMemcpyAsync(task->to, task->room, task->from, task->bytes, task->direction, stream);
    case FILL: return aclrtMemsetAsync(task->to, task->room, task->value, task->bytes, stream);
    case WAIT_VALUE: return wait_value(stream, task->to, task->number);
    case WRITE_VALUE: return write_value(stream, task->to, task->number);
  }
  return ACL_ERROR_INTERNAL_ERROR;
}
aclError aclmdlRIExecuteAsync(aclmdlRI handle, aclrtStream stream) {
  Model *model = handle;
  if (of(stream)->model) return refuse(ACL_ERROR_RT_MODEL_CAPTURED, "a replay on a stream that is captured");
  for (size_t i = 0; i < model->count; i++) {
    aclError error = replay_task(&model->tasks[i], of(stream));
    if (error) return error;
  }
  model->replayed_on = of(stream)->id;
  model->replayed_at = tick(of(stream));
  return ACL_SUCCESS;
}

// ---- Groups of tasks, and their update ----
aclError aclmdlRICaptureTaskGrpBegin(aclrtStream stream) {
  Stream *here = of(stream);
  if (!here->model) return refuse(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "a task group on a stream that is not captured");
  if (here->group) return refuse(ACL_ERROR_INVALID_PARAM, "a task group inside another");
  here->group = calloc(1, sizeof *here->group);
  *here->group = (Group){here->model, here->model->count, 0};
  return ACL_SUCCESS;
}
aclError aclmdlRICaptureTaskGrpEnd(aclrtStream stream, aclrtTaskGrp *handle) {
  Stream *here = of(stream);
  Group *group = here->group;
  if (!here->model || !group) return refuse(ACL_ERROR_INVALID_PARAM, "the end of a task group that was not begun");
  here->group = NULL;
  group->last = here->model->count;
  for (size_t i = group->first; i < group->last; i++) {
    if (group->model->tasks[i].kind == CALL) continue;
    return break_capture(group->model, ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "a task group of more than calls of operators");
  }
  *handle = group;
  return ACL_SUCCESS;
}
aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream stream, aclrtTaskGrp handle) {
  Stream *here = of(stream);
  Group *group = handle;
  Model *model = group->model;
  if (here->model || here->is_updating) return refuse(ACL_ERROR_RT_STREAM_CAPTURED, "an update on a stream that is captured, or inside another update");
  if (model->is_open) return refuse(ACL_ERROR_RT_MODEL_CAPTURED, "an update of tasks whose capture has not ended");
  tick(here);
  if (model->replayed_at > here->seen.at[model->replayed_on]) {
    return refuse(ACL_ERROR_INVALID_PARAM, "an update of tasks that may still run: its stream has not waited for the last replay");
  }
  here->group = group;
  here->updated = 0;
  here->is_updating = 1;
  return ACL_SUCCESS;
}
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream stream) {
  Stream *here = of(stream);
  if (!here->is_updating) return refuse(ACL_ERROR_INVALID_PARAM, "the end of an update that was not begun");
  size_t wanted = here->group->last - here->group->first;
  here->group = NULL;
  here->is_updating = 0;
  if (here->updated == wanted) return ACL_SUCCESS;
  return refuse(ACL_ERROR_INVALID_PARAM, "an update with fewer calls than the task group was captured with");
}
