// LD_PRELOAD library that lets the Nth call of one kind fail, for files below a
// folder. Controlled by the environment:
//
//   OVPRESS_FAULT_PREFIX   folder; only files opened below it count
//   OVPRESS_FAULT_KIND     open read write sync rename mmap truncate malloc
//   OVPRESS_FAULT_NTH      1, 2, ...; 0 counts only
//   OVPRESS_FAULT_ERROR    EIO ENOSPC EMFILE EINTR ENOMEM, or SHORT: a read or
//                          write that takes one byte, or KILL: the process dies
//                          by SIGKILL before the call, or TORN: a write that
//                          does half and then the process dies
//   OVPRESS_FAULT_STICKY   1: all calls from the Nth on
//   OVPRESS_FAULT_WHILE    a path: faults are made only while it exists
//   OVPRESS_FAULT_MALLOC   least size that counts as an allocation (262144)
//   OVPRESS_FAULT_COUNT    file of 16 bytes, mapped: calls seen, faults made;
//                          it survives a killed process
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kFds = 4096 };
enum Kind { kOpen, kRead, kWrite, kSync, kRename, kMmap, kTruncate, kMalloc, kNone };
static const char* const kKinds[] = {"open", "read",     "write",  "sync",
                                     "rename", "mmap", "truncate", "malloc"};

static char prefix[4096];
static size_t prefix_size;
static enum Kind kind = kNone;
static uint64_t nth;
static int error_number;
static int short_count;
static int deadly;  // 1: KILL, 2: TORN
static int sticky;
static const char* while_path;
static size_t malloc_least = 262144;
static _Atomic uint64_t own_counts[2];
static _Atomic uint64_t* counts = own_counts;
static _Atomic unsigned char watched[kFds];
static int ready;

__attribute__((constructor)) static void Start(void) {
  const char* text = getenv("OVPRESS_FAULT_PREFIX");
  if (text != NULL && strlen(text) < sizeof(prefix)) strcpy(prefix, text);
  prefix_size = strlen(prefix);
  if ((text = getenv("OVPRESS_FAULT_KIND")) != NULL) {
    for (int i = 0; i < kNone; ++i) {
      if (strcmp(text, kKinds[i]) == 0) kind = (enum Kind)i;
    }
  }
  if ((text = getenv("OVPRESS_FAULT_NTH")) != NULL) nth = strtoull(text, NULL, 10);
  if ((text = getenv("OVPRESS_FAULT_MALLOC")) != NULL) malloc_least = strtoull(text, NULL, 10);
  sticky = getenv("OVPRESS_FAULT_STICKY") != NULL;
  while_path = getenv("OVPRESS_FAULT_WHILE");
  text = getenv("OVPRESS_FAULT_ERROR");
  error_number = EIO;
  if (text != NULL) {
    if (strcmp(text, "ENOSPC") == 0) error_number = ENOSPC;
    if (strcmp(text, "EMFILE") == 0) error_number = EMFILE;
    if (strcmp(text, "EINTR") == 0) error_number = EINTR;
    if (strcmp(text, "ENOMEM") == 0) error_number = ENOMEM;
    short_count = strcmp(text, "SHORT") == 0;
    if (strcmp(text, "KILL") == 0) deadly = 1;
    if (strcmp(text, "TORN") == 0) deadly = 2;
  }
  if ((text = getenv("OVPRESS_FAULT_COUNT")) != NULL) {
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, text, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
      void* at = (void*)syscall(SYS_mmap, NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (at != MAP_FAILED) counts = at;
      syscall(SYS_close, fd);
    }
  }
  ready = 1;
}

static void Die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

// True if this call is to fail.
static int Hit(enum Kind of) {
  if (!ready || of != kind) return 0;
  const uint64_t now = atomic_fetch_add(&counts[0], 1) + 1;
  if (nth == 0 || (sticky ? now < nth : now != nth)) return 0;
  if (while_path != NULL && access(while_path, F_OK) != 0) return 0;
  atomic_fetch_add(&counts[1], 1);
  if (deadly == 1 || (deadly == 2 && of != kWrite)) Die();
  return 1;
}

static int Below(const char* path) {
  return prefix_size > 0 && strncmp(path, prefix, prefix_size) == 0;
}
static int Watched(int fd) { return fd >= 0 && fd < kFds && watched[fd]; }
static int Fail(void) {
  errno = error_number;
  return -1;
}
static int Opened(int fd, int below) {
  if (fd >= 0 && fd < kFds) watched[fd] = (unsigned char)below;
  return fd;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define DEFINE_OPEN(name)                             \
  int name(const char* path, int flags, ...) {        \
    REAL(name);                                       \
    va_list list;                                     \
    va_start(list, flags);                            \
    const mode_t mode = va_arg(list, mode_t);         \
    va_end(list);                                     \
    const int below = Below(path);                    \
    if (below && Hit(kOpen)) return Fail();           \
    return Opened(real(path, flags, mode), below);    \
  }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
int openat(int folder, const char* path, int flags, ...) {
  REAL(openat);
  va_list list;
  va_start(list, flags);
  const mode_t mode = va_arg(list, mode_t);
  va_end(list);
  const int below = path[0] == '/' ? Below(path) : Watched(folder);
  if (below && Hit(kOpen)) return Fail();
  return Opened(real(folder, path, flags, mode), below);
}
#define DEFINE_TEMPORARY(name)                   \
  int name(char* path, int flags) {              \
    REAL(name);                                  \
    const int below = Below(path);               \
    if (below && Hit(kOpen)) return Fail();      \
    return Opened(real(path, flags), below);     \
  }
DEFINE_TEMPORARY(mkostemp)
DEFINE_TEMPORARY(mkostemp64)
int close(int fd) {
  REAL(close);
  if (fd >= 0 && fd < kFds) watched[fd] = 0;
  return real(fd);
}

// A fault of a transfer: an error, one byte only, or half and then death.
#define TRANSFER(of, call_some)                      \
  if (Watched(fd) && Hit(of)) {                      \
    const size_t some = deadly ? count / 2 : 1;      \
    if (!short_count && !deadly) return Fail();      \
    if (deadly) {                                    \
      (void)!call_some;                              \
      Die();                                         \
    }                                                \
    if (count > 1) return call_some;                 \
  }
ssize_t read(int fd, void* data, size_t count) {
  REAL(read);
  TRANSFER(kRead, real(fd, data, some))
  return real(fd, data, count);
}
ssize_t write(int fd, const void* data, size_t count) {
  REAL(write);
  TRANSFER(kWrite, real(fd, data, some))
  return real(fd, data, count);
}
#define DEFINE_POSITIONED(name, of, pointer)                      \
  ssize_t name(int fd, pointer data, size_t count, off_t at) {    \
    REAL(name);                                                   \
    TRANSFER(of, real(fd, data, some, at))                           \
    return real(fd, data, count, at);                             \
  }
DEFINE_POSITIONED(pread, kRead, void*)
DEFINE_POSITIONED(pread64, kRead, void*)
DEFINE_POSITIONED(pwrite, kWrite, const void*)
DEFINE_POSITIONED(pwrite64, kWrite, const void*)
ssize_t writev(int fd, const struct iovec* parts, int count) {
  REAL(writev);
  if (Watched(fd) && Hit(kWrite)) {
    if (deadly) Die();
    return Fail();
  }
  return real(fd, parts, count);
}

#define DEFINE_SYNC(name)                            \
  int name(int fd) {                                 \
    REAL(name);                                      \
    if (Watched(fd) && Hit(kSync)) return Fail();    \
    return real(fd);                                 \
  }
DEFINE_SYNC(fsync)
DEFINE_SYNC(fdatasync)

int rename(const char* from, const char* to) {
  REAL(rename);
  if (Below(to) && Hit(kRename)) return Fail();
  return real(from, to);
}
int link(const char* from, const char* to) {
  REAL(link);
  if (Below(to) && Hit(kRename)) return Fail();
  return real(from, to);
}
int linkat(int from_fd, const char* from, int to_fd, const char* to, int flags) {
  REAL(linkat);
  if (Below(to) && Hit(kRename)) return Fail();
  return real(from_fd, from, to_fd, to, flags);
}

#define DEFINE_MMAP(name)                                                   \
  void* name(void* at, size_t size, int protection, int flags, int fd,      \
             off_t offset) {                                                \
    REAL(name);                                                             \
    if (Watched(fd) && Hit(kMmap)) {                                        \
      Fail();                                                               \
      return MAP_FAILED;                                                    \
    }                                                                       \
    return real(at, size, protection, flags, fd, offset);                   \
  }
DEFINE_MMAP(mmap)
DEFINE_MMAP(mmap64)

#define DEFINE_TRUNCATE(name)                           \
  int name(int fd, off_t size) {                        \
    REAL(name);                                         \
    if (Watched(fd) && Hit(kTruncate)) return Fail();   \
    return real(fd, size);                              \
  }
DEFINE_TRUNCATE(ftruncate)
DEFINE_TRUNCATE(ftruncate64)
#define DEFINE_ALLOCATE(name)                           \
  int name(int fd, int mode, off_t at, off_t size) {    \
    REAL(name);                                         \
    if (Watched(fd) && Hit(kTruncate)) return Fail();   \
    return real(fd, mode, at, size);                    \
  }
DEFINE_ALLOCATE(fallocate)
DEFINE_ALLOCATE(fallocate64)

// Only malloc itself, which operator new and pugixml call; dlsym never asks for
// so much.
extern void* __libc_malloc(size_t size);
void* malloc(size_t size) {
  if (kind == kMalloc && size >= malloc_least && Hit(kMalloc)) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_malloc(size);
}
