#pragma once
/* What every program answers before it looks at anything else. For main() alone: it prints. */

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"

/* --help, -h and --version, wherever they stand; true when there was one. */
static inline bool program_answers(int argc, char **argv, const char *name, const char *help)
{
    for (int i = 1; i < argc; i++) {
        bool version = strcmp(argv[i], "--version") == 0;
        if (version)
            printf("%s %s\n", name, KITH_VERSION);
        else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            fputs(help, stdout);
        else
            continue;
        return true;
    }
    return false;
}
