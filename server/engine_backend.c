#include "server/engine_backend.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void backend_pair(struct backend_pairs *p, const char *key, const char *format, ...)
{
    va_list ap, again;
    va_start(ap, format);
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, format, ap);
    va_end(ap);
    buf_append(&p->bytes, key, strlen(key) + 1);
    char *to = n < 0 ? NULL : buf_reserve(&p->bytes, (size_t)n + 1);
    if (to) {
        vsnprintf(to, (size_t)n + 1, format, again);
        p->bytes.len += (size_t)n + 1;
    }
    va_end(again);
    p->bytes.failed |= !to;
    p->n++;
}

void backend_refuse(const struct backend_request *request, const struct err *e)
{
    const struct backend_result result = {.code = e->code, .message = e->message};
    request->done(request->arg, &result);
}
