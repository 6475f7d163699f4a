/* A worker whose first deed is to write its process's number to the pipe that $BENCH_FIFO names. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void) {
    const char *path = getenv("BENCH_FIFO");
    int fd = path ? open(path, O_WRONLY) : -1;
    if (fd < 0 || dprintf(fd, "%d\n", (int)getpid()) < 0)
        return 1;
    close(fd);
    for (;;)
        pause();
}
