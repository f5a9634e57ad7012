#pragma once
/* Directories for tests: in memory where there is room, since most tests sync a lot and do not
 * mean the disk. They lie below one of the program's own, which goes with it, so that a test
 * that fails half way leaves nothing behind either. */

#include <dirent.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tests/unit/unit.h"

static char unit_dirs[64];
static pid_t unit_dirs_owner; /* not its children */

static inline bool unit_path(char out[512], const char *dir, const char *name)
{
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           snprintf(out, 512, "%s/%s", dir, name) < 512;
}

/* A file, or a directory with all that is in it. */
static inline void unit_remove(const char *path)
{
    DIR *d = opendir(path);
    if (!d) {
        unlink(path);
        return;
    }
    struct dirent *entry;
    while ((entry = readdir(d)) != NULL) {
        char inner[512];
        if (unit_path(inner, path, entry->d_name))
            unit_remove(inner);
    }
    closedir(d);
    rmdir(path);
}

static inline void unit_dirs_leave(void)
{
    if (getpid() == unit_dirs_owner)
        unit_remove(unit_dirs);
}

static inline void unit_dir_make(char out[64])
{
    static unsigned n;
    if (n == 0) {
        struct statvfs v;
        bool roomy = statvfs("/dev/shm", &v) == 0 && v.f_bavail * v.f_frsize > (512u << 20) &&
                     access("/dev/shm", W_OK) == 0;
        snprintf(unit_dirs, sizeof unit_dirs, "%s/kith-unit-XXXXXX",
                 roomy ? "/dev/shm" : "/tmp");
        assert_non_null(mkdtemp(unit_dirs));
        unit_dirs_owner = getpid();
        atexit(unit_dirs_leave);
    }
    snprintf(out, 64, "%.32s/%u", unit_dirs, n++);
    assert_int_equal(mkdir(out, 0700), 0);
}
