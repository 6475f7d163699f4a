/* What a system call costs.

   calls cheap             nanoseconds for a call, on a line for each kind, in the best of many runs: what else the
                           machine does can only make a run longer
   calls bind PORT         microseconds for the bind and the listen of a socket on that port, and for a bind to
                           port 0, in the median
   calls filtered COMMAND  runs the command under a filter that allows all, as a container's does with these calls */
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { RUNS = 250, BINDS = 1000 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void print_median(const char *name, double *nanoseconds) {
    qsort(nanoseconds, BINDS, sizeof *nanoseconds, compare);
    printf("%s %.3f\n", name, nanoseconds[BINDS / 2] / 1000);
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int new_socket(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    return fd;
}

static int fd, ends[2];

/* syscall() and not the library's function, which may have an answer ready. */
static void getppid_once(void) {
    syscall(SYS_getppid);
}

static void nodelay_once(void) {
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        fail("setsockopt");
}

static void pipe_once(void) {
    char byte = 0;
    if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
        fail("pipe");
}

/* A run is many calls: reading the clock takes as long as one does. */
static void cheap(const char *name, void (*once)(void), int times, int calls_in_each) {
    double best = 1e9;
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        for (int i = 0; i < times; i++)
            once();
        double each = (now() - start) / times / calls_in_each;
        if (each < best)
            best = each;
    }
    printf("%s %.3f\n", name, best);
}

/* Binds a new socket, perhaps listens on it, and closes it, many times. */
static void binding(int port, double *bind_times, double *listen_times) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((unsigned short)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    for (int i = -1; i < BINDS; i++) { /* the first one, which makes the listener, does not count */
        int socket = new_socket();
        double start = now();
        if (bind(socket, (struct sockaddr *)&address, sizeof address))
            fail("bind");
        double bound = now();
        if (listen_times && listen(socket, 511))
            fail("listen");
        double listening = now();
        close(socket);
        if (i < 0)
            continue;
        bind_times[i] = bound - start;
        if (listen_times)
            listen_times[i] = listening - bound;
    }
}

static void run_filtered(char **command) {
    struct sock_filter allow = {.code = BPF_RET | BPF_K, .k = SECCOMP_RET_ALLOW};
    struct sock_fprog program = {.len = 1, .filter = &allow};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        fail("prctl");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program))
        fail("seccomp");
    execv(command[0], command);
    fail(command[0]);
}

int main(int count, char **arguments) {
    if (count > 2 && !strcmp(arguments[1], "filtered"))
        run_filtered(arguments + 2);
    if (count == 2 && !strcmp(arguments[1], "cheap")) {
        fd = new_socket();
        if (pipe(ends))
            fail("pipe");
        cheap("getppid", getppid_once, 20000, 1);
        cheap("setsockopt", nodelay_once, 4000, 1);
        cheap("pipe", pipe_once, 4000, 2);
        return 0;
    }
    if (count == 3 && !strcmp(arguments[1], "bind")) {
        static double binds[BINDS], listens[BINDS];
        binding(atoi(arguments[2]), binds, listens);
        print_median("bind", binds);
        print_median("listen", listens);
        binding(0, binds, NULL);
        print_median("bind-0", binds);
        return 0;
    }
    fprintf(stderr, "usage: calls cheap | calls bind PORT | calls filtered COMMAND\n");
    return 2;
}
