// Preloaded into the program by tests/faults/run.sh: every FAULT_EVERY-th call of FAULT_CALL after main() has begun fails, as
// for want of memory or room, or by a broken disk. Beside AddressSanitizer (-DFAULTS_BESIDE_ASAN), whose allocator must be
// the only one, malloc does not fail. Not part of the library.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>

namespace {

const char* wanted = nullptr;
long every = 0;
std::atomic<long> calls{0};
std::atomic<bool> armed{false};

bool fails(const char* call) {
    if (!armed.load(std::memory_order_relaxed) || std::strcmp(call, wanted) != 0) return false;
    return (calls.fetch_add(1) + 1) % every == 0;
}

template <class F>
F real(const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

int (*program)(int, char**, char**);
int begin(int argc, char** argv, char** environment) {
    wanted = std::getenv("FAULT_CALL");
    every = std::getenv("FAULT_EVERY") ? std::atol(std::getenv("FAULT_EVERY")) : 0;
    armed = wanted && every > 0;
    int status = program(argc, argv, environment);
    armed = false;
    return status;
}

}  // namespace

extern "C" {

// glibc's own names: its allocator under them, so that nothing has to be looked up before it can run.
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);

#ifndef FAULTS_BESIDE_ASAN
void* malloc(size_t size) {
    if (fails("malloc")) return errno = ENOMEM, nullptr;
    return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
    if (fails("malloc")) return errno = ENOMEM, nullptr;
    return __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
    if (fails("malloc")) return errno = ENOMEM, nullptr;
    return __libc_realloc(old, size);
}
#endif
void* mmap(void* at, size_t size, int protection, int flags, int fd, off_t offset) {
    static auto next = real<void* (*)(void*, size_t, int, int, int, off_t)>("mmap");
    if (fails("mmap")) return errno = ENOMEM, MAP_FAILED;
    return next(at, size, protection, flags, fd, offset);
}
int open(const char* path, int flags, ...) {
    static auto next = real<int (*)(const char*, int, ...)>("open");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (fails("open")) return errno = EMFILE, -1;
    return next(path, flags, mode);
}
ssize_t read(int fd, void* to, size_t size) {
    static auto next = real<ssize_t (*)(int, void*, size_t)>("read");
    if (fails("read")) return errno = EIO, -1;
    return next(fd, to, size);
}
ssize_t pread(int fd, void* to, size_t size, off_t offset) {
    static auto next = real<ssize_t (*)(int, void*, size_t, off_t)>("pread");
    if (fails("read")) return errno = EIO, -1;
    return next(fd, to, size, offset);
}
ssize_t write(int fd, const void* from, size_t size) {
    static auto next = real<ssize_t (*)(int, const void*, size_t)>("write");
    if (fails("write")) return errno = ENOSPC, -1;
    return next(fd, from, size);
}
int fsync(int fd) {
    static auto next = real<int (*)(int)>("fsync");
    if (fails("fsync")) return errno = EIO, -1;
    return next(fd);
}
int rename(const char* from, const char* to) {
    static auto next = real<int (*)(const char*, const char*)>("rename");
    if (fails("rename")) return errno = EIO, -1;
    return next(from, to);
}
int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
    static auto next = real<int (*)(int, const char*, int, const char*, unsigned)>("renameat2");
    if (fails("rename")) return errno = EIO, -1;
    return next(from_at, from, to_at, to, flags);
}

int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*init)(), void (*fini)(),
                      void (*rtld_fini)(), void* stack_end) {
    program = main;
    auto next =
        real<int (*)(int (*)(int, char**, char**), int, char**, void (*)(), void (*)(), void (*)(), void*)>("__libc_start_main");
    return next(begin, argc, argv, init, fini, rtld_fini, stack_end);
}
}
