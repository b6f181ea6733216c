#include "journal/records.h"
