/* Any bytes as the JSON files of a Hugging Face folder: after the first byte, which asks for a
 * pooling, they lie one behind the other with a zero between; one without bytes is not there.
 * What must hold: an error has a message; where the folder is read, what kith-convert writes of
 * it is a GGUF file that the engine's reader takes, with as many tokens as types. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "engine/gguf.h"
#include "tools/hf_keys.h"
#include "tools/hf_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char *const files[] = {
    "config.json",  "tokenizer.json",        "tokenizer_config.json",
    "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json",
};
enum { N_FILES = sizeof files / sizeof *files, PATH_BYTES = 256 };

static char folder[64];

static void require(int holds)
{
    if (!holds)
        abort();
}

static void in_folder(char path[PATH_BYTES], const char *name)
{
    require(snprintf(path, PATH_BYTES, "%s/%s", folder, name) < PATH_BYTES);
}

static void remove_folder(void)
{
    char path[PATH_BYTES];
    for (size_t i = 0; i < N_FILES; i++) {
        in_folder(path, files[i]);
        unlink(path);
    }
    in_folder(path, "1_Pooling");
    rmdir(path);
    rmdir(folder);
}

static void make_folder(void)
{
    char path[PATH_BYTES];
    snprintf(folder, sizeof folder, "/tmp/kith-fuzz-XXXXXX");
    require(mkdtemp(folder) != NULL);
    in_folder(path, "1_Pooling");
    require(mkdir(path, 0700) == 0);
    atexit(remove_folder);
}

static void write_files(const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < N_FILES; i++) {
        char path[PATH_BYTES];
        in_folder(path, files[i]);
        const uint8_t *end = n ? memchr(data, 0, n) : NULL;
        size_t bytes = end ? (size_t)(end - data) : n;
        unlink(path);
        if (bytes > 0)
            require(file_write_whole(path, data, bytes, NULL) == 0);
        size_t step = end ? bytes + 1 : bytes;
        data += step;
        n -= step;
    }
}

static void look(const struct hf_model *m)
{
    struct gguf_write w;
    struct buf head;
    struct err e = {0};
    struct gguf *g;
    struct gguf_array a;
    gguf_write_init(&w);
    buf_init(&head);
    hf_keys_write(&w, m, "fuzz", TENSOR_F16);
    require(gguf_write_finish(&w, &head, &e) == 0);
    int rc = gguf_open_memory(&g, head.data, head.len, &e);
    require(rc == 0);
    require(gguf_get_array(g, "tokenizer.ggml.tokens", &a, &e) == 0 && a.left == m->n_vocab);
    require(gguf_get_array(g, "tokenizer.ggml.token_type", &a, &e) == 0 &&
            a.left == m->n_vocab);
    gguf_close(g);
    buf_deinit(&head);
    gguf_write_deinit(&w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hf_model m;
    struct err e = {0};
    if (n == 0)
        return 0;
    if (!folder[0])
        make_folder();
    write_files(data + 1, n - 1);
    if (hf_model_open(&m, folder, (enum hf_pooling)(data[0] % 5), &e)) {
        require(e.message[0] != '\0');
        return 0;
    }
    look(&m);
    hf_model_close(&m);
    return 0;
}
