/* Start of the shim in a process: environment, map, key, layout, fork handler. Without LAKEBASE_SHIM_MAP everything passes through. */
#define _GNU_SOURCE
#include "shim.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "agent_client.h"
#include "fault.h"
#include "layout.h"
#include "libc.h"
#include "resident_map.h"
#include "scratch_key.h"
#include "segment_path.h"
#include "util.h"
#include "worker.h"

#define RETRY_SECONDS_DEFAULT 60
#define RETRY_SECONDS_MAX 86400

static void after_fork(void)
{
    fault_after_fork();
    agent_client_after_fork();
    layout_in_postmaster(false);
}

static const char *required(const char *name)
{
    const char *value = getenv(name);
    if (value == NULL || *value == '\0')
        shim_die("LAKEBASE_SHIM_MAP is set but %s is not", name);
    return value;
}

/* An orphaned postmaster would go on without pages and without anybody to stop it: die with the agent. The kernel forgets this request
 * in forked children. LAKEBASE_SHIM_PARENT closes the window before it: an agent that died earlier is no longer our parent. */
static void die_with_agent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGQUIT);
    const char *parent = getenv("LAKEBASE_SHIM_PARENT");
    if (parent != NULL && strtol(parent, NULL, 10) != (long)getppid())
        shim_die("the agent is gone");
}

void shim_start(void)
{
    libc_resolve();
    const char *map_path = getenv("LAKEBASE_SHIM_MAP");
    map_close();
    if (map_path == NULL || *map_path == '\0')
        return;
    const char *datadir = required("LAKEBASE_SHIM_DATADIR");
    const char *wrong = map_open(map_path);
    if (wrong != NULL)
        shim_die("resident map %s: %s", map_path, wrong);
    if (!segment_path_start(datadir))
        shim_die("LAKEBASE_SHIM_DATADIR must be an existing absolute directory, not %s", datadir);
    const char *retry = getenv("LAKEBASE_SHIM_RETRY_SECONDS");
    long retry_seconds = retry == NULL ? RETRY_SECONDS_DEFAULT : strtol(retry, NULL, 10);
    if (retry_seconds < 0 || retry_seconds > RETRY_SECONDS_MAX)
        retry_seconds = RETRY_SECONDS_DEFAULT;
    const char *socket_path = required("LAKEBASE_SHIM_SOCKET");
    if (!agent_client_start(socket_path, (unsigned)retry_seconds))
        shim_die("LAKEBASE_SHIM_SOCKET is too long for a Unix socket: %s", socket_path);
    static bool registered;
    if (!registered)
        registered = pthread_atfork(NULL, NULL, after_fork) == 0;
    const char *layout = getenv("LAKEBASE_SHIM_LAYOUT");
    bool worker = worker_wanted();
    scratch_key_start(layout != NULL || worker);
    if (worker)
        die_with_agent();
    if (layout != NULL) {
        die_with_agent();
        layout_in_postmaster(true);
        if (strcmp(layout, "lazy") != 0)
            layout_all();
        unsetenv("LAKEBASE_SHIM_LAYOUT");
        unsetenv("LAKEBASE_SHIM_PARENT");
    }
}

/* The key and the pages are in our memory: no core file, and no other process of the same account may look. Backends inherit both. */
static void close_memory(void)
{
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    prctl(PR_SET_DUMPABLE, 0);
}

__attribute__((constructor)) static void on_load(void)
{
    shim_start();
    if (map != NULL)
        close_memory();
    if (map != NULL && worker_wanted())
        worker_run();
}
