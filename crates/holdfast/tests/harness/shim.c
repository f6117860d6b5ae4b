/* Preloaded into a node, it lets the machine say what it seldom says.
 *
 * SHIM names a directory. While it holds `clock`, the wall clock says 1970-01-02. While it holds
 * `accept-PORT`, the next connection to that port is lost, accept4 fails with the number of the
 * error that is in the file, and the file is removed. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int named(char *path, size_t bytes, const char *kind, int number)
{
    const char *directory = getenv("SHIM");
    if (directory == NULL)
        return 0;
    if (number < 0)
        snprintf(path, bytes, "%s/%s", directory, kind);
    else
        snprintf(path, bytes, "%s/%s-%d", directory, kind, number);
    return access(path, F_OK) == 0;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    char path[4096];
    int kept = errno;
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && named(path, sizeof path, "clock", -1))
        time->tv_sec = 86400;
    if (result == 0)
        errno = kept;
    return result;
}

int accept4(int listener, struct sockaddr *address, socklen_t *bytes, int flags)
{
    char path[4096];
    struct sockaddr_in local;
    socklen_t size = sizeof local;
    int taken = syscall(SYS_accept4, listener, address, bytes, flags);
    if (taken < 0 || getsockname(listener, (struct sockaddr *)&local, &size) != 0
        || !named(path, sizeof path, "accept", ntohs(local.sin_port)))
        return taken;
    int error = EIO;
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%d", &error) != 1)
            error = EIO;
        fclose(file);
    }
    unlink(path);
    close(taken);
    errno = error;
    return -1;
}
