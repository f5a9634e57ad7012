/* Products of packed matrices (the layouts are drawn in kernels.h).
 *
 * All products but AMX's hold a tile of TILE_ROWS rows by one panel of two vectors in registers
 * and run down k; one element (f32) or four (int8) of each row are broadcast against the two
 * vectors of weights. The panel's bytes are the outer loop and the rows the inner one, so a
 * panel comes from the far caches once for all the rows of a call, and the rows, a few tens,
 * stay in the first two.
 *
 * int8, one 32-input block of the AVX-512 tile of 6 x 32 (96 VPDPBUSD, then 12 conversions and
 * 12 multiply-adds with the block's scales):
 *
 *      codes of row r          weights of the panel, 64 bytes a vector
 *      [k0 k1 k2 k3] ──bcast──► [w(0,0..3) w(1,0..3) ... w(15,0..3)] [w(16,0..3) ...]
 *                                  └── acc[r][0] lane 0  +=  k0 w + k1 w + k2 w + k3 w
 *
 * 12 integer and 12 float accumulators, 2 weights and the broadcast use 27 of the 32 registers.
 * The scale of 32 inputs is that of Q8_0 and is kept exactly: requantizing the weights to one
 * scale a row was tried and cost more accuracy (cosine 0.9957 on three-token texts) than the
 * ninth of the time that the block scales take.
 *
 * int16 is the same with pairs: VPDPWSSD, or VPMADDWD and an addition, twice the
 * multiplications of the f32 product a step.
 *
 * bf16 is the same with VDPBF16PS, two multiplications a lane, into float accumulators: twice
 * the f32 product's pace where the processor runs it as fast as an FMA, and half its bytes.
 *
 * AVX2 has no VPDPBUSD, and VPMADDUBSW saturates at 16 bits: 255 * 127 * 2 does not fit. So its
 * codes have 7 bits and a range for each block (kernels.h): 127 * 127 * 2 = 32258 fits, and a
 * step is VPMADDUBSW, VPMADDWD with ones and an addition, of which two want the multipliers.
 * With 8-bit codes the weights' sign had to move to them (VPSIGNB: a third instruction for the
 * same two units) or be taken off by an exclusive or: 115 and 124 G products a second on a core
 * of Zen 3 where this reaches 159, of 189 that its multipliers can do.
 *
 * AMX multiplies the same bytes: 8 lines of half a panel are a tile of weights, the codes of 16
 * rows another, and one TDPBUSD gives the 16 x 16 sums of a block. They leave the tiles through
 * memory, are multiplied by the block's scales there, and 32 x 32 float accumulators do not fit
 * registers either: so four blocks are multiplied first, then added up row by row, 25 KB of
 * sums and accumulators and panel in the first cache. A block of 32 x 32, in cycles of each
 * unit:
 *
 *      TDPBUSD                   4 of 16                                                 64
 *      conversions and FMA       2 x 64 vectors, two a cycle                             64
 *      stores                    64 rows of tiles, 64 accumulators a fourth of the time  80
 *      loads                     48 rows of tiles, 64 sums, 16 accumulators, two a cycle 64
 *
 * that is about 80 where all of it overlaps, and the VNNI tile takes 60 for 6 rows, 320 for 32.
 * A tile holds 64 inputs: with 32 a block half of the unit's speed is out of reach. Expected,
 * not measured. Fewer rows than a tile has go to VNNI.
 *
 * NEON's SDOT is signed on both sides, and its codes become signed in the same way. (USDOT,
 * which takes them as they are, belongs to a later extension that few processors have yet; what
 * it would save is one exclusive or for 8 SDOT.) SDOT, FMLA and SMLAL take a factor from any
 * lane of a register, so a row is loaded 16 bytes at a time and no broadcast competes with the
 * products for the vector pipes. There is no instruction for pairs of int16: they are taken
 * apart into even and odd inputs, which one SMLAL each multiplies; that is the pace of the f32
 * product. */

#include "engine/half.h"
#include "engine/kernels.h"
#include "engine/lanes.h"
#if defined(KITH_ISA_amx)
#include "engine/tiles.h"
#endif

enum {
    PANEL = 2 * LANES,
    BLOCK_BYTES = PANEL * (INT8_BLOCK + (1 + BLOCK_RANGES) * (int)sizeof(float)),
    TILE_ROWS = 6 /* the largest tile; the int8 one of AVX2 is smaller */
};

/* Runs `tile` for all rows of a panel: full tiles, then what is left with a tile of its size,
 * so that the compiler sees a constant number of rows. */
#define CALL_TILE(rows, tile, ...)                                                             \
    switch (rows) {                                                                            \
    case 1:                                                                                    \
        tile(1, __VA_ARGS__);                                                                  \
        break;                                                                                 \
    case 2:                                                                                    \
        tile(2, __VA_ARGS__);                                                                  \
        break;                                                                                 \
    case 3:                                                                                    \
        tile(3, __VA_ARGS__);                                                                  \
        break;                                                                                 \
    case 4:                                                                                    \
        tile(4, __VA_ARGS__);                                                                  \
        break;                                                                                 \
    case 5:                                                                                    \
        tile(5, __VA_ARGS__);                                                                  \
        break;                                                                                 \
    default:                                                                                   \
        tile(6, __VA_ARGS__);                                                                  \
        break;                                                                                 \
    }

/* The sums of a tile: the bias (or zeros) at first, rows of the result in the end. */
KERNEL_INLINE void tile_begin(const int rows, const float *bias, vf sums[][2])
{
    vf b0 = bias ? vf_load(bias) : vf_set(0), b1 = bias ? vf_load(bias + LANES) : vf_set(0);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        sums[r][0] = b0;
        sums[r][1] = b1;
    }
}

KERNEL_INLINE void tile_end(const int rows, vf sums[][2], float *c, size_t c_stride)
{
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        vf_store(c + (size_t)r * c_stride, sums[r][0]);
        vf_store(c + (size_t)r * c_stride + LANES, sums[r][1]);
    }
}

KERNEL_INLINE void f32_tile(const int rows, const float *a, size_t a_stride, const float *panel,
                            uint32_t k, const float *bias, float *c, size_t c_stride)
{
    vf acc[TILE_ROWS][2];
    tile_begin(rows, bias, acc);
    uint32_t i = 0;
#if defined(KITH_ISA_neon)
    for (; i + LANES <= k; i += LANES) {
        vf x[TILE_ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            x[r] = vf_load(a + (size_t)r * a_stride + i);
#pragma GCC unroll 4
        for (int lane = 0; lane < LANES; lane++, panel += PANEL) {
            vf w0 = vf_load(panel), w1 = vf_load(panel + LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                vf factor = vf_set(simde_vgetq_lane_f32(x[r], lane));
                acc[r][0] = vf_fma(factor, w0, acc[r][0]);
                acc[r][1] = vf_fma(factor, w1, acc[r][1]);
            }
        }
    }
#endif
    for (; i < k; i++, panel += PANEL) {
        vf w0 = vf_load(panel), w1 = vf_load(panel + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vf x = vf_set(a[(size_t)r * a_stride + i]);
            acc[r][0] = vf_fma(x, w0, acc[r][0]);
            acc[r][1] = vf_fma(x, w1, acc[r][1]);
        }
    }
    tile_end(rows, acc, c, c_stride);
}

static void product_f32(const float *a, size_t a_stride, uint32_t n_rows, const float *panels,
                        uint32_t k, uint32_t n_panels, const float *bias, float *c,
                        size_t c_stride)
{
    for (uint32_t p = 0; p < n_panels; p++) {
        const float *panel = panels + (size_t)p * k * PANEL;
        const float *panel_bias = bias ? bias + (size_t)p * PANEL : NULL;
        for (uint32_t r = 0; r < n_rows; r += TILE_ROWS) {
            uint32_t rows = n_rows - r < TILE_ROWS ? n_rows - r : TILE_ROWS;
            CALL_TILE(rows, f32_tile, a + (size_t)r * a_stride, a_stride, panel, k, panel_bias,
                      c + (size_t)r * c_stride + (size_t)p * PANEL, c_stride)
        }
    }
}

/* One vector of weights against one broadcast of four codes. LANES sums of four products. */
#if defined(KITH_ISA_avx512)

enum { INT8_ROWS = 6, CODES_CENTER = 0, INT8_UNROLL = 8 };

KERNEL_INLINE vi load_weights(const int8_t *w)
{
    return simde_mm512_loadu_si512(w);
}
KERNEL_INLINE vi broadcast_codes(const uint8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return vi_set(four);
}
KERNEL_INLINE vi dot_add(vi acc, vi codes, vi w)
{
    return simde_mm512_dpbusd_epi32(acc, codes, w);
}

#elif defined(KITH_ISA_avx2)

enum { INT8_ROWS = 4, CODES_CENTER = 0, INT8_UNROLL = 8 };

KERNEL_INLINE vi load_weights(const int8_t *w)
{
    return simde_mm256_loadu_si256((const simde__m256i *)w);
}
KERNEL_INLINE vi broadcast_codes(const uint8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return vi_set(four);
}
/* The compiler may not put the addition off: it would add all products of an accumulator as a
 * tree, or one kind of instruction for the whole tile at a time, for which 16 registers do not
 * suffice. Without this both products take 1.6 times as long. */
KERNEL_INLINE vi add_now(vi acc, vi x)
{
    acc = vi_add(acc, x);
    __asm__ volatile("" : "+x"(acc));
    return acc;
}
KERNEL_INLINE vi dot_add(vi acc, vi codes, vi w)
{
    vi pairs = simde_mm256_maddubs_epi16(codes, w);
    return add_now(acc, simde_mm256_madd_epi16(pairs, simde_mm256_set1_epi16(1)));
}

#elif defined(KITH_ISA_neon)

enum { INT8_ROWS = 6, CODES_CENTER = 128, CODES_LOAD = 16 };

KERNEL_INLINE simde_int8x16_t load_codes(const uint8_t *codes)
{
    simde_uint8x16_t x = simde_veorq_u8(simde_vld1q_u8(codes), simde_vdupq_n_u8(128));
    return simde_vreinterpretq_s8_u8(x); /* code - 128 */
}

#else

enum { INT8_ROWS = 1, CODES_CENTER = 0 };

#endif

/* Sums of one block for the tile: sums[r][v] = sum over 32 inputs of code * weight, as floats.
 */
#if defined(KITH_ISA_neon)
KERNEL_INLINE void int8_block(const int rows, const uint8_t *codes, size_t stride,
                              const int8_t *w, vf sums[][2])
{
    vi acc[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = vi_set(0);
#pragma GCC unroll 2
    for (int k = 0; k < INT8_BLOCK; k += CODES_LOAD) {
        simde_int8x16_t x[TILE_ROWS];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            x[r] = load_codes(codes + (size_t)r * stride + k);
#pragma GCC unroll 4
        for (int lane = 0; lane < CODES_LOAD / 4; lane++, w += 4 * PANEL) {
            simde_int8x16_t w0 = simde_vld1q_s8(w), w1 = simde_vld1q_s8(w + 4 * LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                acc[r][0] = simde_vdotq_laneq_s32(acc[r][0], w0, x[r], lane);
                acc[r][1] = simde_vdotq_laneq_s32(acc[r][1], w1, x[r], lane);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        sums[r][0] = vf_of_vi(acc[r][0]);
        sums[r][1] = vf_of_vi(acc[r][1]);
    }
}
#elif LANES > 1
KERNEL_INLINE void int8_block(const int rows, const uint8_t *codes, size_t stride,
                              const int8_t *w, vf sums[][2])
{
    vi acc[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = vi_set(0);
#pragma GCC unroll INT8_UNROLL
    for (int k = 0; k < INT8_BLOCK; k += 4) {
        vi w0 = load_weights(w + k * PANEL), w1 = load_weights(w + k * PANEL + 4 * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            vi x = broadcast_codes(codes + (size_t)r * stride + k);
            acc[r][0] = dot_add(acc[r][0], x, w0);
            acc[r][1] = dot_add(acc[r][1], x, w1);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        sums[r][0] = vf_of_vi(acc[r][0]);
        sums[r][1] = vf_of_vi(acc[r][1]);
    }
}
#else
KERNEL_INLINE void int8_block(const int rows, const uint8_t *codes, size_t stride,
                              const int8_t *w, vf sums[][2])
{
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < PANEL; j++) {
            int32_t sum = 0;
            for (int k = 0; k < INT8_BLOCK; k++)
                sum += codes[(size_t)r * stride + (size_t)k] *
                       w[k / 4 * 4 * PANEL + 4 * j + k % 4];
            sums[r][j] = (float)sum;
        }
}
#endif

/* y += the block's sums times its scales, and with block ranges what those are for. */
KERNEL_INLINE void int8_add(const int rows, vf sums[][2], const float *scales,
                            const struct int8_rows *a, size_t first, uint32_t block, vf y[][2])
{
    vf s0 = vf_load(scales), s1 = vf_load(scales + LANES);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        if (BLOCK_RANGES) {
            struct int8_range range = a->ranges[(first + (size_t)r) * a->n_ranges + block];
            vf scale = vf_set(range.scale), offset = vf_set(range.offset);
            y[r][0] = vf_fma(offset, vf_load(scales + PANEL), y[r][0]);
            y[r][1] = vf_fma(offset, vf_load(scales + PANEL + LANES), y[r][1]);
            y[r][0] = vf_fma(sums[r][0], vf_mul(scale, s0), y[r][0]);
            y[r][1] = vf_fma(sums[r][1], vf_mul(scale, s1), y[r][1]);
        } else {
            y[r][0] = vf_fma(sums[r][0], s0, y[r][0]);
            y[r][1] = vf_fma(sums[r][1], s1, y[r][1]);
        }
    }
}

/* The sums of row r, times the scale of a row range, and the side values to a row of the
 * result. */
KERNEL_INLINE void int8_row_out(const struct int8_rows *a, size_t r, const vf y[2],
                                const float *side_weights, float *c)
{
    const float *side = a->side[r], *s = side_weights;
    float row_scale = BLOCK_RANGES ? 1 : a->ranges[r].scale;
    vf y0 = vf_mul(y[0], vf_set(row_scale)), y1 = vf_mul(y[1], vf_set(row_scale));
#pragma GCC unroll 6
    for (int t = 0; t < N_SIDE; t++, s += PANEL) {
        /* Signed codes leave 128 out of each: their share is that of the offset. */
        vf x = vf_set(t == SIDE_SUM ? (float)CODES_CENTER * row_scale + side[t] : side[t]);
        y0 = vf_fma(x, vf_load(s), y0);
        y1 = vf_fma(x, vf_load(s + LANES), y1);
    }
    vf_store(c, y0);
    vf_store(c + LANES, y1);
}

/* Asks for `lines` lines of weights, into the first cache or the second. */
KERNEL_INLINE void ask_ahead(const char *at, uint32_t lines, bool near)
{
    for (uint32_t i = 0; i < lines; i++, at += CACHE_LINE)
        if (near)
            __builtin_prefetch(at, 0, 3);
        else
            __builtin_prefetch(at, 0, 2);
}

/* With each block it asks for lines that lie `ahead`. */
KERNEL_INLINE void int8_tile(const int rows, const struct int8_rows *a, size_t first,
                             const char *panel, uint32_t n_blocks, const float *side_weights,
                             const char *ahead, uint32_t lines, bool near, float *c,
                             size_t c_stride)
{
    vf y[TILE_ROWS][2];
    const uint8_t *codes = a->codes + first * a->stride;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        y[r][0] = y[r][1] = vf_set(0);
    for (uint32_t b = 0; b < n_blocks; b++, panel += BLOCK_BYTES, codes += INT8_BLOCK) {
        vf sums[TILE_ROWS][2];
        ask_ahead(ahead, lines, near);
        ahead += lines * CACHE_LINE;
        int8_block(rows, codes, a->stride, (const int8_t *)panel, sums);
        int8_add(rows, sums, (const float *)(const void *)(panel + PANEL * INT8_BLOCK), a,
                 first, b, y);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        int8_row_out(a, first + (size_t)r, y[r], side_weights, c + (size_t)r * c_stride);
}

/* The processor's own looking ahead ends at each page, and weights that another program has
 * pushed out of the shared cache come from memory. So the first tile of a panel asks for its
 * blocks, four ahead: a tenth of the time of a text of 12 tokens. With AVX2, which is slower
 * than the weights come, the tiles of a panel ask for the next panel instead, each for its
 * share of the lines, into the first cache where a panel is small: texts of 12 to 32 tokens
 * take 0.95 to 0.99 of the time. Of more tiles the codes want that cache: 3 to 5 % slower. VNNI
 * wants weights four times as fast, and this was not measured there.
 *
 * Rejected: that each thread also asks for its share of the panel three further on, so that the
 * cores wait for different lines. With nothing in the caches 6 to 24 tokens take 0.83 to 0.9 of
 * the time, but over TCP, where much is still there from the text before, nothing is gained.
 * And what should let the first cache hold all that a panel meets: blocks of 24 or 16 rows
 * instead of 48, or wide rows in stretches of 512 inputs. All within 2 %. */
enum {
#if defined(KITH_ISA_avx2)
    NEXT_PANEL_TILES = 4, /* at most */
#else
    NEXT_PANEL_TILES = 0,
#endif
    BLOCKS_AHEAD = 4,
    PANEL_NEAR_BYTES = 8192
};

static void product_int8(const struct int8_rows *a, uint32_t first, uint32_t n_rows,
                         const void *panels, uint32_t n_blocks, uint32_t n_panels,
                         const float *side_weights, float *c, size_t c_stride)
{
    const uint32_t tiles = n_rows / INT8_ROWS + (n_rows % INT8_ROWS > 0);
    const bool shared = tiles > 1 && tiles <= NEXT_PANEL_TILES;
    const size_t panel_bytes = (size_t)n_blocks * BLOCK_BYTES;
    const uint32_t share = shared ? tiles : 1;
    const bool near = !shared || panel_bytes <= PANEL_NEAR_BYTES;
    const uint32_t lines = (BLOCK_BYTES / CACHE_LINE + share - 1) / share;
    for (uint32_t p = 0; p < n_panels; p++) {
        const char *panel = (const char *)panels + (size_t)p * panel_bytes;
        const char *ahead = panel + (shared ? panel_bytes : BLOCKS_AHEAD * BLOCK_BYTES);
        const float *side = side_weights + (size_t)p * N_SIDE * PANEL;
        for (uint32_t r = 0; r < n_rows; r += INT8_ROWS) {
            uint32_t rows = n_rows - r < INT8_ROWS ? n_rows - r : INT8_ROWS;
            float *out = c + (size_t)r * c_stride + (size_t)p * PANEL;
            uint32_t asked = shared || r == 0 ? lines : 0;
            CALL_TILE(rows, int8_tile, a, first + r, panel, n_blocks, side, ahead, asked, near,
                      out, c_stride)
            ahead += (size_t)n_blocks * lines * CACHE_LINE;
        }
    }
}

#if defined(KITH_ISA_amx)
/* The tiles' registers: sums [half of the rows][half of the panel] in 0 .. 3, the codes of 16
 * rows in 4 and 5, the weights of half a panel in 6 and 7, all of one block of inputs. */
enum { TILED_ROWS = 16, UNIT_ROWS = 2 * TILED_ROWS, UNIT_BLOCKS = 4 };

static const struct tile_shapes shapes = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, INT8_BLOCK, INT8_BLOCK, 64, 64},
    .rows = {TILED_ROWS, TILED_ROWS, TILED_ROWS, TILED_ROWS, TILED_ROWS, TILED_ROWS,
             INT8_BLOCK / 4, INT8_BLOCK / 4},
};

/* Sums of one block, for 16 rows a half. */
KERNEL_INLINE void tiled_block(const int halves, const uint8_t *codes, size_t stride,
                               const char *w, int32_t sums[][PANEL])
{
    TILE_LOAD(6, w, 4 * PANEL);
    TILE_LOAD(7, w + 4 * LANES, 4 * PANEL);
    TILE_LOAD(4, codes, stride);
    TILE_ZERO(0);
    TILE_DPBUSD(0, 4, 6);
    TILE_ZERO(1);
    TILE_DPBUSD(1, 4, 7);
    if (halves == 2) {
        TILE_LOAD(5, codes + TILED_ROWS * stride, stride);
        TILE_ZERO(2);
        TILE_DPBUSD(2, 5, 6);
        TILE_ZERO(3);
        TILE_DPBUSD(3, 5, 7);
    }
    TILE_STORE(0, sums[0], sizeof sums[0]);
    TILE_STORE(1, sums[0] + LANES, sizeof sums[0]);
    if (halves == 2) {
        TILE_STORE(2, sums[TILED_ROWS], sizeof sums[0]);
        TILE_STORE(3, sums[TILED_ROWS] + LANES, sizeof sums[0]);
    }
}

/* y += sums * scales for the blocks of a chunk, whose scales stay in registers. */
KERNEL_INLINE void tiled_add(const int n_rows, const int n_blocks, const char *panel,
                             int32_t (*sums)[UNIT_ROWS][PANEL], float y[][PANEL])
{
    for (int r = 0; r < n_rows; r++) {
        vf y0 = vf_load(y[r]), y1 = vf_load(y[r] + LANES);
#pragma GCC unroll 4
        for (int b = 0; b < n_blocks; b++) {
            const float *scales =
                (const float *)(const void *)(panel + b * BLOCK_BYTES + PANEL * INT8_BLOCK);
            y0 = vf_fma(vf_of_vi(vi_load(sums[b][r])), vf_load(scales), y0);
            y1 = vf_fma(vf_of_vi(vi_load(sums[b][r] + LANES)), vf_load(scales + LANES), y1);
        }
        vf_store(y[r], y0);
        vf_store(y[r] + LANES, y1);
    }
}

static void tiled_unit(const int halves, const struct int8_rows *a, size_t first,
                       const char *panel, uint32_t n_blocks, const float *side_weights,
                       float *c, size_t c_stride)
{
    _Alignas(64) int32_t sums[UNIT_BLOCKS][UNIT_ROWS][PANEL];
    _Alignas(64) float y[UNIT_ROWS][PANEL];
    const int rows = halves * TILED_ROWS;
    const uint8_t *codes = a->codes + first * a->stride;
    memset(y, 0, (size_t)rows * sizeof y[0]);
    for (uint32_t left = n_blocks; left > 0;) {
        int n = left < UNIT_BLOCKS ? (int)left : UNIT_BLOCKS;
        for (int b = 0; b < n; b++)
            tiled_block(halves, codes + b * INT8_BLOCK, a->stride, panel + b * BLOCK_BYTES,
                        sums[b]);
        if (n == UNIT_BLOCKS)
            tiled_add(rows, UNIT_BLOCKS, panel, sums, y);
        else
            tiled_add(rows, n, panel, sums, y);
        codes += n * INT8_BLOCK;
        panel += n * BLOCK_BYTES;
        left -= (uint32_t)n;
    }
    for (int r = 0; r < rows; r++) {
        const vf row[2] = {vf_load(y[r]), vf_load(y[r] + LANES)};
        int8_row_out(a, first + (size_t)r, row, side_weights, c + (size_t)r * c_stride);
    }
}

static void product_int8_tiled(const struct int8_rows *a, uint32_t first, uint32_t n_rows,
                               const void *panels, uint32_t n_blocks, uint32_t n_panels,
                               const float *side_weights, float *c, size_t c_stride)
{
    if (n_rows < TILED_ROWS) {
        product_int8(a, first, n_rows, panels, n_blocks, n_panels, side_weights, c, c_stride);
        return;
    }
    tile_configure(&shapes);
    for (uint32_t p = 0; p < n_panels; p++) {
        const char *panel = (const char *)panels + (size_t)p * n_blocks * BLOCK_BYTES;
        const float *side = side_weights + (size_t)p * N_SIDE * PANEL;
        float *out = c + (size_t)p * PANEL;
        uint32_t r = 0;
        for (; r + UNIT_ROWS <= n_rows; r += UNIT_ROWS)
            tiled_unit(2, a, first + r, panel, n_blocks, side, out + r * c_stride, c_stride);
        for (; r < n_rows; r += TILED_ROWS) {
            /* The last rows may be fewer than 16: some are then computed twice. */
            uint32_t at = r + TILED_ROWS <= n_rows ? r : n_rows - TILED_ROWS;
            tiled_unit(1, a, first + at, panel, n_blocks, side, out + at * c_stride, c_stride);
        }
    }
    tile_release();
}
#endif

#if defined(KITH_ISA_neon)
enum { WORDS_LOAD = 8 };

/* `pairs` pairs of inputs from x on, which holds those of each row. */
KERNEL_INLINE void pairs_add(const int rows, const int pairs, const simde_int16x8_t *x,
                             const int16_t *w, vi acc[][2])
{
#pragma GCC unroll 4
    for (int i = 0; i < pairs; i++, w += 2 * PANEL) {
        simde_int16x8_t w0 = simde_vld1q_s16(w), w1 = simde_vld1q_s16(w + 2 * LANES);
        simde_int16x8_t even = simde_vuzp1q_s16(w0, w1), odd = simde_vuzp2q_s16(w0, w1);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int16_t first = simde_vgetq_lane_s16(x[r], 2 * i);
            int16_t second = simde_vgetq_lane_s16(x[r], 2 * i + 1);
            acc[r][0] = simde_vmlal_n_s16(acc[r][0], simde_vget_low_s16(even), first);
            acc[r][1] = simde_vmlal_high_n_s16(acc[r][1], even, first);
            acc[r][0] = simde_vmlal_n_s16(acc[r][0], simde_vget_low_s16(odd), second);
            acc[r][1] = simde_vmlal_high_n_s16(acc[r][1], odd, second);
        }
    }
}

KERNEL_INLINE void int16_block(const int rows, const int16_t *a, size_t stride,
                               const int16_t *w, uint32_t k, vf y[][2])
{
    vi acc[TILE_ROWS][2];
    simde_int16x8_t x[TILE_ROWS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = vi_set(0);
    uint32_t i = 0;
    for (; i + WORDS_LOAD <= k; i += WORDS_LOAD, w += WORDS_LOAD * PANEL) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            x[r] = simde_vld1q_s16(a + (size_t)r * stride + i);
        pairs_add(rows, WORDS_LOAD / 2, x, w, acc);
    }
    for (; i < k; i += 2, w += 2 * PANEL) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, a + (size_t)r * stride + i, sizeof two);
            x[r] = simde_vreinterpretq_s16_s32(vi_set(two));
        }
        pairs_add(rows, 1, x, w, acc);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        y[r][0] = vf_add(y[r][0], vf_of_vi(acc[r][0]));
        y[r][1] = vf_add(y[r][1], vf_of_vi(acc[r][1]));
    }
}
#elif LANES > 1
/* One vector of weight pairs against one broadcast pair. */
KERNEL_INLINE vi load_pairs(const int16_t *w)
{
#if LANES == 16
    return simde_mm512_loadu_si512(w);
#else
    return simde_mm256_loadu_si256((const simde__m256i *)(const void *)w);
#endif
}
KERNEL_INLINE vi pair_add(vi acc, vi pair, vi w)
{
#if LANES == 16
    return simde_mm512_dpwssd_epi32(acc, pair, w);
#else
    return add_now(acc, simde_mm256_madd_epi16(pair, w));
#endif
}

KERNEL_INLINE void int16_block(const int rows, const int16_t *a, size_t stride,
                               const int16_t *w, uint32_t k, vf y[][2])
{
    vi acc[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        acc[r][0] = acc[r][1] = vi_set(0);
#pragma GCC unroll 16
    for (uint32_t i = 0; i < k; i += 2, w += 2 * PANEL) {
        vi w0 = load_pairs(w), w1 = load_pairs(w + 2 * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, a + (size_t)r * stride + i, sizeof two);
            vi x = vi_set(two);
            acc[r][0] = pair_add(acc[r][0], x, w0);
            acc[r][1] = pair_add(acc[r][1], x, w1);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        y[r][0] = vf_add(y[r][0], vf_of_vi(acc[r][0]));
        y[r][1] = vf_add(y[r][1], vf_of_vi(acc[r][1]));
    }
}
#else
KERNEL_INLINE void int16_block(const int rows, const int16_t *a, size_t stride,
                               const int16_t *w, uint32_t k, vf y[][2])
{
    for (int r = 0; r < rows; r++)
        for (size_t j = 0; j < PANEL; j++) {
            int64_t sum = 0; /* codes of what is no number may be any */
            for (size_t i = 0; i < k; i++)
                sum +=
                    (int64_t)a[(size_t)r * stride + i] * w[i / 2 * 2 * PANEL + 2 * j + i % 2];
            y[r][j] += (float)sum;
        }
}
#endif

KERNEL_INLINE void int16_tile(const int rows, const int16_t *a, size_t a_stride,
                              const int16_t *panel, uint32_t k, float *c, size_t c_stride)
{
    vf y[TILE_ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
        y[r][0] = y[r][1] = vf_set(0);
    /* Constant lengths: else the compiler moves every sum in every step. */
    uint32_t i = 0;
    for (; i + INT16_BLOCK <= k; i += INT16_BLOCK)
        int16_block(rows, a + i, a_stride, panel + (size_t)i * PANEL, INT16_BLOCK, y);
    if (i + INT16_BLOCK / 2 <= k) {
        int16_block(rows, a + i, a_stride, panel + (size_t)i * PANEL, INT16_BLOCK / 2, y);
        i += INT16_BLOCK / 2;
    }
    if (i < k)
        int16_block(rows, a + i, a_stride, panel + (size_t)i * PANEL, k - i, y);
    tile_end(rows, y, c, c_stride);
}

static void product_int16(const int16_t *a, size_t a_stride, uint32_t n_rows,
                          const int16_t *panels, uint32_t k, uint32_t n_panels, float *c,
                          size_t c_stride)
{
    for (uint32_t p = 0; p < n_panels; p++) {
        const int16_t *panel = panels + (size_t)p * k * PANEL;
        for (uint32_t r = 0; r < n_rows; r += TILE_ROWS) {
            uint32_t rows = n_rows - r < TILE_ROWS ? n_rows - r : TILE_ROWS;
            CALL_TILE(rows, int16_tile, a + (size_t)r * a_stride, a_stride, panel, k,
                      c + (size_t)r * c_stride + (size_t)p * PANEL, c_stride)
        }
    }
}

#if defined(KITH_ISA_avx512bf16) || defined(KITH_ISA_scalar)
#define HAS_BF16 1
/* acc += the two products of a pair in each lane. */
#if LANES == 16
KERNEL_INLINE simde__m512bh bf16_of(vi pairs)
{
    simde__m512bh v;
    memcpy(&v, &pairs, sizeof v);
    return v;
}
KERNEL_INLINE vf bf16_add(vf acc, vi pair, const uint16_t *w)
{
    return simde_mm512_dpbf16_ps(acc, bf16_of(pair), bf16_of(simde_mm512_loadu_si512(w)));
}
#else
KERNEL_INLINE vf bf16_add(vf acc, vi pair, const uint16_t *w)
{
    uint16_t x[2];
    memcpy(x, &pair, sizeof x);
    acc += half_bf16_to_f32(x[0]) * half_bf16_to_f32(w[0]);
    return acc + half_bf16_to_f32(x[1]) * half_bf16_to_f32(w[1]);
}
#endif

KERNEL_INLINE void bf16_tile(const int rows, const uint16_t *a, size_t a_stride,
                             const uint16_t *panel, uint32_t k, const float *bias, float *c,
                             size_t c_stride)
{
    vf acc[TILE_ROWS][2];
    tile_begin(rows, bias, acc);
    for (uint32_t i = 0; i < k; i += 2, panel += 2 * PANEL) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, a + (size_t)r * a_stride + i, sizeof two);
            vi x = vi_set(two);
            acc[r][0] = bf16_add(acc[r][0], x, panel);
            acc[r][1] = bf16_add(acc[r][1], x, panel + 2 * LANES);
        }
    }
    tile_end(rows, acc, c, c_stride);
}

static void product_bf16(const uint16_t *a, size_t a_stride, uint32_t n_rows,
                         const uint16_t *panels, uint32_t k, uint32_t n_panels,
                         const float *bias, float *c, size_t c_stride)
{
    for (uint32_t p = 0; p < n_panels; p++) {
        const uint16_t *panel = panels + (size_t)p * k * PANEL;
        const float *panel_bias = bias ? bias + (size_t)p * PANEL : NULL;
        for (uint32_t r = 0; r < n_rows; r += TILE_ROWS) {
            uint32_t rows = n_rows - r < TILE_ROWS ? n_rows - r : TILE_ROWS;
            CALL_TILE(rows, bf16_tile, a + (size_t)r * a_stride, a_stride, panel, k, panel_bias,
                      c + (size_t)r * c_stride + (size_t)p * PANEL, c_stride)
        }
    }
}

static void round_bf16(const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = half_bf16_from_f32(x[i]);
}
#endif

/* n <= PANEL rows to one panel, element by element: rows from `done` on, inputs from `from` on.
 */
static void transpose_rest(const float *rows, size_t stride, uint32_t done, uint32_t n,
                           uint32_t from, uint32_t width, float factor, float *panel)
{
    for (uint32_t k = from; k < width; k++)
        for (uint32_t j = done; j < PANEL; j++)
            panel[(size_t)k * PANEL + j] = j < n ? factor * rows[(size_t)j * stride + k] : 0.0f;
}

#if LANES > 1
/* Four rows of four floats become four columns. */
#if defined(KITH_ISA_neon)
KERNEL_INLINE void transpose_four(const float *from, size_t stride, float factor, float *to)
{
    simde_float32x4x2_t ab =
        simde_vtrnq_f32(simde_vld1q_f32(from), simde_vld1q_f32(from + stride));
    simde_float32x4x2_t cd =
        simde_vtrnq_f32(simde_vld1q_f32(from + 2 * stride), simde_vld1q_f32(from + 3 * stride));
    vf f = vf_set(factor);
    for (int odd = 0; odd < 2; odd++) {
        vf low = simde_vcombine_f32(simde_vget_low_f32(ab.val[odd]),
                                    simde_vget_low_f32(cd.val[odd]));
        vf high = simde_vcombine_f32(simde_vget_high_f32(ab.val[odd]),
                                     simde_vget_high_f32(cd.val[odd]));
        vf_store(to + odd * PANEL, vf_mul(low, f));
        vf_store(to + (2 + odd) * PANEL, vf_mul(high, f));
    }
}
#else
KERNEL_INLINE void transpose_four(const float *from, size_t stride, float factor, float *to)
{
    simde__m128 f = simde_mm_set1_ps(factor);
    simde__m128 a = simde_mm_mul_ps(simde_mm_loadu_ps(from), f);
    simde__m128 b = simde_mm_mul_ps(simde_mm_loadu_ps(from + stride), f);
    simde__m128 c = simde_mm_mul_ps(simde_mm_loadu_ps(from + 2 * stride), f);
    simde__m128 d = simde_mm_mul_ps(simde_mm_loadu_ps(from + 3 * stride), f);
    SIMDE_MM_TRANSPOSE4_PS(a, b, c, d);
    simde_mm_storeu_ps(to, a);
    simde_mm_storeu_ps(to + PANEL, b);
    simde_mm_storeu_ps(to + 2 * PANEL, c);
    simde_mm_storeu_ps(to + 3 * PANEL, d);
}
#endif

/* Blocks of 4 x 4; returns how many rows are done, in all columns below width / 4 * 4. */
static uint32_t transpose_blocks(const float *rows, size_t stride, uint32_t n, uint32_t width,
                                 float factor, float *panel)
{
    uint32_t whole = n / 4 * 4;
    for (uint32_t j = 0; j < whole; j += 4)
        for (uint32_t k = 0; k + 4 <= width; k += 4)
            transpose_four(rows + (size_t)j * stride + k, stride, factor,
                           panel + (size_t)k * PANEL + j);
    return whole;
}
#else
static uint32_t transpose_blocks(const float *rows, size_t stride, uint32_t n, uint32_t width,
                                 float factor, float *panel)
{
    (void)rows, (void)stride, (void)n, (void)width, (void)factor, (void)panel;
    return 0;
}
#endif

static void transpose(const float *rows, size_t stride, uint32_t n, uint32_t width,
                      float factor, float *panels)
{
    for (uint32_t first = 0; first < n; first += PANEL, panels += (size_t)width * PANEL) {
        const float *from = rows + (size_t)first * stride;
        uint32_t columns = n - first < PANEL ? n - first : PANEL;
        uint32_t done = transpose_blocks(from, stride, columns, width, factor, panels);
        transpose_rest(from, stride, done, columns, 0, width, factor, panels);
        if (done)
            transpose_rest(from, stride, 0, columns, width / 4 * 4, width, factor, panels);
    }
}

extern const struct product_kernels KERNEL_TABLE(product_kernels_);
const struct product_kernels KERNEL_TABLE(product_kernels_) = {
    .panel = PANEL,
    .block_ranges = BLOCK_RANGES,
    .f32_rows = TILE_ROWS,
    .f32 = product_f32,
#if defined(KITH_ISA_amx)
    .int8_rows = TILED_ROWS,
    .int8 = product_int8_tiled,
#else
    .int8_rows = INT8_ROWS,
    .int8 = product_int8,
#endif
    .int16 = product_int16,
#if HAS_BF16
    .bf16 = product_bf16,
    .round_bf16 = round_bf16,
#endif
    .transpose = transpose,
};
