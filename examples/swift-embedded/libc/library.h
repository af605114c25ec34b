/* Embedded Swift has no module Glibc. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
