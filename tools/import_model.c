#include "tools/import_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text of a field of a reply that is names and values in turns; NULL: it has no such. */
static const char *field(const redisReply *r, const char *name)
{
    for (size_t i = 0; i + 1 < r->elements; i += 2) {
        const redisReply *key = r->element[i], *value = r->element[i + 1];
        if (key->str && strcmp(key->str, name) == 0)
            return value->str;
    }
    return NULL;
}

/* The number of a field, which may be text. */
static uint64_t number(const redisReply *r, const char *name)
{
    for (size_t i = 0; i + 1 < r->elements; i += 2) {
        const redisReply *key = r->element[i], *value = r->element[i + 1];
        if (key->str && strcmp(key->str, name) == 0)
            return value->type == REDIS_REPLY_INTEGER ? (uint64_t)value->integer
                   : value->str                       ? strtoull(value->str, NULL, 10)
                                                      : 0;
    }
    return 0;
}

static void copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from ? from : "");
}

/* The hash that the set remembers; "" where there is no set, or none of a model. */
static int hash_of_set(redisContext *c, const char *key, char *hash, size_t size, struct err *e)
{
    const char *argv[] = {"VINFO", key};
    hash[0] = '\0';
    if (!key)
        return 0;
    redisReply *r = server_command(c, 2, argv, NULL, e);
    if (!r)
        return e->code;
    copy(hash, size, field(r, "model-hash"));
    freeReplyObject(r);
    return 0;
}

/* Asks the server for one embedding, so that it brings the model up. */
static int bring_up(redisContext *c, const char *name, struct err *e)
{
    const char *argv[] = {"EMBED", "MODEL", name, "TEXTS", "a"};
    redisReply *r = server_command(c, 5, argv, NULL, e);
    if (!r)
        return e->code;
    freeReplyObject(r);
    return 0;
}

/* What MODEL INFO says of one model; 0: it says nothing of use yet. */
static int read_model(redisContext *c, const char *alias, struct import_model *m,
                      bool *is_default, struct err *e)
{
    const char *argv[] = {"MODEL", "INFO", alias};
    redisReply *r = server_command(c, 3, argv, NULL, e);
    if (!r)
        return e->code;
    copy(m->alias, sizeof m->alias, field(r, "name"));
    copy(m->name, sizeof m->name, field(r, "model"));
    copy(m->hash, sizeof m->hash, field(r, "hash"));
    m->context = (unsigned)number(r, "context");
    *is_default = number(r, "default") == 1;
    freeReplyObject(r);
    return m->hash[0] && m->context ? 1 : 0;
}

static int refuse(const char *name, const char *key, const char *hash,
                  const struct import_model *asked, struct err *e)
{
    if (!name && !hash[0])
        return err_set(e, KITH_EUNSUPPORTED,
                       "the server has no embedding model: start kith-server with --embedder "
                       "FILE.gguf, or MODEL LOAD one");
    if (!name)
        return err_set(e, KITH_EINVAL,
                       "the set '%s' has the vectors of a model (%s) that the server does not "
                       "have: MODEL LOAD it",
                       key, hash);
    if (!asked->hash[0])
        return err_set(e, KITH_EINVAL, "the server has no model '%s'; MODEL LIST says which",
                       name);
    return err_set(e, KITH_EINVAL,
                   "the set '%s' has the vectors of another model (%s); '%s' is %s (%s)", key,
                   hash, name, asked->name, asked->hash);
}

/* Looks at each model of MODEL LIST. */
static int choose(redisContext *c, const redisReply *list, const char *name, const char *key,
                  const char *hash, struct import_model *m, struct err *e)
{
    struct import_model asked = {0};
    bool waiting = false;
    for (size_t i = 0; i < list->elements; i++) {
        const char *alias = field(list->element[i], "name");
        bool is_default = false;
        if (!alias || (name && strcmp(alias, name) != 0))
            continue;
        int rc = read_model(c, alias, m, &is_default, e);
        if (rc == 0 && name)
            rc = bring_up(c, alias, e);
        if (rc < 0)
            return rc;
        if (rc == 0) {
            waiting = true;
            continue;
        }
        bool fits = hash[0] ? strcmp(m->hash, hash) == 0 : name || is_default;
        if (fits)
            return 1;
        if (name)
            asked = *m;
    }
    return waiting ? 0 : refuse(name, key, hash, &asked, e);
}

int import_model_find(redisContext *c, const char *name, const char *key,
                      struct import_model *m, struct err *e)
{
    char hash[40];
    const char *argv[] = {"MODEL", "LIST"};
    *m = (struct import_model){0};
    int rc = hash_of_set(c, key, hash, sizeof hash, e);
    if (rc)
        return rc;
    redisReply *r = server_command(c, 2, argv, NULL, e);
    if (!r)
        return e->code;
    rc = choose(c, r, name, key, hash, m, e);
    freeReplyObject(r);
    return rc;
}

uint64_t import_model_tokens(redisContext *c, const struct import_model *m)
{
    struct err e = {0};
    const char *argv[] = {"MODEL", "INFO", m->alias};
    redisReply *r = server_command(c, 3, argv, NULL, &e);
    uint64_t n = r ? number(r, "tokens") : 0;
    if (r)
        freeReplyObject(r);
    return n;
}
