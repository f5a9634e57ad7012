#include "server/engine_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

extern char **environ;

enum { CHILD_FD = 3, REAP_STEP_US = 1000 };

static int spawn(int *pid, int child_fd, const char *const *argv)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int rc = posix_spawn_file_actions_init(&actions);
    if (rc != 0)
        return rc;
    rc = posix_spawnattr_init(&attributes);
    if (rc != 0)
        goto fail_actions;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                              POSIX_SPAWN_SETPGROUP);
    /* Where both are the same number, this clears close-on-exec. */
    rc = posix_spawn_file_actions_adddup2(&actions, child_fd, CHILD_FD);
    if (rc == 0)
        rc = posix_spawn(pid, argv[0], &actions, &attributes, (char *const *)argv, environ);
    posix_spawnattr_destroy(&attributes);
fail_actions:
    posix_spawn_file_actions_destroy(&actions);
    return rc;
}

int engine_process_start(struct engine_process *p, const char *const *argv, struct err *e)
{
    int pair[2], pid = 0;
    *p = (struct engine_process){.fd = -1};
    if (access(argv[0], X_OK) != 0)
        return err_set_errno(e, errno, "cannot run %s", argv[0]);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return err_set_errno(e, errno, "cannot make a socket pair");
    int rc = 0;
    if (fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0)
        rc = errno;
    if (rc == 0)
        rc = spawn(&pid, pair[1], argv);
    close(pair[1]);
    if (rc != 0) {
        close(pair[0]);
        return err_set_errno(e, rc, "cannot start %s", argv[0]);
    }
    p->pid = pid;
    p->fd = pair[0];
    return 0;
}

void engine_process_hang_up(struct engine_process *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
}

void engine_process_kill(struct engine_process *p)
{
    if (p->pid > 0)
        kill(p->pid, SIGKILL);
}

int engine_process_reap(struct engine_process *p, int64_t wait_ms, char *text, size_t n)
{
    if (p->pid <= 0)
        return 0;
    int64_t until = clock_mono_us() + wait_ms * 1000;
    for (;;) {
        int status = 0;
        pid_t got = waitpid(p->pid, &status, WNOHANG);
        if (got == p->pid || (got < 0 && errno != EINTR)) {
            if (got < 0)
                snprintf(text, n, "gone");
            else if (WIFSIGNALED(status))
                snprintf(text, n, "signal %d", WTERMSIG(status));
            else
                snprintf(text, n, "exit status %d", WEXITSTATUS(status));
            p->pid = 0;
            return 0;
        }
        if (clock_mono_us() >= until)
            return KITH_EBUSY;
        clock_sleep_us(REAP_STEP_US);
    }
}

uint64_t process_resident_bytes(int pid)
{
    char path[32];
    unsigned long pages_total, pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%lu %lu", &pages_total, &pages) != 2)
        pages = 0;
    fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
