// The test program: doctest's main. Each file beside this one tests one room of the house.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
