#pragma once
/* AMX: eight tiles, each of up to 16 rows of 64 bytes, and a product of two of them.
 *
 * Only the kernels that use tiles include this. Shapes are set for all tiles at once, and hold
 * for the calling thread until tile_release(). The number of a tile is a literal 0 .. 7.
 *
 *   TILE_ZERO(t)
 *   TILE_LOAD(t, from, stride)    one row each `stride` bytes; no alignment is needed
 *   TILE_STORE(t, to, stride)
 *   TILE_DPBUSD(c, a, b)          c[m][n] += sum over k of a[m][k] b[k / 4][4 n + k % 4]:
 *                                 a unsigned bytes, b signed ones, c 32-bit integers
 *
 * Under KITH_EMULATED_ISAS the tiles are plain arrays, and what the processor would answer with
 * SIGILL or SIGSEGV, and tiles left configured, end the program. Intel 64 and IA-32
 * Architectures Software Developer's Manual, volume 2, "TILELOADD", "LDTILECFG", "TDPBUSD". */

#include <stddef.h>
#include <stdint.h>

/* As LDTILECFG reads it, 64 bytes. Of 16 tiles palette 1 has the first eight. */
struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_shapes) == 64, "what LDTILECFG reads");

#if KITH_EMULATED_ISAS

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, TILE_ROWS_MAX = 16, TILE_ROW_BYTES_MAX = 64 };

struct tiles_emulated {
    bool configured;
    struct tile_shapes shapes;
    uint8_t bytes[TILES][TILE_ROWS_MAX][TILE_ROW_BYTES_MAX];
};
static _Thread_local struct tiles_emulated tiles_emulated;

static inline void tile_need(bool ok)
{
    if (!ok)
        abort();
}

static inline void tile_configure(const struct tile_shapes *shapes)
{
    struct tiles_emulated *t = &tiles_emulated;
    tile_need(!t->configured && shapes->palette == 1 && shapes->start_row == 0);
    for (size_t i = 0; i < sizeof shapes->reserved; i++)
        tile_need(shapes->reserved[i] == 0);
    for (int i = 0; i < 16; i++) {
        int rows = shapes->rows[i], bytes = shapes->row_bytes[i];
        tile_need(i < TILES ? rows <= TILE_ROWS_MAX && bytes <= TILE_ROW_BYTES_MAX
                            : rows == 0 && bytes == 0);
        tile_need((rows == 0) == (bytes == 0));
    }
    memset(t, 0, sizeof *t);
    t->shapes = *shapes;
    t->configured = true;
}

static inline void tile_release(void)
{
    tile_need(tiles_emulated.configured);
    tiles_emulated.configured = false;
}

static inline int tile_rows(int tile)
{
    tile_need(tiles_emulated.configured && tile >= 0 && tile < TILES &&
              tiles_emulated.shapes.rows[tile] > 0);
    return tiles_emulated.shapes.rows[tile];
}

static inline int tile_row_bytes(int tile)
{
    tile_need(tile_rows(tile) > 0);
    return tiles_emulated.shapes.row_bytes[tile];
}

static inline void tile_zero(int tile)
{
    tile_need(tile_rows(tile) > 0);
    memset(tiles_emulated.bytes[tile], 0, sizeof tiles_emulated.bytes[tile]);
}

static inline void tile_load(int tile, const void *from, size_t stride)
{
    tile_zero(tile); /* what is beyond the shape becomes zero */
    for (int r = 0; r < tile_rows(tile); r++)
        memcpy(tiles_emulated.bytes[tile][r], (const char *)from + (size_t)r * stride,
               (size_t)tile_row_bytes(tile));
}

static inline void tile_store(int tile, void *to, size_t stride)
{
    for (int r = 0; r < tile_rows(tile); r++)
        memcpy((char *)to + (size_t)r * stride, tiles_emulated.bytes[tile][r],
               (size_t)tile_row_bytes(tile));
}

static inline void tile_dpbusd(int c, int a, int b)
{
    tile_need(c != a && c != b && a != b);
    tile_need(tile_rows(c) == tile_rows(a) && tile_row_bytes(c) == tile_row_bytes(b) &&
              tile_row_bytes(a) == 4 * tile_rows(b) && tile_row_bytes(c) % 4 == 0);
    for (int m = 0; m < tile_rows(c); m++)
        for (int n = 0; n < tile_row_bytes(c) / 4; n++) {
            uint8_t *at = &tiles_emulated.bytes[c][m][4 * n];
            int32_t sum;
            memcpy(&sum, at, sizeof sum);
            for (int k = 0; k < tile_row_bytes(a); k++)
                sum += tiles_emulated.bytes[a][m][k] *
                       (int8_t)tiles_emulated.bytes[b][k / 4][4 * n + k % 4];
            memcpy(at, &sum, sizeof sum);
        }
}

#define TILE_ZERO(t) tile_zero(t)
#define TILE_LOAD(t, from, stride) tile_load(t, from, stride)
#define TILE_STORE(t, to, stride) tile_store(t, to, stride)
#define TILE_DPBUSD(c, a, b) tile_dpbusd(c, a, b)

#elif defined(__AMX_INT8__)

#include <immintrin.h>

static inline void tile_configure(const struct tile_shapes *shapes)
{
    _tile_loadconfig(shapes);
}

static inline void tile_release(void)
{
    _tile_release();
}

#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, from, stride) _tile_loadd(t, from, stride)
#define TILE_STORE(t, to, stride) _tile_stored(t, to, stride)
#define TILE_DPBUSD(c, a, b) _tile_dpbusd(c, a, b)

#endif
