#include "server/models_plan.h"

uint64_t models_plan_room(struct models_plan_row *all, size_t n, size_t keep,
                          uint64_t newcomer_bytes, uint64_t limit)
{
    uint64_t total = newcomer_bytes;
    for (size_t i = 0; i < n; i++) {
        all[i].away = false;
        if (all[i].runs)
            total += all[i].bytes;
    }
    while (total > limit) {
        size_t oldest = n;
        for (size_t i = 0; i < n; i++)
            if (i != keep && all[i].runs && all[i].idle && !all[i].away &&
                (oldest == n || all[i].used_us < all[oldest].used_us))
                oldest = i;
        if (oldest == n)
            break;
        all[oldest].away = true;
        total -= all[oldest].bytes;
    }
    return total;
}
