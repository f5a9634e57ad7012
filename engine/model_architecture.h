#pragma once
/* What an architecture's name stands for: all that a model file does not say of itself. Shared
 * by model.c and model_bind.c alone. */

#include <stdbool.h>

#include "engine/model.h"

enum { WINDOW_ALL = 0 };

struct architecture {
    const char *name;
    enum model_position position;
    enum model_norm_kind norm;
    enum model_activation activation;
    enum pooling pooling; /* where the file does not say */
    bool gated, causal;
    bool post_norm;   /* the norms stand on the stream, after the sum */
    bool branch_norm; /* norms stand on what a branch adds, too */
    bool embd_norm, output_norm;
    bool linear_bias, norm_bias; /* must be there; else they may be */
    bool head_norm;              /* queries and keys are normed, head by head */
    bool first_attn_in_absent;   /* layer 0 has no norm before attention */
    bool scale_embd;             /* by sqrt(n_embd) */
    bool may_rank;
    float rotary_base, rotary_base_window; /* where the file does not say */
    float alibi_bias;
    /* Of `window_period` layers one sees all, the first or the last; 0: every layer does. */
    unsigned window_period;
    bool first_sees_all;
};

/* NULL: not known. */
const struct architecture *architecture_find(const char *name, size_t n);
