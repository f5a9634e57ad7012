/* The settings file. Reading goes line by line through config_apply, so that a later line wins.
 *
 * Rewriting keeps every comment, every empty line and the order: a line whose setting still has
 * the value it says is copied as it stands, one whose setting has another value is replaced in
 * place, further lines of the same setting are dropped (they no longer mean anything), and
 * settings that were given somewhere else (options, CONFIG SET, an included file) and differ
 * from their default are added at the end. The new file takes the old one's place by rename,
 * with its mode: it may hold the password. */
#include "server/config_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "server/config.h"
#include "server/config_table.h"

enum { FILE_MAX_BYTES = 16 * 1024 * 1024, INCLUDE_DEPTH_MAX = 8 };

/* --- words --- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One escape after a backslash in double quotes; returns how many characters it took. */
static size_t unescape(const char *p, size_t n, struct buf *out)
{
    if (p[0] == 'x' && n >= 3 && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
        buf_u8(out, (uint8_t)(hex_digit(p[1]) * 16 + hex_digit(p[2])));
        return 3;
    }
    static const char from[] = "nrtba", to[] = "\n\r\t\b\a";
    const char *at = strchr(from, p[0]);
    buf_u8(out, (uint8_t)(at && *at ? to[at - from] : p[0]));
    return 1;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* A quoted word from the opening quote on; returns the index after the closing one, 0 if none.
 */
static size_t read_quoted(struct slice line, size_t i, struct buf *store)
{
    char quote = line.p[i++];
    while (i < line.n && line.p[i] != quote) {
        if (line.p[i] == '\\' && i + 1 < line.n && quote == '"') {
            i += 1 + unescape(line.p + i + 1, line.n - i - 1, store);
        } else if (line.p[i] == '\\' && i + 1 < line.n && line.p[i + 1] == '\'') {
            buf_u8(store, '\'');
            i += 2;
        } else {
            buf_u8(store, (uint8_t)line.p[i++]);
        }
    }
    return i < line.n ? i + 1 : 0;
}

int config_split_line(struct slice line, struct buf *store,
                      struct slice words[CONFIG_WORDS_MAX], struct err *e)
{
    size_t starts[CONFIG_WORDS_MAX + 1];
    int n = 0;
    size_t i = 0;
    for (;;) {
        while (i < line.n && is_space(line.p[i]))
            i++;
        if (i == line.n || (n == 0 && line.p[i] == '#'))
            break;
        if (n == CONFIG_WORDS_MAX)
            return err_set(e, KITH_ELIMIT, "more than %d words", CONFIG_WORDS_MAX);
        starts[n++] = store->len;
        if (line.p[i] == '"' || line.p[i] == '\'') {
            i = read_quoted(line, i, store);
            if (i == 0 || (i < line.n && !is_space(line.p[i])))
                return err_set(e, KITH_EINVAL, "unbalanced quotes");
        } else {
            while (i < line.n && !is_space(line.p[i]))
                buf_u8(store, (uint8_t)line.p[i++]);
        }
    }
    starts[n] = store->len;
    if (store->failed)
        return err_set(e, KITH_ENOMEM, "out of memory");
    for (int w = 0; w < n; w++) {
        words[w].p = store->data ? store->data + starts[w] : "";
        words[w].n = starts[w + 1] - starts[w];
    }
    return n;
}

void config_quote_word(struct buf *out, struct slice word)
{
    bool plain = word.n > 0 && word.p[0] != '#';
    for (size_t i = 0; i < word.n; i++)
        plain &= word.p[i] > ' ' && word.p[i] < 127 && word.p[i] != '"' && word.p[i] != '\'' &&
                 word.p[i] != '\\';
    if (plain) {
        buf_append(out, word.p, word.n);
        return;
    }
    buf_u8(out, '"');
    for (size_t i = 0; i < word.n; i++) {
        unsigned char ch = (unsigned char)word.p[i];
        if (ch == '"' || ch == '\\')
            buf_printf(out, "\\%c", ch);
        else if (ch < ' ' || ch == 127)
            buf_printf(out, "\\x%02x", ch);
        else
            buf_u8(out, ch);
    }
    buf_u8(out, '"');
}

/* --- reading --- */

static int load_file(struct config *c, const char *path, int depth, struct err *e);

static int apply_words(struct config *c, const struct slice *words, int n, int depth,
                       struct err *e)
{
    if (!slice_is(words[0], "include"))
        return config_apply(c, words[0], words + 1, n - 1, e);
    if (n != 2)
        return err_set(e, KITH_EINVAL, "include takes one file");
    char path[PATH_MAX];
    if (words[1].n >= sizeof path)
        return err_set(e, KITH_EINVAL, "include: path too long");
    memcpy(path, words[1].p, words[1].n);
    path[words[1].n] = '\0';
    return load_file(c, path, depth + 1, e);
}

static int load_file(struct config *c, const char *path, int depth, struct err *e)
{
    if (depth > INCLUDE_DEPTH_MAX)
        return err_set(e, KITH_ELIMIT, "include: more than %d files deep", INCLUDE_DEPTH_MAX);
    struct buf text, store;
    buf_init(&text);
    buf_init(&store);
    int rc = file_read_whole(path, FILE_MAX_BYTES, &text, e);
    struct slice left = {.p = text.data, .n = text.len}, line;
    for (int number = 1; rc == 0 && slice_cut(&left, '\n', &line); number++) {
        struct slice words[CONFIG_WORDS_MAX];
        buf_clear(&store);
        int n = config_split_line(line, &store, words, e);
        rc = n > 0 ? apply_words(c, words, n, depth, e) : n;
        if (rc != 0)
            err_wrap(e, "%s:%d", path, number);
    }
    buf_deinit(&store);
    buf_deinit(&text);
    return rc;
}

static int load_options(struct config *c, int argc, char **argv, struct err *e)
{
    for (int i = 0; i < argc;) {
        const char *name = argv[i];
        if (strncmp(name, "--", 2) != 0 || name[2] == '\0')
            return err_set(e, KITH_EINVAL,
                           "'%s' is not an option; write FILE first, then --name value", name);
        struct slice words[CONFIG_WORDS_MAX];
        int n = 0;
        words[n++] = slice_of(name + 2);
        for (i++; i < argc && strncmp(argv[i], "--", 2) != 0; i++) {
            if (n == CONFIG_WORDS_MAX)
                return err_set(e, KITH_ELIMIT, "%s: too many words", name);
            words[n++] = slice_of(argv[i]);
        }
        int rc = apply_words(c, words, n, 0, e);
        if (rc != 0)
            return err_wrap(e, "option %s", name);
    }
    return 0;
}

/* A relative path, seen from the directory the program was started in. NULL: out of memory. */
static char *absolute_path(const char *path)
{
    char cwd[PATH_MAX];
    if (path[0] == '/' || !getcwd(cwd, sizeof cwd))
        return mem_strdup(path);
    if (strcmp(path, ".") == 0)
        return mem_strdup(cwd);
    size_t n = strlen(cwd) + strlen(path) + 2;
    char *joined = mem_alloc(n);
    if (joined)
        snprintf(joined, n, "%s/%s", cwd, path);
    return joined;
}

int config_load(struct config *c, int argc, char **argv, struct err *e)
{
    int rc = 0;
    if (argc > 0 && strncmp(argv[0], "--", 2) != 0) {
        rc = load_file(c, argv[0], 0, e);
        char *file = absolute_path(argv[0]);
        config_set_file(c, file);
        if (rc == 0 && !file)
            rc = err_set(e, KITH_ENOMEM, "out of memory");
        argc--;
        argv++;
    }
    if (rc == 0)
        rc = load_options(c, argc, argv, e);
    if (rc != 0)
        return rc;
    char *dir = absolute_path(c->dir);
    if (!dir)
        return err_set(e, KITH_ENOMEM, "out of memory");
    mem_free(c->dir);
    c->dir = dir;
    return 0;
}

/* --- rewriting --- */

static void write_setting(struct config *c, const struct setting *s, struct buf *out)
{
    struct buf value;
    buf_init(&value);
    setting_print(c, s, &value);
    buf_printf(out, "%s ", s->name);
    struct slice text = {.p = value.data ? value.data : "", .n = value.len};
    if ((s->flags & SETTING_LIST) && text.n > 0)
        buf_append(out, text.p, text.n);
    else
        config_quote_word(out, text);
    buf_u8(out, '\n');
    out->failed |= value.failed;
    buf_deinit(&value);
}

/* The models that the file does not have; false: there are none. */
static bool write_models(struct config *c, const struct setting *s, const struct buf *in_file,
                         struct buf *out)
{
    struct buf value;
    buf_init(&value);
    setting_print(c, s, &value);
    struct slice left = {.p = value.data, .n = value.len}, line;
    size_t before = out->len;
    while (slice_cut(&left, '\n', &line)) {
        struct slice have = {.p = in_file->data, .n = in_file->len}, one;
        bool found = false;
        while (!found && slice_cut(&have, '\n', &one))
            found = slice_equal(one, line);
        if (!found)
            buf_printf(out, "%s %.*s\n", s->name, (int)line.n, line.p);
    }
    out->failed |= value.failed;
    buf_deinit(&value);
    return out->len > before;
}

/* Copies, replaces or drops one line. written: by settings' index; models: the lines of `model`
 * settings so far. */
static void rewrite_line(struct config *c, struct slice line, struct buf *store, bool *written,
                         struct buf *models, struct buf *out)
{
    struct slice words[CONFIG_WORDS_MAX];
    buf_clear(store);
    int n = config_split_line(line, store, words, NULL);
    const struct setting *s = n > 0 ? setting_find(words[0]) : NULL;
    struct setting_value v = {.nothing = true};
    bool keep = !s || setting_parse(s, words + 1, n - 1, &v, NULL) != 0 || v.nothing;
    if (!keep && s->type == SETTING_MODELS) {
        keep = true; /* fixed at start, each line for itself */
        buf_append_str(models, v.text);
        buf_u8(models, '\n');
    }
    if (!keep && written[s - settings]) {
        setting_value_deinit(&v);
        return;
    }
    if (!keep)
        written[s - settings] = true;
    /* `dir` was made absolute after it was read, so its text says less than its meaning. */
    if (keep || setting_is(c, s, &v) || (v.text && strcmp(s->name, "dir") == 0)) {
        buf_append(out, line.p, line.n);
        buf_u8(out, '\n');
    } else {
        write_setting(c, s, out);
    }
    setting_value_deinit(&v);
}

/* Whether the setting differs from its default and somebody said so. */
static bool worth_adding(struct config *c, const struct setting *s)
{
    if (!config_given(c, (int)(s - settings)) || s->type == SETTING_FIXED)
        return false;
    struct slice words[CONFIG_WORDS_MAX];
    struct buf store;
    buf_init(&store);
    int n = config_split_line(slice_of(s->fallback), &store, words, NULL);
    if (n <= 0) {
        words[0] = (struct slice){.p = "", .n = 0};
        n = 1;
    }
    struct setting_value v;
    bool differs = setting_parse(s, words, n, &v, NULL) != 0 || !setting_is(c, s, &v);
    setting_value_deinit(&v);
    buf_deinit(&store);
    return differs;
}

static int replace_file(const char *path, const struct buf *text, struct err *e)
{
    struct stat st;
    char beside[PATH_MAX], dir[PATH_MAX];
    if (stat(path, &st) != 0)
        return err_set_errno(e, errno, "cannot stat %s", path);
    if (snprintf(beside, sizeof beside, "%s.tmp-%d", path, (int)getpid()) >= PATH_MAX)
        return err_set(e, KITH_EINVAL, "path too long: %s", path);
    snprintf(dir, sizeof dir, "%s", path);
    *(strrchr(dir, '/') + 1) = '\0'; /* config_load made it absolute */
    int fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set_errno(e, errno, "cannot create %s", beside);
    int rc = file_pwrite_all(fd, text->data, text->len, 0, e);
    if (rc == 0 && (fchmod(fd, st.st_mode & 07777) != 0 || fdatasync(fd) != 0))
        rc = err_set_errno(e, errno, "cannot sync %s", beside);
    close(fd);
    if (rc == 0 && rename(beside, path) != 0)
        rc = err_set_errno(e, errno, "cannot rename %s to %s", beside, path);
    if (rc != 0) {
        unlink(beside);
        return rc;
    }
    return file_sync_dir(dir, e);
}

int config_rewrite(struct config *c, struct err *e)
{
    const char *path = config_file(c);
    if (!*path)
        return err_set(e, KITH_ENOTFOUND, "The server is running without a config file");
    struct buf text, store, models, out;
    buf_init(&text);
    buf_init(&store);
    buf_init(&models);
    buf_init(&out);
    bool *written = mem_calloc((size_t)settings_count(), sizeof *written);
    int rc = written ? file_read_whole(path, FILE_MAX_BYTES, &text, e)
                     : err_set(e, KITH_ENOMEM, "out of memory");
    if (rc == 0) {
        static const char mark[] = "# Added by CONFIG REWRITE";
        struct slice left = {.p = text.data, .n = text.len}, line;
        bool marked = false;
        config_lock(c);
        while (slice_cut(&left, '\n', &line)) {
            marked |= line.n == strlen(mark) && memcmp(line.p, mark, line.n) == 0;
            rewrite_line(c, line, &store, written, &models, &out);
        }
        for (const struct setting *s = settings; s->name; s++) {
            if (written[s - settings] || !worth_adding(c, s))
                continue;
            size_t before = out.len;
            if (!marked)
                buf_printf(&out, "\n%s\n", mark);
            bool wrote = s->type != SETTING_MODELS || write_models(c, s, &models, &out);
            if (s->type != SETTING_MODELS)
                write_setting(c, s, &out);
            if (!wrote)
                out.len = before;
            marked |= wrote;
        }
        rc =
            out.failed ? err_set(e, KITH_ENOMEM, "out of memory") : replace_file(path, &out, e);
        config_unlock(c);
    }
    mem_free(written);
    buf_deinit(&models);
    buf_deinit(&out);
    buf_deinit(&store);
    buf_deinit(&text);
    return rc;
}
