#include "repeat.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "commands.h"
#include "pool.h"

namespace opsocket {

#define EXPORT extern "C" __attribute__((visibility("default")))

// ---- DLPack 1.x, as its standard lays it out

struct DLTensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint32_t dtype;  // code, bits and lanes
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct DLPackTable {
    uint32_t major, minor;
    const DLPackTable *older;
    void *allocate, *managed_from_object, *object_from_managed;
    int (*tensor_from_object)(void *object, DLTensor *out);  // 0: done; else an error is set in Python
    void *current_work_stream;
};

// ---- what is known of the last run

constexpr int MAX_ARGUMENTS = 8, MAX_DIMS = 4, MAX_COMMAND = 384;
constexpr int32_t ON_CPU = 1;

struct Argument {
    void *object;   // null: an array; else this very object, None among them
    int64_t field;  // of an array: where in the command its address stands
    uint32_t dtype;
    int32_t dims;
    int64_t shape[MAX_DIMS], strides[MAX_DIMS];
};

struct Repeat {
    int32_t count, threads;
    int32_t given;  // of the arguments, the first: the rest are made for each run
    int64_t bytes;
    Argument arguments[MAX_ARGUMENTS];
    alignas(8) unsigned char command[MAX_COMMAND];
};

static PythonFunctions python;
static int (*tensor_from_object)(void *, DLTensor *) = nullptr;
static ArrayFacts arrays;

static bool is_negated(void *object) {
    void *answer = python.call(arrays.is_negated, object);
    if (!answer) {
        python.clear_error();
        return true;
    }
    python.release(answer);  // True and False outlive this
    return answer == arrays.yes;
}

// An array of exactly the type, on the CPU. Whatever else it is, this is not the place to say so.
static bool look(void *object, DLTensor &tensor) {
    void *type = python.type_of(object);
    python.release(type);
    if (type != arrays.type) return false;
    if (tensor_from_object(object, &tensor)) {
        python.clear_error();
        return false;
    }
    return tensor.device_type == ON_CPU && tensor.ndim <= MAX_DIMS && tensor.strides;
}

static unsigned char *start(const DLTensor &tensor) {
    return static_cast<unsigned char *>(tensor.data) + tensor.byte_offset;
}

static bool same(const Argument &known, const DLTensor &tensor) {
    if (tensor.ndim != known.dims || tensor.dtype != known.dtype) return false;
    for (int i = 0; i < known.dims; i++)
        if (tensor.shape[i] != known.shape[i] || tensor.strides[i] != known.strides[i]) return false;
    return true;
}

}  // namespace opsocket

using namespace opsocket;

// Bytes of a `Repeat`, or 0 where runs can't be repeated: the framework's table has no such function.
EXPORT int64_t opsocket_repeat_begin(const PythonFunctions *functions, const DLPackTable *table, void *type,
                                     void *is_negated, void *yes, void *none) {
    if (table->major != 1 || !table->tensor_from_object) return 0;
    python = *functions;
    tensor_from_object = table->tensor_from_object;
    arrays = {type, is_negated, yes, none};
    return sizeof(Repeat);
}

// Take down a run: its arguments, a tuple of arrays, Nones and other objects; where in the command each array's address
// stands (-1: it is no array); the command. Objects are known by identity: whoever owns `memory` has to forget it
// before one of them goes. given: of the arguments, those that a caller gives; the rest is made for each run.
// 0: taken down. -1: a run that can't be repeated.
EXPORT int32_t opsocket_repeat_learn(void *memory, void *arguments, const int64_t *fields, int32_t count, int32_t given,
                                     const Command *command, int64_t bytes, int32_t threads) {
    if (count > MAX_ARGUMENTS || bytes > MAX_COMMAND) return -1;
    Repeat &repeat = *new (memory) Repeat();
    for (int i = 0; i < count; i++) {
        Argument &known = repeat.arguments[i];
        void *object = python.tuple_item(arguments, i);
        DLTensor tensor;
        known.field = fields[i];
        if (fields[i] < 0 || object == arrays.none) {
            known.object = object;
            continue;
        }
        if (!look(object, tensor) || is_negated(object)) return -1;
        known.dtype = tensor.dtype;
        known.dims = tensor.ndim;
        std::copy_n(tensor.shape, tensor.ndim, known.shape);
        std::copy_n(tensor.strides, tensor.ndim, known.strides);
    }
    repeat.count = count;
    repeat.given = given;
    repeat.threads = threads;
    repeat.bytes = bytes;
    std::memcpy(repeat.command, command, size_t(bytes));
    return 0;
}

// Run it with these arguments. As `opsocket_run`, but -1: they are not like those, and nothing ran. The caller holds
// the interpreter's lock.
EXPORT int32_t opsocket_repeat(const Repeat *repeat, void *arguments) {
    alignas(8) unsigned char bytes[MAX_COMMAND];
    std::memcpy(bytes, repeat->command, size_t(repeat->bytes));
    for (int i = 0; i < repeat->count; i++) {
        const Argument &known = repeat->arguments[i];
        void *object = python.tuple_item(arguments, i);
        if (known.object) {
            if (object != known.object) return -1;
            continue;
        }
        DLTensor tensor;
        if (!look(object, tensor) || !same(known, tensor)) return -1;
        if (i < repeat->given && is_negated(object)) return -1;
        unsigned char *data = start(tensor);
        std::memcpy(bytes + known.field, &data, sizeof data);
    }
    const Command *command = reinterpret_cast<const Command *>(bytes);
    void *state = python.leave();
    bool done = run(&command, 1, repeat->threads);
    python.enter(state);
    return done ? 0 : 1;
}
