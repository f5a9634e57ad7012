/* kith-check DIR: verifies a data directory offline. */
#include <stdio.h>
#include <unistd.h>

#include "base/program.h"
#include "server/shard.h"

enum { EXIT_CLEAN = 0, EXIT_FINDINGS = 1, EXIT_USAGE = 2 };

static const char help[] =
    "usage: kith-check DIR\n"
    "\n"
    "Verifies every checksum and invariant of a kith data directory whose server is not\n"
    "running: the log's records, the store's pages and values, keys, vector sets, names,\n"
    "texts and links. Nothing is changed.\n"
    "\n"
    "Exit status: 0 clean, 1 something is wrong (each finding is a line: where: what),\n"
    "2 the directory could not be checked.\n";

static void note(void *arg, const char *where, const char *what)
{
    (void)arg;
    if (isatty(1))
        printf("\r\033[K\033[31m%s\033[0m: %s\n", where, what);
    else
        printf("%s: %s\n", where, what);
}

static void progress(void *arg, uint64_t n_elements)
{
    (void)arg;
    if (isatty(1)) {
        printf("\r\033[K%llu elements checked", (unsigned long long)n_elements);
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    if (program_answers(argc, argv, "kith-check", help))
        return EXIT_CLEAN;
    if (argc != 2 || argv[1][0] == '-') {
        fputs(help, stderr);
        return EXIT_USAGE;
    }
    struct shard_check_report report = {.note = note, .progress = progress};
    struct err e = {0};
    int64_t findings = shard_check(argv[1], &report, &e);
    if (isatty(1))
        printf("\r\033[K");
    if (findings < 0) {
        fprintf(stderr, "kith-check: %s\n", e.message);
        return EXIT_USAGE;
    }
    printf("%s: %llu keys, %llu vector sets, %llu elements; %s", argv[1],
           (unsigned long long)report.n_keys, (unsigned long long)report.n_sets,
           (unsigned long long)report.n_elements, findings ? "" : "clean\n");
    if (findings)
        printf("%lld findings\n", (long long)findings);
    return findings ? EXIT_FINDINGS : EXIT_CLEAN;
}
