#include "server/engine_backend.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void backend_pair(struct backend_pairs *p, const char *key, const char *format, ...)
{
    char value[4096];
    va_list ap;
    va_start(ap, format);
    vsnprintf(value, sizeof value, format, ap);
    va_end(ap);
    buf_append(&p->bytes, key, strlen(key) + 1);
    buf_append(&p->bytes, value, strlen(value) + 1);
    p->n++;
}

void backend_refuse(const struct backend_request *request, const struct err *e)
{
    const struct backend_result result = {.code = e->code, .message = e->message};
    request->done(request->arg, &result);
}
