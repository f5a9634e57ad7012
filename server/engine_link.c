/* How the link works.
 *
 * One thread owns the child and the reading side. It starts the child, polls its socket, and
 * when the child ends for whatever reason it answers everything under way, waits a little
 * longer each time, and starts the next one:
 *
 *        start            READY                 end of stream, PING unanswered, nonsense
 *   DOWN ─────► LOADING ────────► READY ──────────────┐
 *     ▲          ▲ │ FAIL, end      │ put away         │
 *     └──────────┼─┴── back-off 100 ms .. 10 s ◄───────┘
 *                └───── AWAY ◄──────┘
 *             a request
 *
 * An engine is put away only while nothing is under way (or all of it was answered), so that
 * the outgoing buffer holds nothing its successor should not get. A request that comes while
 * the old child still ends is already the next one's: the state is LOADING from then on.
 *
 * Requests are numbered and kept in a table until their answer comes. A request that arrives
 * while the engine is loading waits in the outgoing buffer, but no longer than
 * engine-timeout-ms after the start: then all that wait are answered with an error and new ones
 * are refused at once, while the loading goes on. So nobody waits for an engine longer than the
 * engine may be silent.
 *
 * The outgoing side is one buffer under the lock. Whoever adds a request also tries to send,
 * which does not block; what the socket does not take is sent by the link's thread when poll
 * says so. The buffer is bounded by bytes_limit, which stands for engine-queue-tokens.
 *
 * Callbacks run without the lock. The child's life is in this file, requests and the sending of
 * them in engine_requests.c, the answers in engine_answers.c. A request is taken out of the
 * table before its callback runs, so it runs once whoever finds it first: the answer, the
 * engine's death, or the end of the link. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "protocol/resp_write.h"
#include "server/engine_link_parts.h"

enum {
    PING_INTERVAL_MS = 1000,
    BACKOFF_FIRST_MS = 100,
    BACKOFF_MAX_MS = 10000,
    GOOD_LIFE_MS = 10000,
    LOAD_LIMIT_MS = 600000,
    STATUS_WAIT_MS = 200,
    CLOSE_WAIT_MS = 2000,
    /* Generous: English has about 4, and a refusal too early is the worse fault. */
    BYTES_A_TOKEN = 8
};

void link_tell(struct engine_link *l)
{
    if (l->on_change)
        l->on_change(l->arg);
}

/* --- the child's life --- */

/* What the last child left unfinished must not be read as the next one's. */
static bool fresh_reader(struct engine_link *l)
{
    resp_reader_free(l->reader);
    resp_request_reset(&l->message);
    l->reader = resp_reader_new();
    return l->reader != NULL;
}

static bool start_child(struct engine_link *l)
{
    const char *argv[LINK_ARGUMENTS_MAX + 1] = {l->program};
    for (int i = 0; l->arguments[i]; i++)
        argv[i + 1] = l->arguments[i];
    if (l->on_start)
        l->on_start(l->arg);
    struct err e = {0};
    struct engine_process p;
    l->started_us = clock_mono_us();
    l->end_reason[0] = '\0';
    int rc = fresh_reader(l) ? engine_process_start(&p, argv, &e)
                             : err_set(&e, KITH_ENOMEM, "out of memory");
    pthread_mutex_lock(&l->lock);
    if (rc == 0) {
        l->process = p;
        if (!l->ending)
            l->state = ENGINE_LOADING;
        l->slow_load = false;
        l->stats.pid = p.pid;
        if (l->tried && l->returning)
            l->stats.returns++;
        else if (l->tried)
            l->stats.restarts++;
    }
    pthread_mutex_unlock(&l->lock);
    l->returning = false;
    if (rc != 0)
        link_set_end(l, "%s", e.message);
    else
        log_notice("engine %s started with process id %d", l->label, p.pid);
    link_tell(l);
    return rc == 0;
}

/* Asks for a sign of life and looks how old the last one is. `quiet`: nothing can be read now,
 * so silence is the engine's and not our own lateness. False when the child is to be given up.
 */
static bool keep_time(struct engine_link *l, bool quiet)
{
    int64_t now = clock_mono_us(), timeout_ms = atomic_load(&l->timeout_ms);
    int64_t age_ms = (now - l->started_us) / 1000;
    pthread_mutex_lock(&l->lock);
    bool ready = l->state == ENGINE_READY, ending = l->ending;
    pthread_mutex_unlock(&l->lock);
    if (ending)
        return true;
    if (!ready) {
        if (age_ms > LOAD_LIMIT_MS) {
            link_set_end(l, "it did not finish loading in %d s", LOAD_LIMIT_MS / 1000);
            return false;
        }
        if (age_ms > timeout_ms && !l->slow_load) {
            pthread_mutex_lock(&l->lock);
            l->slow_load = true;
            pthread_mutex_unlock(&l->lock);
            char message[256];
            snprintf(message, sizeof message, LINK_SLOW_LOAD, l->label);
            link_fail_all(l, KITH_ECLOSED, message);
            link_tell(l);
        }
        return true;
    }
    if (quiet && l->unanswered_us > 0 && now - l->unanswered_us > timeout_ms * 1000) {
        link_set_end(l, "it did not answer for %" PRId64 " ms",
                     (now - l->unanswered_us) / 1000);
        return false;
    }
    int64_t interval_ms = timeout_ms / 2 < PING_INTERVAL_MS ? timeout_ms / 2 : PING_INTERVAL_MS;
    if (now - l->last_ping_us >= interval_ms * 1000) {
        l->last_ping_us = now;
        if (l->unanswered_us == 0)
            l->unanswered_us = now;
        pthread_mutex_lock(&l->lock);
        if (l->state == ENGINE_READY) {
            struct resp_out o = {.to = &l->out, .proto = 2};
            resp_array(o, 2);
            resp_bulk_str(o, "PING");
            resp_bulk_str(o, "0");
            link_send_some(l);
        }
        pthread_mutex_unlock(&l->lock);
    }
    return true;
}

static void drain_wake(struct engine_link *l)
{
    uint64_t counter;
    ssize_t n = read(l->wake_fd, &counter, sizeof counter);
    (void)n;
}

/* Serves the child until it ends, is given up, or the link closes. */
static void serve_child(struct engine_link *l)
{
    for (;;) {
        pthread_mutex_lock(&l->lock);
        bool leaving = l->closing || l->ending;
        if (l->state == ENGINE_READY)
            link_send_some(l);
        bool sending = l->state == ENGINE_READY && l->out.len > 0;
        pthread_mutex_unlock(&l->lock);
        if (leaving)
            return;
        struct pollfd fds[2] = {
            {.fd = l->process.fd, .events = (short)(sending ? POLLIN | POLLOUT : POLLIN)},
            {.fd = l->wake_fd, .events = POLLIN}};
        int64_t timeout_ms = atomic_load(&l->timeout_ms);
        int wait = timeout_ms / 4 < PING_INTERVAL_MS / 4 ? (int)timeout_ms / 4 + 1
                                                         : PING_INTERVAL_MS / 4;
        int rc = poll(fds, 2, wait);
        if (rc < 0 && errno != EINTR) {
            link_set_end(l, "poll: %s", strerror(errno));
            return;
        }
        if (rc > 0 && fds[1].revents)
            drain_wake(l);
        bool readable = rc > 0 && (fds[0].revents & (POLLIN | POLLHUP | POLLERR));
        if (readable && !link_read_some(l))
            return;
        if (!keep_time(l, !readable))
            return;
    }
}

/* The child of an engine that was put away ends in order; what came meanwhile is for the next.
 */
static void end_child(struct engine_link *l)
{
    char how[64];
    pthread_mutex_lock(&l->lock);
    engine_process_hang_up(&l->process);
    pthread_mutex_unlock(&l->lock);
    if (engine_process_reap(&l->process, CLOSE_WAIT_MS, how, sizeof how) != 0)
        engine_process_kill(&l->process);
    while (engine_process_reap(&l->process, 1000, how, sizeof how) != 0)
        continue;
    pthread_mutex_lock(&l->lock);
    l->ending = false;
    l->stats.pid = 0;
    l->tried = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    l->returning = true;
    l->backoff_ms = 0;
    log_notice("engine %s put away", l->label);
    link_tell(l);
}

/* Ends the child if it has not ended, tells everybody, and plans the next start. */
static void bury_child(struct engine_link *l)
{
    char how[64] = "no status", reason[512], message[1024];
    pthread_mutex_lock(&l->lock);
    bool closing = l->closing;
    bool was_ready = l->state == ENGINE_READY;
    l->state = ENGINE_DOWN;
    l->stats.up = false;
    l->stats.pid = 0;
    int64_t life_ms = (clock_mono_us() - l->started_us) / 1000;
    l->backoff_ms = was_ready && life_ms > GOOD_LIFE_MS ? BACKOFF_FIRST_MS
                    : l->backoff_ms == 0                ? BACKOFF_FIRST_MS
                                                        : l->backoff_ms * 2;
    if (l->backoff_ms > BACKOFF_MAX_MS)
        l->backoff_ms = BACKOFF_MAX_MS;
    l->next_start_us = clock_mono_us() + l->backoff_ms * 1000;
    engine_process_hang_up(&l->process);
    pthread_mutex_unlock(&l->lock);

    bool told = l->end_reason[0] != '\0';
    int64_t wait_ms = closing ? CLOSE_WAIT_MS : told ? 0 : STATUS_WAIT_MS;
    if (closing) {
        snprintf(message, sizeof message, LINK_CLOSING, l->label);
        link_fail_all(l, KITH_ECLOSED, message);
    }
    if (engine_process_reap(&l->process, wait_ms, how, sizeof how) != 0)
        engine_process_kill(&l->process);
    if (told)
        snprintf(reason, sizeof reason, "%s", l->end_reason);
    else
        snprintf(reason, sizeof reason, "%s", how);
    snprintf(message, sizeof message,
             "ENGINE the embedding engine of model '%s' stopped (%s); it is being restarted, "
             "try again",
             l->label, reason);
    link_fail_all(l, KITH_ECLOSED, message);
    while (engine_process_reap(&l->process, 1000, how, sizeof how) != 0)
        continue;
    pthread_mutex_lock(&l->lock);
    snprintf(l->stats.last_error, sizeof l->stats.last_error, "%.*s",
             (int)sizeof l->stats.last_error - 1, reason);
    l->tried = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (!closing)
        log_warning("engine %s stopped: %s; it is started again in %" PRId64 " ms", l->label,
                    reason, l->backoff_ms);
    link_tell(l);
}

/* Until the next child is to be started; false: until the end of the link. */
static bool wait_for_start(struct engine_link *l)
{
    for (;;) {
        pthread_mutex_lock(&l->lock);
        bool closing = l->closing, away = l->state == ENGINE_AWAY;
        int64_t left_ms =
            l->state == ENGINE_LOADING ? 0 : (l->next_start_us - clock_mono_us() + 999) / 1000;
        pthread_mutex_unlock(&l->lock);
        if (closing)
            return false;
        if (!away && left_ms <= 0)
            return true;
        struct pollfd fd = {.fd = l->wake_fd, .events = POLLIN};
        if (poll(&fd, 1, away ? -1 : (int)left_ms) > 0)
            drain_wake(l);
    }
}

static void *link_main(void *arg)
{
    struct engine_link *l = arg;
    while (wait_for_start(l)) {
        if (start_child(l))
            serve_child(l);
        pthread_mutex_lock(&l->lock);
        bool ending = l->ending && !l->closing;
        pthread_mutex_unlock(&l->lock);
        if (ending)
            end_child(l);
        else
            bury_child(l);
    }
    return NULL;
}

/* --- opening, closing, looking --- */

static int find_program(char *out, size_t n, const char *given, struct err *e)
{
    if (given && *given) {
        if (snprintf(out, n, "%s", given) >= (int)n)
            return err_set(e, KITH_EINVAL, "engine-path is too long");
        return 0;
    }
    static const char name[] = "kith-engine";
    ssize_t got = readlink("/proc/self/exe", out, n - sizeof name);
    if (got < 0)
        return err_set_errno(e, errno, "cannot find this program's own path");
    out[got] = '\0';
    char *slash = strrchr(out, '/');
    memcpy(slash ? slash + 1 : out, name, sizeof name);
    return 0;
}

static void free_link(struct engine_link *l)
{
    if (l->wake_fd >= 0)
        close(l->wake_fd);
    buf_deinit(&l->out);
    if (l->reader)
        resp_reader_free(l->reader);
    resp_request_deinit(&l->message);
    mem_free(l->vectors);
    mem_free(l->label);
    for (int i = 0; i < LINK_ARGUMENTS_MAX; i++)
        mem_free(l->arguments[i]);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    mem_free(l);
}

static bool copy_arguments(struct engine_link *l, const char *const *arguments)
{
    for (int i = 0; arguments[i]; i++) {
        assert(i + 1 < LINK_ARGUMENTS_MAX);
        if (!(l->arguments[i] = mem_strdup(arguments[i])))
            return false;
    }
    return true;
}

int engine_link_open(struct engine_link **out, const struct engine_link_options *o,
                     struct err *e)
{
    struct engine_link *l = mem_calloc(1, sizeof *l);
    if (!l)
        return err_set(e, KITH_ENOMEM, "out of memory");
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    resp_request_init(&l->message);
    l->process.fd = -1;
    /* Unless away, LOADING as good as is: the thread starts the child first of all. */
    l->state = o->away ? ENGINE_AWAY : ENGINE_LOADING;
    l->returning = o->away;
    l->started_us = clock_mono_us();
    l->bytes_limit = (size_t)o->queue_tokens * BYTES_A_TOKEN;
    l->label = mem_strdup(o->label);
    l->on_start = o->on_start;
    l->on_ready = o->on_ready;
    l->on_change = o->on_change;
    l->arg = o->arg;
    bool copied = l->label && copy_arguments(l, o->arguments);
    l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    engine_link_set_timeout(l, o->timeout_ms);
    int rc = find_program(l->program, sizeof l->program, o->program, e);
    if (rc == 0 && !copied)
        rc = err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0 && l->wake_fd < 0)
        rc = err_set_errno(e, errno, "eventfd");
    if (rc == 0) {
        int failed = pthread_create(&l->thread, NULL, link_main, l);
        if (failed)
            rc = err_set_errno(e, failed, "cannot start the engine link's thread");
    }
    if (rc != 0) {
        free_link(l);
        return rc;
    }
    *out = l;
    return 0;
}

int engine_link_wait_ready(struct engine_link *l, int64_t timeout_ms, struct err *e)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&l->lock);
    while (!l->tried && pthread_cond_timedwait(&l->changed, &l->lock, &until) == 0)
        continue;
    int rc = 0;
    if (!l->tried)
        rc =
            err_set(e, KITH_EBUSY, "the engine was not ready after %" PRId64 " ms", timeout_ms);
    else if (l->state != ENGINE_READY)
        rc = err_set(e, KITH_ECLOSED, "%s", l->stats.last_error);
    pthread_mutex_unlock(&l->lock);
    return rc;
}

void engine_link_shut(struct engine_link *l)
{
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_mutex_unlock(&l->lock);
    link_wake(l);
}

void engine_link_close(struct engine_link *l)
{
    if (!l)
        return;
    engine_link_shut(l);
    pthread_join(l->thread, NULL);
    free_link(l);
}

bool engine_link_model(struct engine_link *l, struct engine_model *model)
{
    pthread_mutex_lock(&l->lock);
    *model = l->model;
    bool up = l->state == ENGINE_READY;
    pthread_mutex_unlock(&l->lock);
    return up;
}

void engine_link_stats(struct engine_link *l, struct engine_stats *out)
{
    pthread_mutex_lock(&l->lock);
    *out = l->stats;
    out->state = l->state;
    out->slow_load = l->slow_load;
    out->tried = l->tried;
    pthread_mutex_unlock(&l->lock);
}

void engine_link_set_timeout(struct engine_link *l, int64_t timeout_ms)
{
    atomic_store(&l->timeout_ms, timeout_ms);
}
