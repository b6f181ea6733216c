#include "journal/overlay.h"
