/* Published vocabularies with the ids that their own tokenizers give: every .gguf of the folder
 * KITH_VOCAB, or ../shared/data/vocab, that has texts (.inp, between separator lines) and ids
 * (.out, a line a text, without the frame) beside it. Skipped where the folder is not there. */

#include <dirent.h>
#include <string.h>

#include "base/file.h"
#include "engine/gguf.h"
#include "engine/tokenizer.h"
#include "tests/unit/unit.h"

enum { MAX_BYTES = 1 << 20, MAX_IDS = 4096 };

static const char separator[] = "\n__ggml_vocab_test__\n";

static void read_beside(const char *path, const char *suffix, struct buf *out)
{
    char name[640];
    struct err e;
    snprintf(name, sizeof name, "%s%s", path, suffix);
    if (file_read_whole(name, MAX_BYTES, out, &e))
        fail_msg("%s", e.message);
    buf_u8(out, 0);
}

static unsigned check_texts(const char *path, const struct tokenizer *t)
{
    struct buf texts = {0}, expected = {0};
    unsigned n_texts = 0;
    read_beside(path, ".inp", &texts);
    read_beside(path, ".out", &expected);
    char *text = texts.data, *line = expected.data;
    while (text) {
        char *end = strstr(text, separator), *next = end ? end + sizeof separator - 1 : NULL;
        size_t n, bytes = end ? (size_t)(end - text) : strlen(text);
        static int32_t ids[MAX_IDS];
        struct err e;
        char *want = strsep(&line, "\n");
        if (!want || !line)
            break; /* what follows the last separator is no text */
        if (tokenizer_encode(t, text, bytes, ids, MAX_IDS, &n, &e))
            fail_msg("%s: %s", path, e.message);
        assert_true(n <= MAX_IDS);
        for (size_t i = 0; i < n; i++)
            if (strtol(want, &want, 10) != ids[i])
                fail_msg("%s: text %u, id %zu is %d:\n%.*s", path, n_texts, i, ids[i],
                         (int)bytes, text);
        assert_int_equal(strspn(want, " "), strlen(want));
        n_texts++;
        text = next;
    }
    buf_deinit(&texts);
    buf_deinit(&expected);
    return n_texts;
}

static void check_file(const char *path)
{
    struct gguf *g;
    struct tokenizer *t;
    struct err e;
    if (gguf_open(&g, path, &e) || tokenizer_new(&t, g, &e))
        fail_msg("%s: %s", path, e.message);
    gguf_close(g);
    unsigned n = check_texts(path, t);
    print_message("%s: %s, %u texts\n", path, tokenizer_model(t), n);
    assert_true(n > 20);
    tokenizer_free(t);
}

static void published_vocabularies(void **state)
{
    (void)state;
    const char *folder = getenv("KITH_VOCAB");
    folder = folder ? folder : "../shared/data/vocab";
    DIR *d = opendir(folder);
    if (!d) {
        print_message("skipped: no folder %s (KITH_VOCAB names one)\n", folder);
        skip();
    }
    unsigned n = 0;
    for (const struct dirent *entry; (entry = readdir(d));) {
        char path[512], beside[600];
        size_t length = strlen(entry->d_name);
        if (length < 5 || strcmp(entry->d_name + length - 5, ".gguf") != 0)
            continue;
        snprintf(path, sizeof path, "%s/%.200s", folder, entry->d_name);
        snprintf(beside, sizeof beside, "%s.inp", path);
        if (!file_exists(beside))
            continue;
        check_file(path);
        n++;
    }
    closedir(d);
    assert_true(n > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_vocabularies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
