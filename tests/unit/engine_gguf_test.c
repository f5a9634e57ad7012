/* The GGUF reader against files that are wrong in one place each, files cut at every length,
 * and allocations that fail. */

#include "base/mem.h"
#include "engine/model.h"
#include "engine/tokenizer.h"
#include "tests/unit/engine_fixture.h"
#include "tests/unit/unit.h"

static const struct fixture_shape shape = {
    .n_embd = 4, .n_heads = 2, .n_ff = 8, .n_ctx = 16, .n_layers = 1};

static int open_fixture(struct fixture *f, struct gguf **g, struct err *e)
{
    struct buf b;
    buf_init(&b);
    fixture_finish(f, &b);
    int rc = gguf_open_memory(g, b.data, b.len, e);
    buf_deinit(&b);
    return rc;
}

static void reads_all_integer_types(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    fixture_key(&f, "u8", GGUF_U8);
    buf_u8(&f.keys, 200);
    fixture_key(&f, "i16", GGUF_I16);
    buf_u8(&f.keys, 0xff);
    buf_u8(&f.keys, 0xff);
    fixture_key(&f, "i64", GGUF_I64);
    buf_u64(&f.keys, 1ull << 40);
    fixture_key(&f, "u64", GGUF_U64);
    buf_u64(&f.keys, UINT64_MAX);
    fixture_key(&f, "yes", GGUF_BOOL);
    buf_u8(&f.keys, 1);
    fixture_f32(&f, "f", 1.5f);
    fixture_key(&f, "same", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_I32);
    buf_u64(&f.keys, 3);
    for (int i = 0; i < 3; i++)
        buf_u32(&f.keys, 12);
    fixture_key(&f, "different", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_I32);
    buf_u64(&f.keys, 2);
    buf_u32(&f.keys, 1);
    buf_u32(&f.keys, 2);
    struct gguf *g;
    struct err e;
    assert_int_equal(open_fixture(&f, &g, &e), 0);
    uint64_t v;
    bool b;
    float x;
    assert_int_equal(gguf_get_uint(g, "u8", &v, &e), 0);
    assert_int_equal(v, 200);
    assert_int_equal(gguf_get_uint(g, "i16", &v, &e), KITH_EFORMAT); /* -1 */
    assert_int_equal(gguf_get_uint(g, "i64", &v, &e), 0);
    assert_true(v == 1ull << 40);
    assert_int_equal(gguf_get_uint(g, "u64", &v, &e), KITH_EFORMAT);
    assert_int_equal(gguf_get_bool(g, "yes", &b, &e), 0);
    assert_true(b);
    assert_int_equal(gguf_get_bool(g, "u8", &b, &e), KITH_EFORMAT);
    assert_int_equal(gguf_get_f32(g, "f", &x, &e), 0);
    assert_true(x == 1.5f);
    assert_int_equal(gguf_get_f32(g, "u8", &x, &e), 0);
    assert_true(x == 200.0f);
    assert_int_equal(gguf_get_uint(g, "f", &v, &e), KITH_EFORMAT);
    assert_int_equal(gguf_get_uint(g, "same", &v, &e), 0);
    assert_int_equal(v, 12);
    assert_int_equal(gguf_get_uint(g, "different", &v, &e), KITH_EFORMAT);
    assert_int_equal(gguf_get_uint(g, "absent", &v, &e), KITH_ENOTFOUND);
    gguf_close(g);
    fixture_deinit(&f);
}

static void reads_version_2(void **state)
{
    (void)state;
    struct fixture f;
    struct gguf *g;
    struct err e;
    for (uint32_t version = 1; version <= 4; version++) {
        fixture_init(&f);
        f.version = version;
        int rc = open_fixture(&f, &g, &e);
        assert_int_equal(rc, version == 2 || version == 3 ? 0 : KITH_EUNSUPPORTED);
        if (rc == 0)
            gguf_close(g);
        fixture_deinit(&f);
    }
    fixture_init(&f);
    f.version = 3u << 24; /* as a big-endian writer leaves it */
    assert_int_equal(open_fixture(&f, &g, &e), KITH_EUNSUPPORTED);
    fixture_deinit(&f);
}

static void refuse(struct fixture *f, int code, const char *word)
{
    struct gguf *g;
    struct err e = {0};
    assert_int_equal(open_fixture(f, &g, &e), code);
    if (!strstr(e.message, word))
        fail_msg("'%s' does not say '%s'", e.message, word);
    fixture_deinit(f);
}

static void refuses_duplicates(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    fixture_u32(&f, "twice", 1);
    fixture_u32(&f, "once", 1);
    fixture_u32(&f, "twice", 1);
    refuse(&f, KITH_EFORMAT, "'twice' appears twice");
    fixture_init(&f);
    fixture_tensor(&f, "t", TENSOR_F32, 8, 0);
    fixture_tensor(&f, "t", TENSOR_F32, 8, 0);
    refuse(&f, KITH_EFORMAT, "'t' appears twice");
}

/* One tensor info after the other is written by hand: type, dims and offset as given. */
static void raw_tensor(struct fixture *f, const char *name, uint32_t n_dims, const uint64_t *ne,
                       uint32_t type, uint64_t offset)
{
    fixture_text(&f->infos, name);
    buf_u32(&f->infos, n_dims);
    for (uint32_t d = 0; d < n_dims; d++)
        buf_u64(&f->infos, ne[d]);
    buf_u32(&f->infos, type);
    buf_u64(&f->infos, offset);
    f->n_tensors++;
}

static void refuses_bad_tensors(void **state)
{
    (void)state;
    const uint64_t eight[] = {8, 1, 1, 1, 1}, zero[] = {0}, odd[] = {33};
    const uint64_t huge[] = {1ull << 32, 1ull << 32}, most[] = {1ull << 62};
    static const struct {
        uint32_t n_dims;
        int shape;
        uint32_t type;
        uint64_t offset;
        int code;
        const char *word;
    } cases[] = {
        {1, 0, TENSOR_F32, 8, KITH_EFORMAT, "aligned"},
        {1, 0, TENSOR_F32, 64, KITH_EFORMAT, "cut short"},
        {1, 0, TENSOR_F32, UINT64_MAX - 31, KITH_EFORMAT, "cut short"},
        {1, 0, 10, 0, KITH_EUNSUPPORTED, "'bad': type 10 (Q2_K) is not computed here"},
        {1, 0, 4, 0, KITH_EUNSUPPORTED, "'bad': type 4 (Q4_2) was removed"},
        {1, 0, UINT32_MAX, 0, KITH_EUNSUPPORTED, "type 4294967295 (unknown)"},
        {1, 0, TENSOR_Q4_K, 0, KITH_EFORMAT, "no multiple of the 256 of a Q4_K"},
        {1, 0, TENSOR_IQ4_NL, 0, KITH_EFORMAT, "no multiple of the 32 of a IQ4_NL"},
        {0, 0, TENSOR_F32, 0, KITH_EFORMAT, "0 dimensions"},
        {5, 0, TENSOR_F32, 0, KITH_EFORMAT, "5 dimensions"},
        {1, 1, TENSOR_F32, 0, KITH_EFORMAT, "a dimension of 0"},
        {1, 2, TENSOR_Q8_0, 0, KITH_EFORMAT, "no multiple"},
        {2, 3, TENSOR_F32, 0, KITH_EFORMAT, "overflows"},
        {1, 4, TENSOR_F32, 0, KITH_EFORMAT, "overflows"},
    };
    const uint64_t *shapes[] = {eight, zero, odd, huge, most};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        fixture_init(&f);
        raw_tensor(&f, "bad", cases[i].n_dims, shapes[cases[i].shape], cases[i].type,
                   cases[i].offset);
        for (int b = 0; b < 64; b++)
            buf_u8(&f.data, 0);
        refuse(&f, cases[i].code, cases[i].word);
    }
}

/* Each type with bytes for just two rows of two blocks, then with one byte less. */
static void reads_every_type(void **state)
{
    (void)state;
    enum tensor_type type;
    const struct block_type *b;
    for (size_t i = 0; (b = block_type_at(i, &type)); i++)
        for (size_t missing = 0; missing < 2; missing++) {
            const uint64_t ne[] = {2 * b->elements, 2};
            struct fixture f;
            fixture_init(&f);
            raw_tensor(&f, "t", 2, ne, (uint32_t)type, 0);
            for (size_t n = 0; n < 4 * b->bytes - missing; n++)
                buf_u8(&f.data, (uint8_t)(n * 7 & 0x3f));
            if (missing) {
                refuse(&f, KITH_EFORMAT, "cut short");
                continue;
            }
            struct gguf *g;
            struct err e;
            float row[2 * SUPERBLOCK_ELEMENTS];
            assert_int_equal(open_fixture(&f, &g, &e), 0);
            assert_int_equal(gguf_tensor(g, "t")->bytes, 4 * b->bytes);
            tensor_row_f32(gguf_tensor(g, "t"), 1, row);
            gguf_close(g);
            fixture_deinit(&f);
        }
}

static void keys_are_those_of_the_file(void **state)
{
    (void)state;
    struct fixture f;
    struct gguf *g;
    struct err e;
    fixture_init(&f);
    fixture_string(&f, "z", "last in the alphabet, first in the file");
    fixture_strings(&f, "m", fixture_tokens, 3);
    fixture_u32(&f, "a", 7);
    assert_int_equal(open_fixture(&f, &g, &e), 0);
    struct buf all;
    buf_init(&all);
    for (size_t i = 0; i < gguf_n_keys(g); i++) {
        struct slice name, record;
        gguf_key_at(g, i, &name, &record);
        assert_int_equal(name.n, 1);
        assert_int_equal(name.p[0], "zma"[i]);
        buf_append(&all, record.p, record.n);
    }
    assert_int_equal(all.len, f.keys.len);
    assert_memory_equal(all.data, f.keys.data, all.len);
    assert_int_equal(gguf_alignment(g), 32);
    buf_deinit(&all);
    gguf_close(g);
    fixture_deinit(&f);
}

static void refuses_overlap(void **state)
{
    (void)state;
    const uint64_t sixteen[] = {16}, eight[] = {8};
    struct fixture f;
    fixture_init(&f);
    raw_tensor(&f, "a", 1, eight, TENSOR_F32, 32);
    raw_tensor(&f, "b", 1, sixteen, TENSOR_F32, 0);
    for (int b = 0; b < 96; b++)
        buf_u8(&f.data, 0);
    refuse(&f, KITH_EFORMAT, "overlap");
    /* A gap is harmless. */
    fixture_init(&f);
    raw_tensor(&f, "a", 1, eight, TENSOR_F32, 64);
    raw_tensor(&f, "b", 1, eight, TENSOR_F32, 0);
    for (int b = 0; b < 96; b++)
        buf_u8(&f.data, 0);
    struct gguf *g;
    struct err e;
    assert_int_equal(open_fixture(&f, &g, &e), 0);
    assert_true((uintptr_t)gguf_tensor(g, "a")->data % 32 == 0);
    assert_null(gguf_tensor(g, "c"));
    gguf_close(g);
    fixture_deinit(&f);
}

static void refuses_lying_counts(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f);
    f.n_keys = 1u << 15;
    refuse(&f, KITH_EFORMAT, "more than it has bytes for");
    fixture_init(&f);
    f.n_tensors = UINT64_MAX;
    refuse(&f, KITH_ELIMIT, "at most");
    fixture_init(&f);
    fixture_key(&f, "long", GGUF_STRING);
    buf_u64(&f.keys, UINT64_MAX - 4);
    refuse(&f, KITH_EFORMAT, "'long' runs out");
    fixture_init(&f);
    fixture_key(&f, "many", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_U64);
    buf_u64(&f.keys, 1ull << 61);
    refuse(&f, KITH_EFORMAT, "'many' has more elements");
    fixture_init(&f);
    fixture_key(&f, "strings", GGUF_ARRAY);
    buf_u32(&f.keys, GGUF_STRING);
    buf_u64(&f.keys, UINT64_MAX);
    refuse(&f, KITH_EFORMAT, "'strings' runs out");
    fixture_init(&f);
    fixture_u32(&f, "general.alignment", 8);
    refuse(&f, KITH_EFORMAT, "general.alignment is 8");
}

/* Whatever length a file is cut to, and whatever byte is flipped, opening and binding end with
 * an answer; the sanitizers see to it that nothing was read outside. */
static void survives_cuts_and_flips(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    fixture_model(&b, &shape, TENSOR_F32);
    size_t refused = 0;
    for (int flip = 0; flip <= 1; flip++)
        for (size_t i = 0; i < b.len; i += flip ? 1 : 7) {
            if (flip)
                b.data[i] = (char)(b.data[i] ^ 0x81);
            struct gguf *g;
            struct err e;
            if (gguf_open_memory(&g, b.data, flip ? b.len : i, &e)) {
                refused++;
            } else {
                struct model model;
                struct tokenizer *w;
                if (model_bind(&model, g, &e) == 0)
                    model_unbind(&model);
                if (tokenizer_new(&w, g, &e) == 0)
                    tokenizer_free(w);
                gguf_close(g);
            }
            if (flip)
                b.data[i] = (char)(b.data[i] ^ 0x81);
        }
    assert_true(refused > b.len / 7);
    buf_deinit(&b);
}

static void survives_failed_allocations(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    fixture_model(&b, &shape, TENSOR_F32);
    int rc = KITH_ENOMEM;
    long n = 1;
    for (; rc == KITH_ENOMEM && n < 1000; n++) {
        struct gguf *g = NULL;
        struct err e;
        struct model model;
        struct tokenizer *w = NULL;
        mem_fail_after(n);
        rc = gguf_open_memory(&g, b.data, b.len, &e);
        if (!rc && !(rc = model_bind(&model, g, &e))) {
            rc = tokenizer_new(&w, g, &e);
            model_unbind(&model);
        }
        mem_fail_after(0);
        tokenizer_free(w);
        gguf_close(g);
    }
    assert_int_equal(rc, 0);
    assert_true(n > 6);
    buf_deinit(&b);
}

static void says_which_file(void **state)
{
    (void)state;
    struct gguf *g;
    struct err e;
    assert_int_equal(gguf_open(&g, "/nonexistent/model.gguf", &e), KITH_ENOTFOUND);
    assert_non_null(strstr(e.message, "/nonexistent/model.gguf"));
    assert_int_equal(gguf_open_memory(&g, "GGML", 4, &e), KITH_EFORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_all_integer_types),
        cmocka_unit_test(reads_version_2),
        cmocka_unit_test(refuses_duplicates),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(reads_every_type),
        cmocka_unit_test(keys_are_those_of_the_file),
        cmocka_unit_test(refuses_overlap),
        cmocka_unit_test(refuses_lying_counts),
        cmocka_unit_test(survives_cuts_and_flips),
        cmocka_unit_test(survives_failed_allocations),
        cmocka_unit_test(says_which_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
