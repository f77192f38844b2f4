/*
 * Preloaded into linux.uml: widens the floating point registers that it hands to ptrace.
 *
 * A User Mode Linux kernel keeps its processes' XSAVE areas in a buffer whose size was fixed when it was built. The host's
 * PTRACE_SETREGSET(NT_X86_XSTATE) takes nothing shorter than the area of the processor at hand, so where that has grown
 * (AMX tiles alone are 8 KiB) the first user process ends in "ptrace set fp regs failed" and a panic.
 *
 * The buffer is therefore copied into one of the size that the host reports, and XSTATE_BV keeps only the components that
 * lie wholly within what UML gave: the host takes the others as being in their initial state, which is what they are in,
 * since UML never saved any.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

enum { NT_X86_XSTATE = 0x202, XSTATE_LEAF = 0xd, XSTATE_BV_OFFSET = 512, XSTATE_HEADER_END = 576 };

static long (*libc_ptrace)(int request, ...);
static uint8_t area[1 << 16] __attribute__((aligned(64)));

/* Resolved beforehand: the dynamic linker should not run on one of UML's kernel stacks. */
__attribute__((constructor)) static void resolve(void)
{
	libc_ptrace = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
}

static uint64_t components_within(size_t length)
{
	uint64_t kept = 3; /* x87 and SSE: the legacy region, below XSTATE_BV itself */
	unsigned size, offset, ecx, edx;

	for (int bit = 2; bit < 63; bit++)
		if (__get_cpuid_count(XSTATE_LEAF, bit, &size, &offset, &ecx, &edx) && size && offset >= XSTATE_HEADER_END &&
		    (size_t)offset + size <= length)
			kept |= 1ULL << bit;
	return kept;
}

static size_t host_length(int pid)
{
	struct iovec probe = { area, sizeof area };

	return libc_ptrace(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &probe) == 0 ? probe.iov_len : 0;
}

static struct iovec widened(const struct iovec *given, size_t length)
{
	uint64_t components;

	memset(area, 0, length);
	memcpy(area, given->iov_base, given->iov_len);
	memcpy(&components, area + XSTATE_BV_OFFSET, sizeof components);
	components &= components_within(given->iov_len);
	memcpy(area + XSTATE_BV_OFFSET, &components, sizeof components);
	return (struct iovec){ area, length };
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list rest;
	va_start(rest, request);
	int pid = va_arg(rest, int);
	void *addr = va_arg(rest, void *);
	void *data = va_arg(rest, void *);
	va_end(rest);

	if (request == PTRACE_SETREGSET && addr == (void *)NT_X86_XSTATE) {
		static size_t length;
		const struct iovec *given = data;

		if (!length)
			length = host_length(pid);
		if (given->iov_len >= XSTATE_HEADER_END && given->iov_len < length) {
			struct iovec wide = widened(given, length);
			return libc_ptrace(request, pid, addr, &wide);
		}
	}
	return libc_ptrace(request, pid, addr, data);
}
