#pragma once
/* The running server: the parts that commands reach through their client. Owned by
 * kith_server.c, which builds it at start and takes it apart at the end. */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/version.h"

struct config;
struct shard;
struct net;
struct models;
struct slowlog;
struct recall_sampler;

/* Counters as they were at CONFIG RESETSTAT: INFO shows what came since. */
struct server_reset {
    _Atomic uint64_t connections, rejected, commands, bytes_in, bytes_out, errors, offloaded,
        polls, polls_in_vain;
};

struct server {
    struct config *config;
    struct shard *shard;
    struct net *net;
    struct models *models;
    struct slowlog *slowlog;
    struct recall_sampler *recall; /* NULL: searches are not sampled */
    struct server_reset reset;
    int64_t started_unix_s;
    char run_id[41];
    char executable[256];
    /* Set by SIGTERM, SIGINT or SHUTDOWN: the loops end, replies drain. */
    _Atomic bool stopping, stop_without_save;
};

#define KITH_REDIS_VERSION "8.4.0" /* the Redis whose behaviour is matched */
