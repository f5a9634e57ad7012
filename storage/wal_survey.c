/* Recovery's question is where the log ends, and whether it may end there.
 *
 * The log is scanned from the segment that holds the checkpoint's successor until the first
 * bytes that are no valid record with the next index. Three witnesses then say whether that
 * place is a torn tail (records nobody was told of, which may be cut) or damage:
 *   - the mark file: the newest index known durable, or released by a process of this boot;
 *   - the `durable` field of the valid records before the break;
 *   - the `durable` field of any valid record after the break, here or in a later segment. A
 * power cut may keep the later blocks of one unsynced group and lose the earlier ones, so a
 * valid record after the break proves nothing by itself; one that was appended when the broken
 * index was already durable does. If any of them reaches the broken index, it is damage and an
 * error; else everything from the break on is cut. */
#include "storage/wal_format.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

void wal_survey_deinit(struct wal_survey *v)
{
    mem_free(v->firsts);
    *v = (struct wal_survey){0};
}

static bool parse_name(const char *name, uint64_t *first)
{
    uint64_t v = 0;
    for (int i = 0; i < 20; i++) {
        if (name[i] < '0' || name[i] > '9' || __builtin_mul_overflow(v, (uint64_t)10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(name[i] - '0'), &v))
            return false;
    }
    *first = v;
    return strcmp(name + 20, ".wal") == 0 && v > 0;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int list_segments(struct wal_survey *v, const char *dir, struct err *e)
{
    char path[WAL_PATH_MAX];
    int rc = wal_path(path, dir, "", e);
    if (rc != 0)
        return rc;
    DIR *d = opendir(path);
    if (!d)
        return err_set_errno(e, errno, "cannot open directory %s", path);
    size_t cap = 0;
    struct dirent *entry;
    while (rc == 0 && (errno = 0, entry = readdir(d)) != NULL) {
        uint64_t first;
        if (!parse_name(entry->d_name, &first))
            continue;
        uint64_t *grown = mem_grow(v->firsts, v->n_segments, &cap, 16, sizeof *grown);
        if (!grown) {
            rc = err_set(e, KITH_ENOMEM, "out of memory listing %s", path);
            break;
        }
        v->firsts = grown;
        v->firsts[v->n_segments++] = first;
    }
    if (rc == 0 && errno != 0)
        rc = err_set_errno(e, errno, "cannot read directory %s", path);
    closedir(d);
    if (rc == 0 && v->n_segments)
        qsort(v->firsts, v->n_segments, sizeof *v->firsts, by_value);
    return rc;
}

struct surveying {
    struct wal_survey *v;
    const char *dir;
    wal_note_fn *note;
    void *arg;
    uint32_t findings;
};

/* A finding: noted and survived in a check, the error in a recovery. */
static int finding(struct surveying *c, struct err *why)
{
    if (!c->note || (why->code != KITH_ECORRUPT && why->code != KITH_EFORMAT))
        return why->code;
    /* The messages begin with "file:offset: " or the file's name. */
    char where[ERR_MESSAGE_MAX];
    snprintf(where, sizeof where, "%s", why->message);
    char *colon = strstr(where, ": ");
    if (colon)
        *colon = '\0';
    c->note(c->arg, where, colon ? colon + 2 : why->message);
    c->findings++;
    return 0;
}

/* The records of one segment from its start; *last is where they end. */
static int scan_segment(struct surveying *c, struct wal_scan *s, uint64_t expected,
                        uint64_t *last, uint64_t *known, struct err *e)
{
    struct wal_entry r;
    int rc;
    *last = expected - 1;
    while ((rc = wal_scan_next(s, &r, e)) == 1) {
        if (r.record.index != *last + 1 || r.record.epoch < c->v->last_epoch)
            return err_set(
                e, KITH_ECORRUPT,
                "%s:%llu: record %llu of epoch %llu follows record %llu of epoch %llu", s->path,
                (unsigned long long)r.offset, (unsigned long long)r.record.index,
                (unsigned long long)r.record.epoch, (unsigned long long)*last,
                (unsigned long long)c->v->last_epoch);
        *last = r.record.index;
        c->v->last_epoch = r.record.epoch;
        if (r.durable > *known)
            *known = r.durable;
    }
    return rc;
}

/* After the break in segment i: the later segments' testimony. */
static int scan_later(struct surveying *c, uint32_t i, uint64_t index, uint64_t *known,
                      struct err *e)
{
    for (uint32_t k = i + 1; k < c->v->n_segments; k++) {
        struct wal_scan s;
        uint64_t durable = 0;
        bool any = false;
        int rc = wal_scan_open(&s, c->dir, c->v->firsts[k], e);
        if (rc != 0)
            return rc;
        rc = wal_scan_beyond(&s, index, &durable, &any, e);
        wal_scan_close(&s);
        if (rc != 0)
            return rc;
        if (durable > *known)
            *known = durable;
        c->v->torn = true;
    }
    return 0;
}

/* The segment s ended with record `last` and no segment begins with the next one. */
static int judge_end(struct surveying *c, struct wal_scan *s, uint32_t i, uint64_t last,
                     uint64_t known, struct err *e)
{
    const char *why = s->why;
    uint64_t durable = 0;
    int rc = wal_scan_beyond(s, last, &durable, &c->v->torn, e);
    if (rc == 0)
        rc = scan_later(c, i, last, &known, e);
    if (rc != 0)
        return rc;
    if (durable > known)
        known = durable;
    if (known > last)
        return err_set(
            e, KITH_ECORRUPT,
            "%s:%llu: record %llu is damaged or missing (%s), but the log was durable "
            "up to record %llu",
            s->path, (unsigned long long)s->offset, (unsigned long long)(last + 1), why,
            (unsigned long long)known);
    c->v->end_segment = i;
    c->v->end_offset = s->offset;
    c->v->last = last;
    return 0;
}

/* Scans segments from c->v->start; in a check goes on after a finding with the next segment. */
static int survey_segments(struct surveying *c, uint64_t known, struct err *e)
{
    struct wal_survey *v = c->v;
    int rc = 0;
    for (uint32_t i = v->start; i < v->n_segments && rc == 0; i++) {
        uint64_t first = v->firsts[i], last = first - 1;
        bool more = i + 1 < v->n_segments;
        struct wal_scan s;
        struct err why = {0};
        rc = wal_scan_open(&s, c->dir, first, &why);
        if (rc == 0) {
            rc = scan_segment(c, &s, first, &last, &known, &why);
            bool ended = rc == 0 && (!more || v->firsts[i + 1] != last + 1);
            if (ended)
                rc = judge_end(c, &s, i, last, known, &why);
            wal_scan_close(&s);
            if (ended && rc == 0)
                return 0;
        }
        if (rc != 0) {
            if (e)
                *e = why;
            rc = finding(c, &why);
        }
    }
    return rc;
}

static int missing(struct surveying *c, uint64_t from, uint64_t to, struct err *e)
{
    struct err why;
    err_set(&why, KITH_ECORRUPT, "%s/wal: the records %llu to %llu are missing", c->dir,
            (unsigned long long)from, (unsigned long long)to);
    if (e)
        *e = why;
    return finding(c, &why);
}

/* A checkpoint never removes the newest segment, so where there was one there is a log. */
static int no_segment(struct surveying *c, uint64_t after, struct err *e)
{
    char path[WAL_PATH_MAX];
    int rc = wal_path(path, c->dir, WAL_ABANDONED, e);
    if (rc != 0 || after == 0 || file_exists(path))
        return rc;
    struct err why;
    err_set(
        &why, KITH_ECORRUPT,
        "%s/wal: the log is missing, and with it what came after record %llu; restore it, or "
        "create %s to go on without it",
        c->dir, (unsigned long long)after, path);
    if (e)
        *e = why;
    return finding(c, &why);
}

static int survey_listed(struct surveying *c, uint64_t after, struct err *e)
{
    struct wal_survey *v = c->v;
    uint64_t known = v->mark.durable > v->mark.released ? v->mark.durable : v->mark.released;
    v->last = after;
    if (v->n_segments == 0)
        return known > after ? missing(c, after + 1, known, e) : no_segment(c, after, e);
    if (!c->note) {
        while (v->start + 1 < v->n_segments && v->firsts[v->start + 1] <= after + 1)
            v->start++;
    }
    if (v->firsts[v->start] > after + 1) {
        int rc = missing(c, after + 1, v->firsts[v->start] - 1, e);
        if (rc != 0)
            return rc;
    }
    return survey_segments(c, known > after ? known : after, e);
}

int wal_survey(struct wal_survey *out, const char *dir, uint64_t after, wal_note_fn *note,
               void *arg, uint32_t *findings, struct err *e)
{
    *out = (struct wal_survey){0};
    struct surveying c = {.v = out, .dir = dir, .note = note, .arg = arg};
    struct err why = {0};
    int rc = wal_mark_read(dir, &out->mark, &why);
    if (rc != 0) {
        if (e)
            *e = why;
        rc = finding(&c, &why);
    }
    if (rc == 0)
        rc = list_segments(out, dir, e);
    if (rc == 0)
        rc = survey_listed(&c, after, e);
    if (findings)
        *findings = c.findings;
    if (rc != 0)
        wal_survey_deinit(out);
    return rc;
}
