// Device memory of the emulated NPU: addresses that the host can't touch, and where the emulator finds their bytes.
#pragma once
#include <stddef.h>

// Whether an address belongs to the device, live or not.
int opsocket_is_device(const void *address);
// The bytes behind [address, address + bytes), readable and writable; NULL unless all of them are of one live allocation.
void *opsocket_bytes_behind(const void *address, size_t bytes);
void *opsocket_device_allocate(size_t bytes);
int opsocket_device_release(void *address);
size_t opsocket_device_total(void);
size_t opsocket_device_free(void);
