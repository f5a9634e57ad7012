#pragma once
/* Plain vectors of floats: distances, half precision, projection. What a caller needs who holds
 * vectors that are in no index: to rescore candidates on full vectors, to compare results with
 * each other, to make a vector smaller before it is added. Thread: any. */

#include <stdint.h>

#include "index/index.h"

/* The distance of two vectors as an index of this metric defines it (see index.h); neither need
 * be normalised. */
float vector_distance(enum index_metric metric, const float *a, const float *b, uint32_t dim);

/* Half precision (IEEE 754 binary16), rounded to nearest even. What is too large becomes an
 * infinity, so give it vectors of length 1. */
void vector_to_half(const float *x, uint32_t n, uint16_t *out);
void vector_from_half(const uint16_t *x, uint32_t n, float *out);

/* out = x scaled to length 1 (zero stays zero); returns the length of x. In place is allowed.
 */
float vector_normalise(const float *x, uint32_t n, float *out);

/* The projection of REDUCE: out[i] = sum over j of H[i][j] * x[j] / sqrt(from), H[i][j] = +1
 * where popcount(i & j) is even, else -1 (a Hadamard matrix, Sylvester's construction), i < to,
 * j < from. By the fast Walsh-Hadamard transform: O(P log P), P the power of two that holds
 * both. work: vector_project_work(from, to) floats. */
uint32_t vector_project_work(uint32_t from, uint32_t to);
void vector_project(const float *x, uint32_t from, float *out, uint32_t to, float *work);
