/* Effects: what is encoded is decoded the same; damaged records are refused, never overrun. */
#include "tests/unit/unit.h"

#include <string.h>

#include "base/mem.h"
#include "server/effect.h"

static const float vector[] = {1.0f, -2.5f, 0.0f};
static const struct vset_model model = {"minilm", "0123456789abcdef0123456789abcdef", "mean"};

static void encode_all(struct buf *b, const struct slice *text)
{
    struct effect effects[] = {
        {.op = EFFECT_SET,
         .db = 3,
         .key = slice_of("k"),
         .value = {"v\0w", 3},
         .expire_ms = 1234567890123},
        {.op = EFFECT_APPEND, .key = slice_of("k"), .value = slice_of("tail")},
        {.op = EFFECT_DEL, .db = 15, .key = slice_of("")},
        {.op = EFFECT_EXPIRE, .key = slice_of("k"), .expire_ms = 0},
        {.op = EFFECT_RENAME, .key = slice_of("a"), .to_db = 7, .to_key = slice_of("b")},
        {.op = EFFECT_FLUSH, .db = EFFECT_ALL_DBS},
        {.op = EFFECT_VADD,
         .key = slice_of("s"),
         .value = slice_of("e"),
         .quant = INDEX_INT8,
         .m = 16,
         .ef = 200,
         .dim = 3,
         .vector = vector,
         .model = &model,
         .text = text},
        {.op = EFFECT_VADD,
         .key = slice_of("s"),
         .value = slice_of("f"),
         .quant = INDEX_F32,
         .m = 4,
         .ef = 1,
         .dim = 3,
         .vector = vector},
        {.op = EFFECT_VREM, .key = slice_of("s"), .value = slice_of("e")},
    };
    for (size_t i = 0; i < sizeof effects / sizeof *effects; i++)
        effect_encode(b, &effects[i]);
}

static uint32_t decode_all(const void *p, size_t n, bool *failed)
{
    struct reader r = reader_of(p, n);
    struct effect f;
    struct effect_storage storage;
    uint32_t count = 0;
    read_u8(&r);
    while (effect_decode(&r, &f, &storage))
        count++;
    *failed = r.failed;
    return count;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct slice text = slice_of("a text");
    struct buf b;
    buf_init(&b);
    encode_all(&b, &text);
    struct reader r = reader_of(b.data, b.len);
    struct effect f;
    struct effect_storage storage;
    assert_int_equal(read_u8(&r), EFFECT_VERSION);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.op, EFFECT_SET);
    assert_int_equal(f.db, 3);
    assert_int_equal(f.expire_ms, 1234567890123);
    assert_true(slice_equal(f.value, (struct slice){"v\0w", 3}));
    for (int i = 0; i < 4; i++)
        assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.to_db, 7);
    assert_true(slice_equal(f.to_key, slice_of("b")));
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.db, EFFECT_ALL_DBS);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.dim, 3);
    assert_memory_equal(f.vector, vector, sizeof vector);
    assert_string_equal(f.model->name, model.name);
    assert_string_equal(f.model->hash, model.hash);
    assert_string_equal(f.model->pooling, model.pooling);
    assert_true(slice_equal(*f.text, text));
    assert_true(effect_decode(&r, &f, &storage));
    assert_null(f.model);
    assert_null(f.text);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.op, EFFECT_VREM);
    assert_false(effect_decode(&r, &f, &storage));
    assert_true(reader_done(&r));
    buf_deinit(&b);
}

static void test_cut_records_fail(void **state)
{
    (void)state;
    struct slice text = slice_of("a text");
    struct buf b;
    buf_init(&b);
    encode_all(&b, &text);
    uint32_t whole_at_cut = 0;
    for (size_t cut = 1; cut < b.len; cut++) {
        char *exact = mem_dup(b.data, cut);
        bool failed;
        uint32_t n = decode_all(exact, cut, &failed);
        assert_true(n < 9);
        whole_at_cut += !failed; /* only where the cut falls between two effects */
        mem_free(exact);
    }
    assert_int_equal(whole_at_cut, 9);
    buf_deinit(&b);
}

static void test_damaged_records_stay_in_bounds(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct slice text = slice_of("a text");
    struct buf b;
    buf_init(&b);
    encode_all(&b, &text);
    for (int i = 0; i < 20000; i++) {
        char *copy = mem_dup(b.data, b.len);
        for (uint64_t flips = 1 + rng_below(&r, 4); flips > 0; flips--)
            copy[rng_below(&r, b.len)] ^= (char)(1 << rng_below(&r, 8));
        bool failed;
        assert_true(decode_all(copy, b.len, &failed) <= b.len);
        mem_free(copy);
    }
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_cut_records_fail),
        cmocka_unit_test(test_damaged_records_stay_in_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
