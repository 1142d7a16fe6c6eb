/* A disk between a program and its files, for tests. Preloaded (LD_PRELOAD), it sees every call that SQLite
 * makes on the files of one folder.
 *
 *   DISK_FOLDER   the folder, as an absolute path without symbolic links
 *   DISK_JOURNAL  where it notes, in order, what was written, synced, cut, made and removed
 *   DISK_FAULTS   a file of the layout of `struct faults`, shared with the test, that says what is to fail
 *
 * Files that end in -shm are memory shared between processes and no part of what a disk keeps. What is
 * written to a file called `acks` is noted as a mark of the program's own. Nothing is really synced: what
 * was synced is what the journal says was synced. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ = 1, WRITE = 2, SYNC = 4, OPEN = 8 };

struct faults {
    int64_t kinds;   /* which calls are to fail; 0: none */
    int64_t passing; /* how many of them go through first */
    int64_t lasting; /* whether every one after it fails as well */
    int64_t error;   /* with which errno */
    int64_t failed;  /* how many have failed */
    int64_t calls;   /* how many of these kinds there were */
};

struct record {
    uint32_t kind; /* one character of: C(reated) W(ritten) T(runcated) S(ynced) U(nlinked) D(irectory) A(ck) */
    uint32_t file;
    uint64_t offset;
    uint64_t length; /* of what follows: a name or data */
};

enum { FOREIGN = 0, FOLDER = -1, ACKS = -2, SHARED = -3 };
enum { MAX_FDS = 4096, MAX_FILES = 1 << 20 };

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char folder[4096];
static size_t folder_length;
static int journal = -1;
static struct faults *faults;
static int file_of_fd[MAX_FDS];
static struct { dev_t device; ino_t inode; } file_by_number[MAX_FILES];
static int last_file;

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);
static int (*real_access)(const char *, int);
static int (*real_link)(const char *, const char *);
static int (*real_rename)(const char *, const char *);

static void begin(void) {
    real_open = dlsym(RTLD_NEXT, "open");
    real_close = dlsym(RTLD_NEXT, "close");
    real_read = dlsym(RTLD_NEXT, "read");
    real_pread = dlsym(RTLD_NEXT, "pread");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_link = dlsym(RTLD_NEXT, "link");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_access = dlsym(RTLD_NEXT, "access");
    const char *name = getenv("DISK_FOLDER");
    if (name == NULL)
        return;
    snprintf(folder, sizeof folder, "%s", name);
    folder_length = strlen(folder);
    if ((name = getenv("DISK_JOURNAL")) != NULL)
        journal = real_open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((name = getenv("DISK_FAULTS")) != NULL) {
        int fd = real_open(name, O_RDWR | O_CLOEXEC);
        if (fd >= 0) {
            void *shared = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            faults = shared == MAP_FAILED ? NULL : shared;
            real_close(fd);
        }
    }
}

static void note(int kind, int file, uint64_t offset, const void *data, uint64_t length) {
    if (journal < 0)
        return;
    struct record record = {(uint32_t)kind, (uint32_t)file, offset, length};
    struct iovec parts[] = {{&record, sizeof record}, {(void *)data, length}};
    if (writev(journal, parts, 2) != (ssize_t)(sizeof record + length))
        abort(); /* a journal with a gap proves nothing */
}

/* The name within the folder; NULL for a path outside of it, "" for the folder itself. */
static const char *name_within(const char *path) {
    if (path == NULL || folder_length == 0 || strncmp(path, folder, folder_length) != 0)
        return NULL;
    if (path[folder_length] == '\0')
        return "";
    return path[folder_length] == '/' ? path + folder_length + 1 : NULL;
}

static int ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

static int number_of(const struct stat *status) {
    for (int number = last_file; number > 0; number--)
        if (file_by_number[number].device == status->st_dev && file_by_number[number].inode == status->st_ino)
            return number;
    if (++last_file >= MAX_FILES)
        abort();
    file_by_number[last_file].device = status->st_dev;
    file_by_number[last_file].inode = status->st_ino;
    return last_file;
}

static int file_of(int fd) {
    pthread_once(&once, begin);
    return fd >= 0 && fd < MAX_FDS ? file_of_fd[fd] : FOREIGN;
}

/* Whether this call is the one to fail; errno is set then. Held under the lock. */
static int fails(int kind) {
    if (faults == NULL || !(faults->kinds & kind))
        return 0;
    faults->calls++;
    if (faults->passing > 0) {
        faults->passing--;
        return 0;
    }
    if (!faults->lasting)
        faults->kinds = 0;
    faults->failed++;
    errno = (int)faults->error;
    return 1;
}

static int opened(const char *path, int flags, mode_t mode) {
    pthread_once(&once, begin);
    const char *name = name_within(path);
    if (name == NULL)
        return real_open(path, flags, mode);
    pthread_mutex_lock(&lock);
    int fd = -1;
    int writing = (flags & O_ACCMODE) != O_RDONLY;
    if (!(writing && fails(OPEN))) {
        int is_new = (flags & O_CREAT) && real_access(path, F_OK) != 0;
        fd = real_open(path, flags, mode);
        if (fd >= MAX_FDS)
            abort();
        if (fd >= 0) {
            if (*name == '\0')
                file_of_fd[fd] = FOLDER;
            else if (strcmp(name, "acks") == 0)
                file_of_fd[fd] = ACKS;
            else if (ends_with(name, "-shm"))
                file_of_fd[fd] = SHARED;
            else {
                struct stat status;
                if (fstat(fd, &status) != 0)
                    abort();
                file_of_fd[fd] = number_of(&status);
                if (is_new)
                    note('C', file_of_fd[fd], 0, name, strlen(name));
            }
        }
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? (mode_t)va_arg(rest, int) : 0;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return opened(path, flags, mode);
}

int close(int fd) {
    int file = file_of(fd);
    if (file == FOREIGN)
        return real_close(fd);
    pthread_mutex_lock(&lock);
    file_of_fd[fd] = FOREIGN;
    int result = real_close(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t read(int fd, void *data, size_t length) {
    int file = file_of(fd);
    if (file <= FOREIGN)
        return real_read(fd, data, length);
    pthread_mutex_lock(&lock);
    ssize_t result = fails(READ) ? -1 : real_read(fd, data, length);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t pread(int fd, void *data, size_t length, off_t offset) {
    int file = file_of(fd);
    if (file <= FOREIGN)
        return real_pread(fd, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t result = fails(READ) ? -1 : real_pread(fd, data, length, offset);
    pthread_mutex_unlock(&lock);
    return result;
}

/* A write that fails has written a part: what a full or broken disk leaves behind. */
static ssize_t written(int fd, const void *data, size_t length, off_t offset) {
    pthread_mutex_lock(&lock);
    int is_to_fail = fails(WRITE), error = errno;
    ssize_t result = real_pwrite(fd, data, is_to_fail ? length / 2 : length, offset);
    if (result > 0)
        note('W', file_of_fd[fd], (uint64_t)offset, data, (uint64_t)result);
    if (is_to_fail) {
        errno = error;
        result = -1;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    return file_of(fd) <= FOREIGN ? real_pwrite(fd, data, length, offset)
                                  : written(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length) {
    int file = file_of(fd);
    if (file == ACKS) {
        pthread_mutex_lock(&lock);
        note('A', 0, 0, data, length);
        ssize_t result = real_write(fd, data, length);
        pthread_mutex_unlock(&lock);
        return result;
    }
    if (file <= FOREIGN)
        return real_write(fd, data, length);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t result = written(fd, data, length, offset);
    if (result > 0)
        lseek(fd, offset + result, SEEK_SET);
    return result;
}

int ftruncate(int fd, off_t length) {
    int file = file_of(fd);
    if (file <= FOREIGN)
        return real_ftruncate(fd, length);
    pthread_mutex_lock(&lock);
    int result = fails(WRITE) ? -1 : real_ftruncate(fd, length);
    if (result == 0)
        note('T', file, (uint64_t)length, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

static int synced(int file) {
    if (file != FOLDER && file < FOREIGN)
        return 0;
    pthread_mutex_lock(&lock);
    int result = fails(SYNC) ? -1 : 0;
    if (result == 0)
        note(file == FOLDER ? 'D' : 'S', file == FOLDER ? 0 : file, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) {
    int file = file_of(fd);
    return file == FOREIGN ? real_fsync(fd) : synced(file);
}

int fdatasync(int fd) {
    int file = file_of(fd);
    return file == FOREIGN ? real_fdatasync(fd) : synced(file);
}

int unlink(const char *path) {
    pthread_once(&once, begin);
    const char *name = name_within(path);
    if (name == NULL)
        return real_unlink(path);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!fails(OPEN)) {
        struct stat status;
        int is_there = stat(path, &status) == 0;
        result = real_unlink(path);
        if (result == 0 && !ends_with(name, "-shm")) {
            note('U', 0, 0, name, strlen(name));
            if (is_there && status.st_nlink == 1) /* its number must not pass to the next file */
                for (int number = last_file; number > 0; number--)
                    if (file_by_number[number].inode == status.st_ino)
                        file_by_number[number].inode = 0;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* Notes that a file has another name now: as one that was made under it. */
static void named(const char *path) {
    struct stat status;
    const char *name = name_within(path);
    if (name == NULL || ends_with(name, "-shm"))
        return;
    if (stat(path, &status) != 0)
        abort();
    note('C', number_of(&status), 0, name, strlen(name));
}

int link(const char *from, const char *to) {
    pthread_once(&once, begin);
    if (name_within(to) == NULL)
        return real_link(from, to);
    pthread_mutex_lock(&lock);
    int result = fails(OPEN) ? -1 : real_link(from, to);
    if (result == 0)
        named(to);
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) {
    pthread_once(&once, begin);
    if (name_within(to) == NULL)
        return real_rename(from, to);
    pthread_mutex_lock(&lock);
    int result = fails(OPEN) ? -1 : real_rename(from, to);
    if (result == 0) {
        const char *old = name_within(from);
        named(to);
        if (old != NULL)
            note('U', 0, 0, old, strlen(old));
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int access(const char *path, int mode) {
    pthread_once(&once, begin);
    if (!(mode & W_OK) || name_within(path) == NULL)
        return real_access(path, mode);
    pthread_mutex_lock(&lock);
    int result = fails(OPEN) ? -1 : real_access(path, mode);
    pthread_mutex_unlock(&lock);
    return result;
}

#ifdef __GLIBC__
/* The same calls by the names that programs with 64-bit offsets are linked to. */
int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return opened(path, flags, mode);
}

ssize_t pread64(int fd, void *data, size_t length, off64_t offset) { return pread(fd, data, length, offset); }

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return pwrite(fd, data, length, offset);
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }
#endif
