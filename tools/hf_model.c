#include "tools/hf_model.h"

#include <string.h>

#include "base/mem.h"
#include "tools/hf_parts.h"

int hf_model_open(struct hf_model *m, const char *dir, enum hf_pooling pooling, struct err *e)
{
    memset(m, 0, sizeof *m);
    int rc = hf_read_config(m, dir, e);
    if (!rc)
        rc = hf_read_tokenizer(m, dir, e);
    if (!rc)
        rc = hf_read_modules(m, dir, pooling, e);
    if (rc)
        hf_model_close(m);
    return rc;
}

void hf_model_close(struct hf_model *m)
{
    for (uint32_t i = 0; m->tokens && i < m->n_vocab; i++)
        mem_free(m->tokens[i]);
    for (size_t i = 0; i < m->n_merges; i++)
        mem_free(m->merges[i]);
    mem_free(m->tokens);
    mem_free(m->types);
    mem_free(m->merges);
    mem_free(m->scores);
    mem_free(m->charsmap);
    mem_free(m->query_prompt);
    mem_free(m->document_prompt);
    memset(m, 0, sizeof *m);
}
