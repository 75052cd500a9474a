/* keyguard: preloaded into the services that hold keys (key manager, pageserver, safekeepers). Before main it
 *   - makes the process not dumpable: no core file, no ptrace and no /proc/PID/mem for other processes of the same user;
 *   - sets RLIMIT_CORE to 0, hard and soft;
 *   - locks memory as it is touched, where the platform allows, so that keys do not reach swap;
 *   - has the allocator overwrite what is freed, so that keys and pages in freed memory do not stay.
 * Invariants: nothing here is ever fatal; what could not be done is said in LAKEBASE_KEYGUARD (and so in the service's log) and on the
 * descriptor LAKEBASE_KEYGUARD_FD if that is set; children are not guarded (LD_PRELOAD is taken out of the environment).
 *
 * madvise is wrapped because MADV_DONTNEED and MADV_FREE are refused on locked memory, and V8 takes a refusal as fatal. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* Linux 5.18 */
#endif
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4 /* Linux 4.4 */
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

#define EXPORT __attribute__((visibility("default")))
#define PERTURB_BYTE 0xa5

/* What V8 gives pages back with; on locked memory the same is said with MADV_DONTNEED_LOCKED (a kernel without it refuses as before). */
EXPORT int madvise(void *start, size_t length, int advice)
{
    int result = (int)syscall(SYS_madvise, start, length, advice);
    if (result == 0 || errno != EINVAL || (advice != MADV_DONTNEED && advice != MADV_FREE))
        return result;
    return (int)syscall(SYS_madvise, start, length, MADV_DONTNEED_LOCKED);
}

static void put(char *text, size_t size, const char *name, const char *outcome)
{
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s=%s", used == 0 ? "" : " ", name, outcome);
}

/* Where the kernel would refuse MADV_DONTNEED_LOCKED, locking is not worth the risk of V8's abort. */
static int can_give_back(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 0;
    int ok = syscall(SYS_madvise, page, 4096, MADV_DONTNEED_LOCKED) == 0;
    munmap(page, 4096);
    return ok;
}

/* With a limit on locked memory, MCL_FUTURE makes allocations fail once it is reached, and V8 reserves gigabytes: all or nothing. CAP_IPC_LOCK lifts the
 * limit, but only that of the first user namespace does: so it is tried, by locking one page more than the limit, none of them touched. */
static int locks_without_limit(void)
{
    struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY}, now;
    if (setrlimit(RLIMIT_MEMLOCK, &unlimited) == 0)
        return 1;
    if (getrlimit(RLIMIT_MEMLOCK, &now) != 0)
        return 0;
    if (now.rlim_cur == RLIM_INFINITY)
        return 1;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), more = ((size_t)now.rlim_cur / page + 1) * page;
    void *area = mmap(NULL, more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return 0;
    int ok = syscall(SYS_mlock2, area, more, MLOCK_ONFAULT) == 0;
    munmap(area, more);
    return ok;
}

static const char *lock_memory(void)
{
    if (!can_give_back())
        return "no:needs-Linux-5.18";
    if (!locks_without_limit())
        return "no:needs-CAP_IPC_LOCK-or-unlimited-memlock";
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0)
        return "yes";
    return errno == EPERM ? "no:EPERM" : errno == ENOMEM ? "no:ENOMEM" : errno == EINVAL ? "no:EINVAL" : "no";
}

__attribute__((constructor)) static void guard(void)
{
    char report[256] = "";
    struct rlimit none = {0, 0};

    put(report, sizeof report, "dumpable", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 ? "no" : "yes");
    put(report, sizeof report, "core", setrlimit(RLIMIT_CORE, &none) == 0 ? "no" : "yes");
    const char *off = getenv("LAKEBASE_KEYGUARD_MLOCK");
    put(report, sizeof report, "mlock", off != NULL && strcmp(off, "0") == 0 ? "no:switched-off" : lock_memory());
#ifdef M_PERTURB
    put(report, sizeof report, "perturb", mallopt(M_PERTURB, PERTURB_BYTE) == 1 ? "yes" : "no");
#else
    put(report, sizeof report, "perturb", "no:not-glibc");
#endif
    const char *fd = getenv("LAKEBASE_KEYGUARD_FD");
    if (fd != NULL && *fd != '\0')
        dprintf(atoi(fd), "%s\n", report);
    setenv("LAKEBASE_KEYGUARD", report, 1);
    unsetenv("LD_PRELOAD");
}
