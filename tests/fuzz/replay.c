/* An ordinary main for a fuzz target: feeds it every file of a folder once, so that `make test`
 * replays what the fuzzers have found without libFuzzer. The target aborts on what it finds. */

#include <dirent.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/file.h"

enum { MAX_BYTES = 64 << 20, PATH_BYTES = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    DIR *dir = opendir(argv[1]);
    if (!dir) {
        fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
        return 2;
    }
    unsigned n = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[PATH_BYTES];
        struct buf input = {0};
        struct err e = {0};
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        if (file_read_whole(path, MAX_BYTES, &input, &e)) {
            fprintf(stderr, "%s\n", e.message);
            closedir(dir);
            return 2;
        }
        LLVMFuzzerTestOneInput((const uint8_t *)(input.data ? input.data : ""), input.len);
        buf_deinit(&input);
        n++;
    }
    closedir(dir);
    printf("%s: %u inputs\n", argv[1], n);
    return n ? 0 : 2;
}
