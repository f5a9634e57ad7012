#pragma once
/* The file of packed weights beside a model file: MODEL.KERNELS-PRECISION.packed. It knows the
 * format and no model: what lies in it is told by the caller, who knows it from the model file.
 *
 * Packing weights takes up to minutes, and the result is private memory of each process. Mapped
 * from a file it costs no time, and its memory is the page cache's: shared by all processes
 * that compute with it, and taken back by the system when it is needed more elsewhere.
 *
 * The file is a copy of what can be made anew, so it may be deleted at any time, and one that
 * is not exactly what would be written now is refused. It is untrusted: no size, place or
 * number in it is used before it was compared with what the model file says, and the checksum
 * is that of every byte. The checksum keeps out accidents, not people: who may write beside the
 * model may write the model. A file with the right checksum still computes nothing but wrong
 * numbers, as a wrong model file would.
 *
 * Mapped as a model file is, at the same price: one cut short by someone else while it is
 * mapped raises SIGBUS (engine/gguf.h). This module renames a new file into its place, which
 * leaves the old map whole.
 *
 *   offset
 *        0  "KITHPACK"
 *        8  u32 version, u32 panel                 columns of a panel
 *       16  u64 bytes                              of the file
 *       24  kernels[16], precision[16], kith[16]   names and kith's version, padded with zeros
 *       72  model[32]                              XXH3-128 of the model file, in hex
 *      104  u32 matrices, zeros to 128
 *      128  for each matrix 64 bytes:
 *             u64 offset, u64 bytes, u32 n_in, u32 n_out, u32 precision, u32 outliers,
 *             u32 outlier[4], zeros
 *           the matrices, in the same order, each at a multiple of 64, zeros between
 *   bytes-8 u64 XXH3-64 of all before
 *
 * Upgrade rule: none. A file of another version of the format or of kith is written anew; the
 * version grows when these bytes mean something else or weights are packed differently.
 *
 * Thread: no shared state; processes that write the same file at once are harmless. */

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "engine/kernels.h"

enum { PACKED_CACHE_VERSION = 2, PACKED_CACHE_ALIGNMENT = 64 };

/* What a file was made for. */
struct packed_identity {
    const char *model;               /* as gguf_hash gives it */
    const char *kernels, *precision; /* names of at most 15 bytes */
    uint32_t panel;
};

struct packed_matrix {
    uint32_t n_in, n_out, precision; /* an enum model_precision */
    uint32_t n_outliers;             /* at most OUTLIERS_MAX */
    size_t bytes;
    /* Written, or found in the file: */
    uint32_t outliers[OUTLIERS_MAX]; /* different ones, each below n_in */
    const void *data;
};

/* Checks the whole file and says where the matrices are; data points into it. Nothing is
 * changed unless it returns 0. KITH_EFORMAT: the file is for something else, by its own word.
 * KITH_ECORRUPT: it is not what was written. */
int packed_cache_read(const void *file, size_t file_bytes, const struct packed_identity *id,
                      struct packed_matrix *matrices, uint32_t n, struct err *e);

/* Writes the file, as a whole or not at all; mode: its permissions. KITH_EBUSY: another process
 * is writing it. */
int packed_cache_write(const char *path, mode_t mode, const struct packed_identity *id,
                       const struct packed_matrix *matrices, uint32_t n, struct err *e);
