#include "xbb_plugin.h"
