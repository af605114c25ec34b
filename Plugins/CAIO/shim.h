/* libaio, which has no pkg-config file. */
#include <libaio.h>
