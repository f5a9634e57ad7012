#include "protocol/resp_write.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "protocol/double_text.h"

enum { NUMBER_MAX = 24, ERROR_MAX = 1024 };

/* The decimal digits of v before `end`; returns where they begin. */
static char *digits(char *end, uint64_t v)
{
    do {
        *--end = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    return end;
}

/* A type byte, a number and the line end. */
static void number_line(struct buf *to, char type, int64_t v)
{
    char line[NUMBER_MAX], *end = line + sizeof line;
    end[-2] = '\r';
    end[-1] = '\n';
    char *p = digits(end - 2, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
    if (v < 0)
        *--p = '-';
    *--p = type;
    buf_append(to, p, (size_t)(end - p));
}

static void text_line(struct buf *to, char type, const char *s, size_t n)
{
    char *p = buf_reserve(to, n + 3);
    if (!p)
        return;
    *p++ = type;
    for (size_t i = 0; i < n; i++)
        *p++ = s[i] == '\r' || s[i] == '\n' ? ' ' : s[i];
    *p++ = '\r';
    *p = '\n';
    to->len += n + 3;
}

void resp_simple(struct resp_out o, const char *s)
{
    text_line(o.to, '+', s, strlen(s));
}

void resp_ok(struct resp_out o)
{
    buf_append(o.to, "+OK\r\n", 5);
}

void resp_error(struct resp_out o, const char *message)
{
    text_line(o.to, '-', message, strlen(message));
}

void resp_errorf(struct resp_out o, const char *format, ...)
{
    char text[ERROR_MAX];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (n >= 0)
        resp_error(o, text);
}

void resp_int(struct resp_out o, int64_t v)
{
    number_line(o.to, ':', v);
}

void resp_double(struct resp_out o, double v)
{
    char text[DOUBLE_TEXT_MAX];
    size_t n = double_text(text, v);
    if (o.proto >= 3)
        text_line(o.to, ',', text, n);
    else
        resp_bulk(o, text, n);
}

void resp_bool(struct resp_out o, bool v)
{
    if (o.proto >= 3)
        buf_append(o.to, v ? "#t\r\n" : "#f\r\n", 4);
    else
        buf_append(o.to, v ? ":1\r\n" : ":0\r\n", 4);
}

void resp_bulk(struct resp_out o, const void *p, size_t n)
{
    char *room = n > SIZE_MAX - NUMBER_MAX - 2 ? NULL : buf_reserve(o.to, n + NUMBER_MAX + 2);
    if (!room) {
        o.to->failed = true;
        return;
    }
    number_line(o.to, '$', (int64_t)n);
    char *at = o.to->data + o.to->len;
    if (n)
        memcpy(at, p, n);
    at[n] = '\r';
    at[n + 1] = '\n';
    o.to->len += n + 2;
}

void resp_bulk_str(struct resp_out o, const char *s)
{
    resp_bulk(o, s, strlen(s));
}

void resp_bulkf(struct resp_out o, const char *format, ...)
{
    char text[ERROR_MAX];
    va_list ap, again;
    va_start(ap, format);
    va_copy(again, ap);
    int n = vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof text) {
        resp_bulk(o, text, (size_t)n);
    } else if (n >= 0) {
        /* Longer than the stack holds: print once more, into the buffer itself. */
        number_line(o.to, '$', n);
        char *at = buf_reserve(o.to, (size_t)n + 2);
        if (at) {
            vsnprintf(at, (size_t)n + 1, format, again);
            memcpy(at + n, "\r\n", 2);
            o.to->len += (size_t)n + 2;
        }
    }
    va_end(again);
}

void resp_verbatim(struct resp_out o, const char *type3, const void *p, size_t n)
{
    if (o.proto < 3) {
        resp_bulk(o, p, n);
        return;
    }
    number_line(o.to, '=', (int64_t)n + 4);
    buf_append(o.to, type3, 3);
    buf_append(o.to, ":", 1);
    buf_append(o.to, p, n);
    buf_append(o.to, "\r\n", 2);
}

void resp_null(struct resp_out o)
{
    if (o.proto >= 3)
        buf_append(o.to, "_\r\n", 3);
    else
        buf_append(o.to, "$-1\r\n", 5);
}

void resp_null_array(struct resp_out o)
{
    if (o.proto >= 3)
        buf_append(o.to, "_\r\n", 3);
    else
        buf_append(o.to, "*-1\r\n", 5);
}

void resp_array(struct resp_out o, size_t n)
{
    number_line(o.to, '*', (int64_t)n);
}

void resp_map(struct resp_out o, size_t n_pairs)
{
    if (o.proto >= 3)
        number_line(o.to, '%', (int64_t)n_pairs);
    else
        number_line(o.to, '*', (int64_t)n_pairs * 2);
}

void resp_set(struct resp_out o, size_t n)
{
    number_line(o.to, o.proto >= 3 ? '~' : '*', (int64_t)n);
}

void resp_push(struct resp_out o, size_t n)
{
    number_line(o.to, o.proto >= 3 ? '>' : '*', (int64_t)n);
}
