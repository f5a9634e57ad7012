#pragma once
/* The keys of a model's GGUF file: names and meanings are llama.cpp's, and some of this house
 * (engine/README.md lists them). An append that runs out of memory is reported by
 * gguf_write_finish. Thread: one owner. */

#include "engine/tensor.h"
#include "tools/gguf_write.h"
#include "tools/hf_model.h"

void hf_keys_write(struct gguf_write *w, const struct hf_model *m, const char *name,
                   enum tensor_type type);
