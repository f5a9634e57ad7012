/* kith-sample: loads Markdown files into the vector set `docs`, a passage an element, and asks
 * two questions by meaning. It is what `make run` shows, and a small example of a client in C.
 */
#include <errno.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/program.h"

enum { PASSAGE_BYTES = 700, PASSAGE_BYTES_MIN = 80, PIPELINE = 64, FILE_MAX_BYTES = 16 << 20 };

static const char set_name[] = "docs";
static const char *const questions[] = {
    "What happens to my data when the machine loses power?",
    "Which model turns text into vectors, and where does it come from?",
};

struct passage {
    char name[128];
    char *text;
    size_t n;
};

struct passages {
    struct passage *list;
    size_t n, cap;
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "kith-sample: %s: %s\n", what, why);
    exit(1);
}

static void add_passage(struct passages *p, const char *file, unsigned line, struct buf *text)
{
    while (text->len > 0 && strchr(" \n", text->data[text->len - 1]))
        text->len--;
    if (text->len < PASSAGE_BYTES_MIN) {
        buf_clear(text);
        return;
    }
    if (p->n == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 256;
        p->list = realloc(p->list, p->cap * sizeof *p->list);
        if (!p->list)
            fail(file, "out of memory");
    }
    struct passage *to = &p->list[p->n++];
    snprintf(to->name, sizeof to->name, "%s:%u", file, line);
    to->n = text->len;
    to->text = malloc(text->len);
    if (!to->text)
        fail(file, "out of memory");
    memcpy(to->text, text->data, text->len);
    buf_clear(text);
}

/* A passage ends at a heading, or at a blank line once it is long enough; code and tables stay
 * with the words around them. */
static void split_file(struct passages *p, const char *file)
{
    struct buf whole, text;
    struct err e;
    buf_init(&whole);
    buf_init(&text);
    if (file_read_whole(file, FILE_MAX_BYTES, &whole, &e) != 0)
        fail(file, e.message);
    unsigned line = 1, first = 1;
    for (size_t at = 0; at < whole.len; line++) {
        const char *start = whole.data + at;
        const char *end = memchr(start, '\n', whole.len - at);
        size_t n = end ? (size_t)(end - start) : whole.len - at;
        bool heading = n > 0 && start[0] == '#', blank = n == 0;
        if (text.len > 0 && (heading || (blank && text.len >= PASSAGE_BYTES)))
            add_passage(p, file, first, &text);
        if (text.len == 0)
            first = line;
        buf_append(&text, start, n);
        buf_append(&text, "\n", 1);
        at += n + 1;
    }
    add_passage(p, file, first, &text);
    buf_deinit(&whole);
    buf_deinit(&text);
}

static void progress(size_t done, size_t total, int64_t start_us)
{
    if (!isatty(1))
        return;
    double seconds = (double)(clock_mono_us() - start_us) / 1e6;
    int width = 30, full = (int)((double)done / (double)total * width);
    printf("\r    [%.*s%*s] %zu/%zu passages, %.0f/s", full, "##############################",
           width - full, "", done, total, seconds > 0 ? (double)done / seconds : 0.0);
    if (done == total)
        printf("\n");
    fflush(stdout);
}

static redisReply *checked(redisContext *c, redisReply *r, const char *what)
{
    if (!r)
        fail(what, c->errstr);
    if (r->type == REDIS_REPLY_ERROR)
        fail(what, r->str);
    return r;
}

static void load(redisContext *c, const struct passages *p)
{
    int64_t start = clock_mono_us();
    printf("==> loading %zu passages of this project's documentation into the set \"%s\"\n",
           p->n, set_name);
    for (size_t done = 0; done < p->n;) {
        size_t batch = p->n - done < PIPELINE ? p->n - done : PIPELINE;
        for (size_t i = done; i < done + batch; i++)
            redisAppendCommand(c, "VADD %s TEXT %b %s TRUNCATE", set_name, p->list[i].text,
                               p->list[i].n, p->list[i].name);
        for (size_t i = 0; i < batch; i++) {
            void *r = NULL;
            if (redisGetReply(c, &r) != REDIS_OK)
                fail("VADD", c->errstr);
            freeReplyObject(checked(c, r, "VADD"));
        }
        done += batch;
        progress(done, p->n, start);
    }
    printf("    done in %.1f s\n", (double)(clock_mono_us() - start) / 1e6);
}

static void print_passage(const char *text, size_t n)
{
    size_t shown = 0;
    printf("      ");
    for (size_t i = 0; i < n && shown < 200; i++) {
        char ch = text[i] == '\n' ? ' ' : text[i];
        putchar(ch);
        shown++;
    }
    printf("%s\n", n > 200 ? " ..." : "");
}

static void ask(redisContext *c, const char *question)
{
    bool colour = isatty(1);
    int64_t start = clock_mono_us();
    redisReply *r = checked(
        c, redisCommand(c, "VSIM %s TEXT %s WITHSCORES COUNT 2", set_name, question), "VSIM");
    double ms = (double)(clock_mono_us() - start) / 1e3;
    printf("\n  %s%s%s   (%.1f ms)\n", colour ? "\033[1m" : "", question,
           colour ? "\033[0m" : "", ms);
    for (size_t i = 0; i + 1 < r->elements; i += 2) {
        printf("    %.4s  %s\n", r->element[i + 1]->str, r->element[i]->str);
        redisReply *text = checked(
            c, redisCommand(c, "VTEXT %s %b", set_name, r->element[i]->str, r->element[i]->len),
            "VTEXT");
        if (text->type == REDIS_REPLY_STRING)
            print_passage(text->str, text->len);
        freeReplyObject(text);
    }
    freeReplyObject(r);
}

int main(int argc, char **argv)
{
    static const char help[] = "usage: kith-sample [--port N] FILE.md ...\n";
    int port = 6379, at = 1;
    if (program_answers(argc, argv, "kith-sample", help))
        return 0;
    if (argc > 2 && strcmp(argv[1], "--port") == 0) {
        port = atoi(argv[2]);
        at = 3;
    }
    if (at >= argc) {
        fputs(help, stderr);
        return 2;
    }
    redisContext *c = redisConnect("127.0.0.1", port);
    if (!c || c->err)
        fail("cannot connect", c ? c->errstr : "out of memory");
    redisReply *card = checked(c, redisCommand(c, "VCARD %s", set_name), "VCARD");
    long long have = card->integer;
    freeReplyObject(card);
    struct passages p = {0};
    for (int i = at; i < argc; i++)
        split_file(&p, argv[i]);
    if (have == 0)
        load(c, &p);
    printf("==> asking by meaning\n");
    for (size_t i = 0; i < sizeof questions / sizeof *questions; i++)
        ask(c, questions[i]);
    for (size_t i = 0; i < p.n; i++)
        free(p.list[i].text);
    free(p.list);
    redisFree(c);
    return 0;
}
