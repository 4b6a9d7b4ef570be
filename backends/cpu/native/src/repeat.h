// The last run of a plan again, with other arrays of the same shapes, dtypes and strides: arrays are looked at here
// and not in Python, where that costs more than a small kernel. It needs no Python header: of Python it is given the
// addresses of functions of its stable interface, of the arrays' framework its table of DLPack functions (version 1,
// `DLPackExchangeAPI`, whose structs are declared in repeat.cpp).
#pragma once
#include <cstdint>

namespace opsocket {

struct Repeat;

// What `opsocket_repeat_begin` is given: addresses, in this order.
struct PythonFunctions {
    void *(*tuple_item)(void *tuple, int64_t i);  // borrowed
    void *(*type_of)(void *object);               // new
    void (*release)(void *object);
    void (*clear_error)();
    void *(*leave)();  // gives up the interpreter's lock
    void (*enter)(void *state);
    void *(*call)(void *function, void *argument);  // new, or null with an error set
};

// And of the framework, whose arrays may stand for the negative of what lies in memory, which DLPack does not tell.
struct ArrayFacts {
    void *type;        // of arrays
    void *is_negated;  // a function of one, that returns Python's True or False
    void *yes, *none;  // Python's True and None
};

}  // namespace opsocket
