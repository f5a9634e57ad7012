#pragma once
/* The version every program prints. */

#define KITH_VERSION "0.1.0"
