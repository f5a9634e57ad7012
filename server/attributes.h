#pragma once
/* The attributes of an element: a JSON object, kept beside a parsed form that a filter can look
 * fields up in without parsing, allocating or copying.
 *
 *   encoded = { u32 bytes of it all | u16 version (1) | u16 n_fields | u16 n_items |
 *               u16 bytes of the JSON | u32 0 |
 *               n_fields x { u32 hash of the name | u16 name at | u16 name bytes | u64 value }
 * | n_items x { u64 value } | text: the JSON as it came, then the strings of it that had
 * escapes, unescaped }
 *
 * Fields are in the order of their hashes, each name once. A value is a double, or, with all of
 * its upper 16 bits set (a NaN that no JSON number gives), { u16 n | u16 at | u16 type |
 * 0xffff }: n bytes of the text, or n items, from `at` on. Names and strings without escapes
 * lie in the JSON itself, so the parsed form costs 16 bytes a field and 8 an item of an array.
 * It is stored: another layout gets another version. All of it is relative and read unaligned.
 *
 * Values follow the filter's world: number (true and false are 1 and 0), string (unescaped),
 * null, and tuple: an array of these. An array inside an array is there as a tuple without
 * items. An object, or an array with an object anywhere in it, is ATTRIBUTE_OTHER and matches
 * nothing.
 *
 * Encoded attributes read from disk are covered by a checksum, but every offset is checked all
 * the same. Thread: any. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

enum { ATTRIBUTES_MAX_BYTES = 32768 /* of the encoded form */, ATTRIBUTES_DEPTH_MAX = 64 };

/* Parses json, which must be one JSON object (RFC 8259, without unpaired surrogates), and
 * appends the encoded form to out. Errors: KITH_EINVAL with what was expected and where, bytes
 * counted from 1 ("attributes must be a JSON object: expected ':' at byte 7, found '1'"),
 * KITH_ELIMIT (too long, nested deeper than ATTRIBUTES_DEPTH_MAX), KITH_ENOMEM; then nothing
 * was appended. Where a name comes twice the last one counts. */
int attributes_encode(struct slice json, struct buf *out, struct err *e);
/* How many of the n bytes the encoded form at their beginning takes; 0 where there is none. */
size_t attributes_bytes(const void *encoded, size_t n);
/* The JSON as it came; an empty slice where encoded is not well-formed. */
struct slice attributes_json(const void *encoded, size_t n);

enum attribute_type {
    ATTRIBUTE_NONE, /* no such field */
    ATTRIBUTE_NUMBER,
    ATTRIBUTE_STRING,
    ATTRIBUTE_NULL,
    ATTRIBUTE_TUPLE,
    ATTRIBUTE_OTHER
};
/* It points into the encoded form. */
struct attribute_value {
    enum attribute_type type;
    uint32_t n_items; /* of a tuple */
    double number;
    struct slice string; /* of a tuple: the text that its items' strings lie in */
    const void *items;   /* n_items x u64, perhaps unaligned; attribute_item reads them */
};
uint32_t attribute_name_hash(struct slice name);
/* Looks a top-level field up. hash: attribute_name_hash(name). */
struct attribute_value attributes_find(const void *encoded, size_t n, struct slice name,
                                       uint32_t hash);
/* Item i of a tuple: a number, string, null or tuple without items; ATTRIBUTE_NONE past the
 * end. */
struct attribute_value attribute_item(const struct attribute_value *tuple, uint32_t i);

/* How one value is written: a filter keeps its tuples in the same form. at + n bytes of the
 * tuple's text are below 64 KiB; n > 0 bytes of number are not NaN. */
uint64_t attribute_pack_number(double number);
uint64_t attribute_pack_string(size_t at, size_t n);
