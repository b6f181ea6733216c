/*
 * annotate.h: what the memory checkers must be told, as calls that vanish without them.
 *
 * AddressSanitizer has to know when the stack changes, and which pages of an arena are handed out;
 * valgrind has to know where our stacks lie, and what the system wrote into memory behind
 * a completion queue.
 */
#ifndef STRIPELOG_ANNOTATE_H
#define STRIPELOG_ANNOTATE_H

#include <stddef.h>

#ifdef __SANITIZE_ADDRESS__
#define ANNOTATE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ANNOTATE_ASAN 1
#endif
#endif

#ifdef ANNOTATE_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define annotate_switch_begin(save, stack, bytes) __sanitizer_start_switch_fiber(save, stack, bytes)
#define annotate_switch_end(saved, stack, bytes)                                                   \
    __sanitizer_finish_switch_fiber(saved, stack, bytes)
#define annotate_memory_off(at, bytes) __asan_poison_memory_region(at, bytes)
#define annotate_memory_on(at, bytes)  __asan_unpoison_memory_region(at, bytes)
#else
#define annotate_switch_begin(save, stack, bytes) ((void)0)
#define annotate_switch_end(saved, stack, bytes)  ((void)0)
#define annotate_memory_off(at, bytes)            ((void)0)
#define annotate_memory_on(at, bytes)             ((void)0)
#endif

#ifdef HAVE_VALGRIND
#include <valgrind/memcheck.h>
#include <valgrind/valgrind.h>
#define annotate_stack_register(low, high) VALGRIND_STACK_REGISTER(low, high)
#define annotate_stack_deregister(id)      VALGRIND_STACK_DEREGISTER(id)
#define annotate_valgrind_runs()           (RUNNING_ON_VALGRIND != 0)
#define annotate_defined(at, bytes)        ((void)VALGRIND_MAKE_MEM_DEFINED(at, bytes))
#else
#define annotate_stack_register(low, high) 0u
#define annotate_stack_deregister(id)      ((void)(id))
#define annotate_valgrind_runs()           false
#define annotate_defined(at, bytes)        ((void)(at), (void)(bytes))
#endif

#endif
