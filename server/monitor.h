#pragma once
/* The feed of MONITOR: every command that ran, as a line, to every client that asked for it.
 *
 * Thread: monitor_feed and monitor_start on the client's worker; monitor_deliver on each worker
 * at the end of its round. Lines wait in one buffer a worker, bounded: monitors of a worker
 * that does not keep up are closed, as a client is that does not read. */

#include <stdint.h>

struct client;
struct net;
struct worker;

/* Makes the client a monitor; the caller replies. */
void monitor_start(struct client *c);
/* A monitor that ends, by RESET or by leaving. */
void monitor_stop(struct client *c);
/* Tells the monitors of the command that the client just ran. Costs one load when there are
 * none. */
void monitor_feed(struct client *c);
/* Gives the worker's monitors the lines that came since. */
void monitor_deliver(struct worker *w);
