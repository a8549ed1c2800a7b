// Makes the n-th call that changes files below a folder fail. Preloaded; `faults_arm` from ctypes.
//
// Calls are open for writing, write, pwrite, fsync, fdatasync, ftruncate, rename, unlink, rmdir and
// mkdir, under all names that Python and SQLite call them by. Single-threaded use only.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { ERROR_ONCE, DISK_FULL, SHORT_WRITE, KILLED };

static char folder[PATH_MAX];
static int fail_at, calls;
static enum kind kind;

// From now on the n-th call (from 1) fails; with n = 0 none does, and they are counted.
void faults_arm(const char *path, int n, int how) {
  snprintf(folder, sizeof folder, "%s", path);
  fail_at = n;
  kind = (enum kind)how;
  calls = 0;
}

// How many calls there were.
int faults_disarm(void) {
  folder[0] = 0;
  return calls;
}

static int below(const char *path) {
  return folder[0] && !strncmp(path, folder, strlen(folder));
}

static int below_at(int directory, const char *path) {
  if (!folder[0] || path[0] == '/' || directory == AT_FDCWD) return below(path);
  char link[64], target[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  ssize_t length = readlink(link, target, sizeof target - 1);
  if (length < 0) return 0;
  target[length] = 0;
  return below(target);
}

// `needs_space`: a full disk stays full for these; the others fail only if they are the n-th.
static int fails(int needs_space) {
  ++calls;
  if (!fail_at || calls < fail_at) return 0;
  if (kind == KILLED) raise(SIGKILL);
  if (kind == SHORT_WRITE) return 0;
  if (calls > fail_at && !(kind == DISK_FULL && needs_space)) return 0;
  errno = kind == DISK_FULL ? ENOSPC : EIO;
  return 1;
}

// A short write takes half of the bytes; whoever calls has to come again with the rest.
static size_t taken(size_t size) {
  return kind == SHORT_WRITE && calls == fail_at && size > 1 ? size / 2 : size;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int mode_of(int flags, va_list list) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, int) : 0;
}

#define OPEN(name)                                                              \
  int name(const char *path, int flags, ...) {                                  \
    va_list list;                                                               \
    va_start(list, flags);                                                      \
    int mode = mode_of(flags, list);                                            \
    va_end(list);                                                               \
    if ((flags & O_ACCMODE) != O_RDONLY && below(path) && fails(1)) return -1;  \
    return REAL(name)(path, flags, mode);                                       \
  }
OPEN(open)
OPEN(open64)

#define WRITE(name, parameters, arguments)             \
  ssize_t name parameters {                            \
    if (below_at(fd, "")) {                            \
      if (fails(1)) return -1;                         \
      size = taken(size);                              \
    }                                                  \
    return REAL(name) arguments;                       \
  }
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))

#define CALL(name, parameters, arguments, is_below, needs_space) \
  int name parameters {                                          \
    if ((is_below) && fails(needs_space)) return -1;             \
    return REAL(name) arguments;                                 \
  }
CALL(fsync, (int fd), (fd), below_at(fd, ""), 1)
CALL(fdatasync, (int fd), (fd), below_at(fd, ""), 1)
CALL(ftruncate, (int fd, off_t size), (fd, size), below_at(fd, ""), 1)
CALL(ftruncate64, (int fd, off64_t size), (fd, size), below_at(fd, ""), 1)
CALL(rename, (const char *from, const char *to), (from, to), below(from), 0)
CALL(mkdir, (const char *path, mode_t mode), (path, mode), below(path), 1)
CALL(unlink, (const char *path), (path), below(path), 0)
CALL(rmdir, (const char *path), (path), below(path), 0)
CALL(unlinkat, (int directory, const char *path, int flags), (directory, path, flags),
     below_at(directory, path), 0)
