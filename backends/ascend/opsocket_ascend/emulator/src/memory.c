// One anonymous file is mapped twice: at the device's addresses without any permission, so that a host access faults,
// and once more where the emulator alone reads and writes. Fresh memory holds 0xff, which is NaN in every float type.
#define _GNU_SOURCE
#include "memory.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, MOST_BLOCKS = 1 << 16 };
static const size_t ARENA = (size_t)64 << 30;  // addresses; pages come into being when they are written

typedef struct { size_t start, bytes; } Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char *device, *alias;
static int file = -1;
static size_t total, in_use;
static Block blocks[MOST_BLOCKS];  // by address
static int block_count;

static void map_arena(void) {
  const char *limit = getenv("OPSOCKET_EMULATE_BYTES");
  total = limit ? strtoull(limit, NULL, 10) : (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGE_SIZE) / 2;
  if (total > ARENA / 2) total = ARENA / 2;
  file = memfd_create("opsocket-npu", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, (off_t)ARENA)) return;
  char *barred = mmap(NULL, ARENA, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
  char *open = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  if (barred == MAP_FAILED || open == MAP_FAILED) return;
  device = barred;
  alias = open;
}

static int ready(void) {
  pthread_once(&once, map_arena);
  return device != NULL;
}

// The last block that starts at or before an offset, -1 for none.
static int block_before(size_t offset) {
  int low = 0, high = block_count;
  while (low < high) {
    int middle = (low + high) / 2;
    if (blocks[middle].start <= offset) low = middle + 1; else high = middle;
  }
  return low - 1;
}

int opsocket_is_device(const void *address) {
  return ready() && (const char *)address >= device && (const char *)address < device + ARENA;
}

void *opsocket_bytes_behind(const void *address, size_t bytes) {
  if (!opsocket_is_device(address)) return NULL;
  size_t offset = (size_t)((const char *)address - device);
  pthread_mutex_lock(&lock);
  int at = block_before(offset);
  int inside = at >= 0 && offset - blocks[at].start <= blocks[at].bytes &&
               bytes <= blocks[at].bytes - (offset - blocks[at].start);
  pthread_mutex_unlock(&lock);
  return inside ? alias + offset : NULL;
}

// First fit, a page apart, so that what runs over an allocation's end is in none.
void *opsocket_device_allocate(size_t bytes) {
  if (!ready()) return NULL;
  size_t rounded = (bytes + PAGE - 1) / PAGE * PAGE;
  if (rounded == 0) rounded = PAGE;
  void *found = NULL;
  pthread_mutex_lock(&lock);
  if (rounded <= total - in_use && block_count < MOST_BLOCKS) {
    size_t start = PAGE;
    int at = 0;
    while (at < block_count && blocks[at].start < start + rounded + PAGE) {
      start = blocks[at].start + blocks[at].bytes + PAGE;
      at++;
    }
    if (start + rounded + PAGE <= ARENA) {
      memmove(blocks + at + 1, blocks + at, (size_t)(block_count - at) * sizeof(Block));
      blocks[at] = (Block){start, rounded};
      block_count++;
      in_use += rounded;
      found = device + start;
      memset(alias + start, 0xff, rounded);
    }
  }
  pthread_mutex_unlock(&lock);
  return found;
}

int opsocket_device_release(void *address) {
  if (!opsocket_is_device(address)) return -1;
  size_t offset = (size_t)((char *)address - device);
  pthread_mutex_lock(&lock);
  int at = block_before(offset), known = at >= 0 && blocks[at].start == offset;
  if (known) {
    in_use -= blocks[at].bytes;
    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)blocks[at].bytes);
    memmove(blocks + at, blocks + at + 1, (size_t)(--block_count - at) * sizeof(Block));
  }
  pthread_mutex_unlock(&lock);
  return known ? 0 : -1;
}

size_t opsocket_device_total(void) { return ready() ? total : 0; }

size_t opsocket_device_free(void) {
  if (!ready()) return 0;
  pthread_mutex_lock(&lock);
  size_t left = total - in_use;
  pthread_mutex_unlock(&lock);
  return left;
}
