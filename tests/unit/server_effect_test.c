/* Effects: what is encoded is decoded the same; damaged records are refused, never overrun. */
#include "tests/unit/unit.h"

#include <string.h>

#include "base/mem.h"
#include "server/effect.h"

enum { N_EFFECTS = 13 };

static const float vector[] = {1.0f, -2.5f, 0.0f};
static const struct vset_model model = {"minilm", "0123456789abcdef0123456789abcdef", "mean"};
static const struct vset_params params = {.index = {.kind = INDEX_HNSW,
                                                    .quant = INDEX_BIN,
                                                    .metric = INDEX_IP,
                                                    .dim = 3,
                                                    .m = 16,
                                                    .ef_construction = 200},
                                          .projection_dim = 300,
                                          .keep = VSET_KEEP_F16,
                                          .declared = true};

static void encode_all(struct buf *b)
{
    const struct slice text = slice_of("a text"), json = slice_of("{\"a\":1}"), none = {0};
    struct effect effects[N_EFFECTS] = {
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
         .made = true,
         .params = &params,
         .dim = 3,
         .vector = vector,
         .model = &model,
         .text = &text,
         .attributes = &json,
         .expire_ms = 1234567890123},
        {.op = EFFECT_VADD,
         .key = slice_of("s"),
         .value = slice_of("f"),
         .params = &params, /* there was a set, so they are not told */
         .dim = 3,
         .vector = vector},
        {.op = EFFECT_VREM, .key = slice_of("s"), .value = slice_of("e")},
        {.op = EFFECT_VCREATE, .key = slice_of("t"), .params = &params},
        {.op = EFFECT_VSETATTR,
         .key = slice_of("s"),
         .value = slice_of("f"),
         .attributes = &json},
        {.op = EFFECT_VSETATTR,
         .key = slice_of("s"),
         .value = slice_of("f"),
         .attributes = &none},
        {.op = EFFECT_VSWITCH, .db = 2, .key = slice_of("s")},
    };
    for (size_t i = 0; i < N_EFFECTS; i++) {
        size_t before = b->len;
        effect_encode(b, &effects[i]);
        assert_true(b->len - before <= effect_bytes(&effects[i]));
    }
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

static void assert_params(const struct vset_params *p)
{
    assert_non_null(p);
    assert_int_equal(p->index.kind, params.index.kind);
    assert_int_equal(p->index.quant, params.index.quant);
    assert_int_equal(p->index.metric, params.index.metric);
    assert_int_equal(p->index.dim, params.index.dim);
    assert_int_equal(p->index.m, params.index.m);
    assert_int_equal(p->index.ef_construction, params.index.ef_construction);
    assert_int_equal(p->projection_dim, params.projection_dim);
    assert_int_equal(p->keep, params.keep);
    assert_int_equal(p->declared, params.declared);
}

static void check_keys(struct reader *r, struct effect *f, struct effect_storage *storage)
{
    assert_true(effect_decode(r, f, storage));
    assert_int_equal(f->op, EFFECT_SET);
    assert_int_equal(f->db, 3);
    assert_int_equal(f->expire_ms, 1234567890123);
    assert_true(slice_equal(f->value, (struct slice){"v\0w", 3}));
    for (int i = 0; i < 4; i++)
        assert_true(effect_decode(r, f, storage));
    assert_int_equal(f->to_db, 7);
    assert_true(slice_equal(f->to_key, slice_of("b")));
    assert_true(effect_decode(r, f, storage));
    assert_int_equal(f->db, EFFECT_ALL_DBS);
}

static void check_adds(struct reader *r, struct effect *f, struct effect_storage *storage)
{
    assert_true(effect_decode(r, f, storage));
    assert_int_equal(f->dim, 3);
    assert_memory_equal(f->vector, vector, sizeof vector);
    assert_string_equal(f->model->name, model.name);
    assert_string_equal(f->model->hash, model.hash);
    assert_string_equal(f->model->pooling, model.pooling);
    assert_true(slice_equal(*f->text, slice_of("a text")));
    assert_true(slice_equal(*f->attributes, slice_of("{\"a\":1}")));
    assert_int_equal(f->expire_ms, 1234567890123);
    assert_true(f->made);
    assert_params(f->params);
    assert_true(effect_decode(r, f, storage));
    assert_false(f->made);
    assert_null(f->params);
    assert_null(f->model);
    assert_null(f->text);
    assert_null(f->attributes);
    assert_int_equal(f->expire_ms, 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    encode_all(&b);
    struct reader r = reader_of(b.data, b.len);
    struct effect f;
    struct effect_storage storage;
    assert_int_equal(read_u8(&r), EFFECT_VERSION);
    check_keys(&r, &f, &storage);
    check_adds(&r, &f, &storage);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.op, EFFECT_VREM);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.op, EFFECT_VCREATE);
    assert_params(f.params);
    assert_null(f.model);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.op, EFFECT_VSETATTR);
    assert_true(slice_equal(*f.attributes, slice_of("{\"a\":1}")));
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.attributes->n, 0);
    assert_true(effect_decode(&r, &f, &storage));
    assert_int_equal(f.op, EFFECT_VSWITCH);
    assert_int_equal(f.db, 2);
    assert_true(slice_equal(f.key, slice_of("s")));
    assert_false(effect_decode(&r, &f, &storage));
    assert_true(reader_done(&r));
    buf_deinit(&b);
}

static bool decodes(const struct effect *f)
{
    struct buf b;
    bool failed;
    buf_init(&b);
    effect_encode(&b, f);
    uint32_t n = decode_all(b.data, b.len, &failed);
    buf_deinit(&b);
    return n == 1 && !failed;
}

/* One field of a set's parameters past its limit at a time. */
static void test_limits(void **state)
{
    (void)state;
    struct vset_params good = params, p = good;
    struct effect create = {.op = EFFECT_VCREATE, .key = slice_of("s"), .params = &p};
    struct effect add = {.op = EFFECT_VADD,
                         .key = slice_of("s"),
                         .params = &p,
                         .made = true,
                         .dim = 3,
                         .vector = vector};
    assert_true(decodes(&create) && decodes(&add));
#define REFUSED(field, bad)                                                                    \
    do {                                                                                       \
        p = good;                                                                              \
        p.field = bad;                                                                         \
        assert_false(decodes(&create));                                                        \
        assert_false(decodes(&add));                                                           \
    } while (0)
    REFUSED(index.kind, 0);
    REFUSED(index.kind, 3);
    REFUSED(index.quant, 0);
    REFUSED(index.quant, INDEX_BIN + 1);
    REFUSED(index.metric, INDEX_IP + 1);
    REFUSED(keep, VSET_KEEP_F16 + 1);
    REFUSED(index.dim, 0);
    REFUSED(index.dim, INDEX_DIM_MAX + 1);
    REFUSED(index.m, INDEX_M_MIN - 1);
    REFUSED(index.m, INDEX_M_MAX + 1);
    REFUSED(index.ef_construction, INDEX_EF_MAX + 1);
    REFUSED(projection_dim, 2);
    REFUSED(projection_dim, INDEX_DIM_MAX + 1);
#undef REFUSED
    p = good;
    add.expire_ms = -1;
    assert_false(decodes(&add));
    add.expire_ms = 0;
    add.dim = 2; /* not the set's */
    assert_false(decodes(&add));
}

static void test_cut_records_fail(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    encode_all(&b);
    uint32_t whole_at_cut = 0;
    for (size_t cut = 1; cut < b.len; cut++) {
        char *exact = mem_dup(b.data, cut);
        bool failed;
        uint32_t n = decode_all(exact, cut, &failed);
        assert_true(n < N_EFFECTS);
        whole_at_cut += !failed; /* only where the cut falls between two effects */
        mem_free(exact);
    }
    assert_int_equal(whole_at_cut, N_EFFECTS);
    buf_deinit(&b);
}

static void test_damaged_records_stay_in_bounds(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    struct buf b;
    buf_init(&b);
    encode_all(&b);
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
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_cut_records_fail),
        cmocka_unit_test(test_damaged_records_stay_in_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
