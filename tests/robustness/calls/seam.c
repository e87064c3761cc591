/* The one seam through which all file calls of a process go: libc, interposed by LD_PRELOAD.

   Calls that name something below a watched prefix, directly or through a descriptor opened there, are counted by kind.
   The n-th of some kinds can fail (once, or from then on), take effect and still report an error (a lost reply), be cut
   short, be the last thing that the process does, or stop the process (SIGSTOP) before or after it. Whatever calls: Python, SQLite, Rust extensions, ctypes.

   fsync below a prefix never reaches the disk: no test pulls a plug, and waiting would take hours.
   Set by tests/robustness/calls/seam.py, through ctypes in a process that has it loaded, or by SEAM_* for one that is started. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* As seam.py's Kind and Mode number them. */
enum kind { OPEN, CREATE, READ, WRITE, FSYNC, RENAME, MKDIR, UNLINK, RMDIR, OPENDIR, READDIR, STAT, TRUNCATE, LINK, UTIME,
            STATVFS, CLOSE, LOCK, MAP, EXCHANGE, KINDS };
enum mode { ONCE, ALWAYS, LATE, SHORT, KILL_BEFORE, KILL_AFTER, STOP_BEFORE, STOP_AFTER };
enum what { PASS, FAIL, REPLY_LOST, CUT, DIE, STOP };

#define FDS 4096
#define PREFIXES 4
#define TRACE (8 << 20)

static char *prefixes[PREFIXES];
static char *name_of[FDS]; /* of descriptors opened below a prefix */
static struct { unsigned kinds; long nth; int error; int mode; } plan;
static long counted, fired;
static char first_name[4200], *trace;
static int first_kind = -1, said = -1, has_no_exchange;
static size_t traced;

static const char *below(const char *path) {
    for (int i = 0; path && i < PREFIXES && prefixes[i]; i++) {
        size_t n = strlen(prefixes[i]);
        if (!strncmp(path, prefixes[i], n) && (path[n] == '/' || !path[n])) return path[n] ? path + n + 1 : ".";
    }
    return NULL;
}

static const char *of_fd(int fd) { return fd >= 0 && fd < FDS ? name_of[fd] : NULL; }

static const char *at(int dir, const char *path) {
    static __thread char joined[2][2100];
    static __thread int turn;
    if (!path || path[0] == '/') return below(path);
    if (!of_fd(dir)) return NULL;
    char *into = joined[turn ^= 1];
    snprintf(into, sizeof joined[0], "%s/%s", of_fd(dir), path);
    return into;
}

static const char *two(const char *one, const char *other) {
    static __thread char joined[4200];
    if (!one && !other) return NULL;
    snprintf(joined, sizeof joined, "%s -> %s", one ? one : "(outside)", other ? other : "(outside)");
    return joined;
}

static int keep(int fd, const char *name) {
    if (fd >= 0 && fd < FDS && name) name_of[fd] = strdup(name);
    return fd;
}

static void drop(int fd) {
    if (fd >= 0 && fd < FDS && name_of[fd]) { free(name_of[fd]); name_of[fd] = NULL; }
}

static _Noreturn void die(void) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }

static void stop(void) { syscall(SYS_kill, getpid(), SIGSTOP); }

static enum what decide(enum kind kind, const char *name) {
    if (!name) return PASS;
    if (trace) {
        char line[4300];
        int n = snprintf(line, sizeof line, "%d %s\n", kind, name);
        size_t from = __atomic_fetch_add(&traced, n, __ATOMIC_SEQ_CST);
        if (from + n < TRACE) memcpy(trace + from, line, n);
    }
    if (!(plan.kinds >> kind & 1)) return PASS;
    long n = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    if (plan.mode == ALWAYS ? n < plan.nth : n != plan.nth) return PASS;
    if (__atomic_add_fetch(&fired, 1, __ATOMIC_SEQ_CST) == 1) {
        first_kind = kind;
        snprintf(first_name, sizeof first_name, "%s", name);
        if (said >= 0) { char line[4300]; syscall(SYS_write, said, line, snprintf(line, sizeof line, "%d %s\n", kind, name)); }
    }
    switch (plan.mode) {
    case LATE: return REPLY_LOST;
    case SHORT: return CUT;
    case KILL_BEFORE: die();
    case KILL_AFTER: return DIE;
    case STOP_BEFORE: stop(); return PASS;
    case STOP_AFTER: return STOP;
    default: return FAIL;
    }
}

/* The call, or what is to become of it. `what` may be used in it. */
#define THROUGH(kind, name, failed, call) ({ \
    enum what what = decide(kind, name); \
    __typeof__(call) got = failed; \
    if (what != FAIL) got = (call); \
    if (what == DIE) die(); \
    if (what == STOP) stop(); \
    if (what == FAIL || what == REPLY_LOST) { got = failed; errno = plan.error; } \
    (void)what; got; })

/* libc's own function, found once. */
#define REAL(name) ({ static __typeof__(&name) found; if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name); found; })

/* Control */
void seam_watch(const char *prefix) {
    for (int i = 0; i < PREFIXES; i++) if (!prefixes[i]) { prefixes[i] = strdup(prefix); return; }
}
void seam_arm(unsigned kinds, long nth, int error, int mode) {
    plan.kinds = 0;
    counted = fired = 0; first_kind = -1; first_name[0] = 0;
    plan.nth = nth; plan.error = error; plan.mode = mode; plan.kinds = kinds;
}
void seam_disarm(void) { plan.kinds = 0; }
void seam_without_exchange(int yes) { has_no_exchange = yes; }
void seam_trace(void) { if (!trace) trace = malloc(TRACE); traced = 0; }
long seam_traced(void) { return trace && traced < TRACE ? (long)traced : -1; }
const char *seam_trace_text(void) { return trace; }
long seam_fired(void) { return fired; }
long seam_counted(void) { return counted; }
int seam_first_kind(void) { return first_kind; }
const char *seam_first_name(void) { return first_name; }

__attribute__((constructor)) static void begin(void) {
    unsetenv("LD_PRELOAD"); /* children are on their own */
    char *under = getenv("SEAM_UNDER"), *told = getenv("SEAM_PLAN"), *where = getenv("SEAM_SAID");
    if (where) said = syscall(SYS_openat, AT_FDCWD, where, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (under) seam_watch(under);
    unsigned kinds; long nth; int error, mode;
    if (told && sscanf(told, "%u,%ld,%d,%d", &kinds, &nth, &error, &mode) == 4) seam_arm(kinds, nth, error, mode);
    has_no_exchange = getenv("SEAM_NO_EXCHANGE") != NULL;
}

/* Opening and closing */
#define OPENS(symbol, before, ...) { \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
    const char *name = before; \
    return keep(THROUGH(flags & O_CREAT ? CREATE : OPEN, name, -1, REAL(symbol)(__VA_ARGS__, flags, mode)), name); }
int open(const char *path, int flags, ...) OPENS(open, below(path), path)
int open64(const char *path, int flags, ...) OPENS(open64, below(path), path)
int openat(int dir, const char *path, int flags, ...) OPENS(openat, at(dir, path), dir, path)
int openat64(int dir, const char *path, int flags, ...) OPENS(openat64, at(dir, path), dir, path)

#define FOPENS(symbol) { \
    const char *name = below(path); \
    FILE *file = THROUGH(mode[0] == 'r' ? OPEN : CREATE, name, NULL, REAL(symbol)(path, mode)); \
    if (file) keep(fileno(file), name); \
    return file; }
FILE *fopen(const char *path, const char *mode) FOPENS(fopen)
FILE *fopen64(const char *path, const char *mode) FOPENS(fopen64)

int close(int fd) {
    char name[2100];
    int is_ours = of_fd(fd) != NULL;
    if (is_ours) snprintf(name, sizeof name, "%s", of_fd(fd));
    drop(fd);
    if (!is_ours) return REAL(close)(fd);
    enum what what = decide(CLOSE, name);
    int got = REAL(close)(fd); /* Linux closes it whatever it reports */
    if (what == DIE) die();
    if (what == STOP) stop();
    if (what == FAIL || what == REPLY_LOST) { errno = plan.error; return -1; }
    return got;
}

#define FCNTLS(symbol) { \
    va_list more; va_start(more, command); void *argument = va_arg(more, void *); va_end(more); \
    const char *name = of_fd(fd); \
    if (name && (command == F_DUPFD || command == F_DUPFD_CLOEXEC)) return keep(REAL(symbol)(fd, command, argument), name); \
    int locks = command == F_SETLK || command == F_SETLKW; \
    return locks ? THROUGH(LOCK, name, -1, REAL(symbol)(fd, command, argument)) : REAL(symbol)(fd, command, argument); }
int fcntl(int fd, int command, ...) FCNTLS(fcntl)
int fcntl64(int fd, int command, ...) FCNTLS(fcntl64)
int dup(int fd) { return keep(REAL(dup)(fd), of_fd(fd)); }
int flock(int fd, int how) { return THROUGH(LOCK, of_fd(fd), -1, REAL(flock)(fd, how)); }
void *mmap(void *where, size_t n, int can, int flags, int fd, off_t from) {
    return THROUGH(MAP, flags & MAP_ANONYMOUS ? NULL : of_fd(fd), MAP_FAILED, REAL(mmap)(where, n, can, flags, fd, from));
}
void *mmap64(void *where, size_t n, int can, int flags, int fd, off64_t from) {
    return THROUGH(MAP, flags & MAP_ANONYMOUS ? NULL : of_fd(fd), MAP_FAILED, REAL(mmap64)(where, n, can, flags, fd, from));
}

/* Bytes; a cut call moves half of them. */
#define SOME(n) (what == CUT && (n) > 1 ? (n) / 2 : (n))
#define MOVES(kind, symbol, bytes, ...) { return THROUGH(kind, of_fd(fd), -1, REAL(symbol)(fd, p, SOME(n), ##__VA_ARGS__)); }
ssize_t read(int fd, void *p, size_t n) MOVES(READ, read, void)
ssize_t pread(int fd, void *p, size_t n, off_t from) MOVES(READ, pread, void, from)
ssize_t pread64(int fd, void *p, size_t n, off64_t from) MOVES(READ, pread64, void, from)
ssize_t write(int fd, const void *p, size_t n) MOVES(WRITE, write, void)
ssize_t pwrite(int fd, const void *p, size_t n, off_t from) MOVES(WRITE, pwrite, void, from)
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t from) MOVES(WRITE, pwrite64, void, from)

#define VECTORS(kind, symbol, ...) { \
    struct iovec half = n > 0 ? *p : (struct iovec){0}; \
    if (half.iov_len > 1) half.iov_len /= 2; \
    return THROUGH(kind, of_fd(fd), -1, REAL(symbol)(fd, what == CUT ? &half : p, what == CUT ? 1 : n, ##__VA_ARGS__)); }
ssize_t readv(int fd, const struct iovec *p, int n) VECTORS(READ, readv)
ssize_t writev(int fd, const struct iovec *p, int n) VECTORS(WRITE, writev)
ssize_t preadv(int fd, const struct iovec *p, int n, off_t from) VECTORS(READ, preadv, from)
ssize_t preadv64(int fd, const struct iovec *p, int n, off64_t from) VECTORS(READ, preadv64, from)
ssize_t pwritev(int fd, const struct iovec *p, int n, off_t from) VECTORS(WRITE, pwritev, from)
ssize_t pwritev64(int fd, const struct iovec *p, int n, off64_t from) VECTORS(WRITE, pwritev64, from)
ssize_t preadv64v2(int fd, const struct iovec *p, int n, off64_t from, int flags) VECTORS(READ, preadv64v2, from, flags)
ssize_t pwritev64v2(int fd, const struct iovec *p, int n, off64_t from, int flags) VECTORS(WRITE, pwritev64v2, from, flags)
int ftruncate(int fd, off_t n) { return THROUGH(TRUNCATE, of_fd(fd), -1, REAL(ftruncate)(fd, n)); }
int ftruncate64(int fd, off64_t n) { return THROUGH(TRUNCATE, of_fd(fd), -1, REAL(ftruncate64)(fd, n)); }
int fsync(int fd) { return THROUGH(FSYNC, of_fd(fd), -1, of_fd(fd) ? 0 : REAL(fsync)(fd)); }
int fdatasync(int fd) { return THROUGH(FSYNC, of_fd(fd), -1, of_fd(fd) ? 0 : REAL(fdatasync)(fd)); }

/* Names */
int rename(const char *one, const char *other) {
    return THROUGH(RENAME, two(below(one), below(other)), -1, REAL(rename)(one, other));
}
int renameat(int d, const char *one, int e, const char *other) {
    return THROUGH(RENAME, two(at(d, one), at(e, other)), -1, REAL(renameat)(d, one, e, other));
}
int renameat2(int d, const char *one, int e, const char *other, unsigned flags) {
    const char *name = two(at(d, one), at(e, other));
    if (name && (flags & RENAME_EXCHANGE) && has_no_exchange) { errno = EINVAL; return -1; }
    return THROUGH(flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, name, -1, REAL(renameat2)(d, one, e, other, flags));
}
int mkdir(const char *path, mode_t mode) { return THROUGH(MKDIR, below(path), -1, REAL(mkdir)(path, mode)); }
int mkdirat(int d, const char *path, mode_t mode) { return THROUGH(MKDIR, at(d, path), -1, REAL(mkdirat)(d, path, mode)); }
int unlink(const char *path) { return THROUGH(UNLINK, below(path), -1, REAL(unlink)(path)); }
int rmdir(const char *path) { return THROUGH(RMDIR, below(path), -1, REAL(rmdir)(path)); }
int unlinkat(int d, const char *path, int flags) {
    return THROUGH(flags & AT_REMOVEDIR ? RMDIR : UNLINK, at(d, path), -1, REAL(unlinkat)(d, path, flags));
}
int link(const char *one, const char *other) { return THROUGH(LINK, two(below(one), below(other)), -1, REAL(link)(one, other)); }
int linkat(int d, const char *one, int e, const char *other, int flags) {
    return THROUGH(LINK, two(at(d, one), at(e, other)), -1, REAL(linkat)(d, one, e, other, flags));
}
int utimensat(int d, const char *path, const struct timespec times[2], int flags) {
    return THROUGH(UTIME, at(d, path), -1, REAL(utimensat)(d, path, times, flags));
}
int futimens(int fd, const struct timespec times[2]) { return THROUGH(UTIME, of_fd(fd), -1, REAL(futimens)(fd, times)); }

/* Listing */
DIR *opendir(const char *path) {
    const char *name = below(path);
    DIR *dir = THROUGH(OPENDIR, name, NULL, REAL(opendir)(path));
    if (dir) keep(dirfd(dir), name);
    return dir;
}
DIR *fdopendir(int fd) { return THROUGH(OPENDIR, of_fd(fd), NULL, REAL(fdopendir)(fd)); }
int closedir(DIR *dir) { drop(dirfd(dir)); return REAL(closedir)(dir); }
struct dirent *readdir(DIR *dir) { return THROUGH(READDIR, of_fd(dirfd(dir)), NULL, REAL(readdir)(dir)); }
struct dirent64 *readdir64(DIR *dir) { return THROUGH(READDIR, of_fd(dirfd(dir)), NULL, REAL(readdir64)(dir)); }

/* Looking */
int stat(const char *path, struct stat *p) { return THROUGH(STAT, below(path), -1, REAL(stat)(path, p)); }
int lstat(const char *path, struct stat *p) { return THROUGH(STAT, below(path), -1, REAL(lstat)(path, p)); }
int fstat(int fd, struct stat *p) { return THROUGH(STAT, of_fd(fd), -1, REAL(fstat)(fd, p)); }
int stat64(const char *path, struct stat64 *p) { return THROUGH(STAT, below(path), -1, REAL(stat64)(path, p)); }
int lstat64(const char *path, struct stat64 *p) { return THROUGH(STAT, below(path), -1, REAL(lstat64)(path, p)); }
int fstat64(int fd, struct stat64 *p) { return THROUGH(STAT, of_fd(fd), -1, REAL(fstat64)(fd, p)); }
int fstatat(int d, const char *path, struct stat *p, int flags) {
    return THROUGH(STAT, at(d, path), -1, REAL(fstatat)(d, path, p, flags));
}
int fstatat64(int d, const char *path, struct stat64 *p, int flags) {
    return THROUGH(STAT, at(d, path), -1, REAL(fstatat64)(d, path, p, flags));
}
int statx(int d, const char *path, int flags, unsigned mask, struct statx *p) {
    const char *name = path[0] ? at(d, path) : of_fd(d);
    return THROUGH(STAT, name, -1, REAL(statx)(d, path, flags, mask, p));
}
int access(const char *path, int how) { return THROUGH(STAT, below(path), -1, REAL(access)(path, how)); }
int faccessat(int d, const char *path, int how, int flags) {
    return THROUGH(STAT, at(d, path), -1, REAL(faccessat)(d, path, how, flags));
}
int statvfs(const char *path, struct statvfs *p) { return THROUGH(STATVFS, below(path), -1, REAL(statvfs)(path, p)); }
int statvfs64(const char *path, struct statvfs64 *p) { return THROUGH(STATVFS, below(path), -1, REAL(statvfs64)(path, p)); }
