/* Stands in for a supervisor where only the driver is tested: tries what a container may and may not
 * do, writes what came of it beside its socket, and waits. Built statically, since it is all that its
 * image needs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define CGROUP "/taibai/private/cgroup"
#define RUN "/taibai/private/run"

static int opened(const char *path, int flags)
{
    int fd = open(path, flags, 0600);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

/* Makes a group below ours and moves a process there, as is done for a slot. */
static int moved(const char *base, pid_t pid)
{
    char path[256], number[32];
    snprintf(path, sizeof path, "%s/slot-0", base);
    if (mkdir(path, 0755) < 0)
        return errno;
    strcat(path, "/cgroup.procs");
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return errno;
    int length = snprintf(number, sizeof number, "%d", pid);
    int result = write(fd, number, length) == length ? 0 : errno;
    close(fd);
    return result;
}

static unsigned uid_base(void)
{
    const char *settings = getenv("TAIBAI_SETTINGS");
    const char *found = settings ? strstr(settings, "\"uid_base\":") : NULL;
    return found ? strtoul(found + strlen("\"uid_base\":"), NULL, 10) : 0;
}

/* As the first slot's user: how much fits into its scratch directory. */
static void fill(unsigned uid)
{
    static char block[1 << 16];
    long written = 0;
    FILE *report = fopen(RUN "/fill", "w");
    if (setgid(uid) < 0 || setuid(uid) < 0) {
        fprintf(report, "setuid %d\n", errno);
        exit(1);
    }
    int fd = open("/taibai/work/scratch/0/file", O_CREAT | O_WRONLY, 0600);
    int own = fd < 0 ? errno : 0;
    memset(block, 1, sizeof block);
    while (fd >= 0 && written < (256L << 20)) {
        ssize_t done = write(fd, block, sizeof block);
        if (done <= 0)
            break;
        written += done;
    }
    fprintf(report, "own_scratch %d\n", own);
    fprintf(report, "written %ld\n", written);
    fprintf(report, "other_scratch %d\n", opened("/taibai/work/scratch/1/file", O_CREAT | O_WRONLY));
    fprintf(report, "package %d\n", opened("/taibai/work/package/file", O_CREAT | O_WRONLY));
    fprintf(report, "private %d\n", opened("/taibai/private/x", O_RDONLY));
    fclose(report);
    for (;;)
        pause();
}

int main(int count, char **words)
{
    FILE *report = fopen(RUN "/report.part", "w");
    if (!report)
        return 2;
    pid_t child = fork();
    if (child == 0)
        fill(uid_base());
    fprintf(report, "shim %s\n", count > 1 ? words[1] : "");
    fprintf(report, "pid %d\n", getpid());
    fprintf(report, "root %d\n", opened("/new", O_CREAT | O_WRONLY));
    fprintf(report, "supervisor %d\n", chmod("/taibai/supervisor", 0700) < 0 ? errno : 0);
    fprintf(report, "tmp %d\n", opened("/tmp/new", O_CREAT | O_WRONLY));
    fprintf(report, "raw_socket %d\n", socket(AF_INET, SOCK_RAW, 1) < 0 ? errno : 0);
    if (access(CGROUP "/memory", F_OK) == 0) {
        fprintf(report, "memory %d\n", moved(CGROUP "/memory", child));
        fprintf(report, "cpu %d\n", moved(CGROUP "/cpu", child));
        fprintf(report, "pids %d\n", moved(CGROUP "/pids", child));
    } else {
        fprintf(report, "unified %d\n", moved(CGROUP, child));
    }
    fclose(report);
    rename(RUN "/report.part", RUN "/report");
    for (;;)
        pause();
}
