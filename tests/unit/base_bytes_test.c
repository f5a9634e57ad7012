#include "tests/unit/unit.h"

#include "base/bytes.h"
#include "base/mem.h"
#include "base/utf8.h"

static void test_varint_round_trip(void **state)
{
    (void)state;
    struct rng r;
    rng_seed(&r, unit_seed());
    for (int i = 0; i < 2000; i++) {
        uint64_t v = i < 64 ? (uint64_t)1 << i : rng_next(&r) >> rng_below(&r, 64);
        struct buf b;
        buf_init(&b);
        buf_varint(&b, v);
        buf_bytes(&b, "xyz", 3);
        struct reader in = reader_of(b.data, b.len);
        assert_true(read_varint(&in) == v);
        size_t n;
        const void *p = read_bytes(&in, &n);
        assert_int_equal(n, 3);
        assert_memory_equal(p, "xyz", 3);
        assert_true(reader_done(&in));
        buf_deinit(&b);
    }
}

static void test_reader_stops_at_the_end(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    buf_u64(&b, 7);
    buf_bytes(&b, "hello", 5);
    for (size_t cut = 0; cut < b.len; cut++) {
        char *exact = mem_dup(b.data, cut); /* so that ASan sees a read past the cut */
        struct reader in = reader_of(exact, cut);
        size_t n;
        read_u64(&in);
        const void *p = read_bytes(&in, &n);
        assert_true(in.failed);
        assert_null(p);
        assert_int_equal(n, 0);
        assert_int_equal(read_u32(&in), 0);
        mem_free(exact);
    }
    buf_deinit(&b);
    struct reader overlong =
        reader_of("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10); /* more than 64 bits */
    read_varint(&overlong);
    assert_true(overlong.failed);
}

static void test_slice_parts(void **state)
{
    (void)state;
    struct slice rest = slice_of("a,,bc,"), part;
    static const char *const parts[] = {"a", "", "bc"};
    for (size_t i = 0; i < 3; i++) {
        assert_true(slice_cut(&rest, ',', &part));
        assert_true(slice_equal(part, slice_of(parts[i])));
    }
    assert_false(slice_cut(&rest, ',', &part));
    rest = slice_of("last");
    assert_true(slice_cut(&rest, ',', &part) && slice_equal(part, slice_of("last")));
    assert_false(slice_cut(&rest, ',', &part));

    uint64_t v;
    assert_true(slice_count(slice_of("0"), &v) && v == 0);
    assert_true(slice_count(slice_of("18446744073709551615"), &v) && v == UINT64_MAX);
    static const char *const none[] = {
        "", "-1", "+1", " 1", "1 ", "1x", "18446744073709551616", "99999999999999999999999"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_false(slice_count(slice_of(none[i]), &v));
}

static void test_buffer_without_memory(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    buf_append_str(&b, "kept");
    mem_fail_after(1);
    char *big = buf_reserve(&b, 1 << 20);
    mem_fail_after(0);
    assert_null(big);
    assert_true(b.failed);
    assert_int_equal(b.len, 4);
    assert_memory_equal(b.data, "kept", 4);
    assert_null(buf_reserve(&b, SIZE_MAX));
    buf_deinit(&b);
}

static void test_consume_and_clear(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "%d-%s", 42, "abc");
    buf_consume(&b, 3);
    assert_int_equal(b.len, 3);
    assert_memory_equal(b.data, "abc", 3);
    buf_consume(&b, 99);
    assert_int_equal(b.len, 0);
    buf_deinit(&b);
}

static void test_slices(void **state)
{
    (void)state;
    assert_true(slice_is(slice_of("WithScores"), "WITHSCORES"));
    assert_false(slice_is(slice_of("WITHSCORE"), "WITHSCORES"));
    assert_false(slice_is(slice_of("WITHSCORESS"), "WITHSCORES"));
    assert_false(slice_is((struct slice){"a\0b", 3}, "a"));
    assert_true(slice_equal((struct slice){NULL, 0}, slice_of("")));
}

static void test_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n, valid;
    } cases[] = {
        {"plain ascii, long enough for words", 34, 34},
        {"caf\xc3\xa9", 5, 5},
        {"\xe4\xb8\xad", 3, 3},
        {"\xf0\x9f\x98\x80", 4, 4},
        {"a\xc0\xaf", 3, 1},        /* overlong */
        {"\xe0\x80\x80", 3, 0},     /* overlong */
        {"\xed\xa0\x80", 3, 0},     /* surrogate */
        {"\xf4\x90\x80\x80", 4, 0}, /* above U+10FFFF */
        {"\xf0\x9f\x98", 3, 0},     /* cut */
        {"abcdefgh\x80", 9, 8},     /* lone continuation after a fast word */
        {"\xc3", 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(utf8_valid_prefix(cases[i].bytes, cases[i].n), cases[i].valid);
    for (uint32_t c = 0; c <= 0x10ffff; c += 7) {
        if (c >= 0xd800 && c < 0xe000)
            continue;
        char out[4];
        uint32_t back;
        size_t n = utf8_encode(c, out);
        assert_int_equal(utf8_valid_prefix(out, n), n);
        assert_int_equal(utf8_decode(out, n, &back), n);
        assert_int_equal(back, c);
    }
}

static void test_arena(void **state)
{
    (void)state;
    struct arena a;
    arena_init(&a);
    for (int round = 0; round < 3; round++) {
        char *last = NULL;
        for (int i = 0; i < 5000; i++) {
            char *p = arena_alloc(&a, 17);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % 16, 0);
            memset(p, i, 17);
            assert_true(p != last);
            last = p;
        }
        assert_non_null(arena_alloc(&a, 1 << 20));
        arena_reset(&a);
    }
    assert_null(arena_alloc(&a, SIZE_MAX - 4));
    arena_deinit(&a);
}

static void test_an_array_grows_by_doubling(void **state)
{
    (void)state;
    uint32_t *array = NULL;
    size_t cap = 0;
    for (uint32_t n = 0; n < 100; n++) {
        mem_fail_after(1);
        uint32_t *grown = mem_grow(array, n, &cap, 3, sizeof *array);
        mem_fail_after(0);
        assert_true(n < cap ? grown == array : grown == NULL);
        array = mem_grow(array, n, &cap, 3, sizeof *array);
        assert_non_null(array);
        array[n] = n;
    }
    assert_int_equal(cap, 192);
    for (uint32_t n = 0; n < 100; n++)
        assert_int_equal(array[n], n);
    size_t huge = SIZE_MAX / 4;
    assert_null(mem_grow(array, huge, &huge, 1, sizeof *array));
    assert_int_equal(huge, SIZE_MAX / 4);
    mem_free(array);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_varint_round_trip),
        cmocka_unit_test(test_reader_stops_at_the_end),
        cmocka_unit_test(test_slice_parts),
        cmocka_unit_test(test_buffer_without_memory),
        cmocka_unit_test(test_consume_and_clear),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_an_array_grows_by_doubling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
