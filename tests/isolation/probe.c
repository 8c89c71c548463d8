/* Makes every system call from 0 to 600, each in a child of its own, with -1 as every argument, or with the number that is
   given: nothing comes of it. Prints one line per call: its number and errno, or what ended the child. Then the x32 calls and a 32-bit one. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct outcome { volatile int returned; volatile int number; };

static void probe(long number, long argument, struct outcome *shared)
{
    shared->returned = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        long result = syscall(number, argument, argument, argument, argument, argument, argument);
        shared->number = result == -1 ? errno : 0;
        shared->returned = 1;
        _exit(0);
    }
    /* A call that waits for ever is one that was let through. */
    for (int turn = 0; turn < 1000 && !shared->returned; turn++) {
        int status;
        if (waitpid(child, &status, WNOHANG) == child) {
            if (shared->returned)
                break;
            if (WIFSIGNALED(status))
                printf("%ld signal %d\n", number, WTERMSIG(status));
            else
                printf("%ld exit\n", number);
            return;
        }
        struct timespec moment = {0, 200000};
        nanosleep(&moment, NULL);
    }
    if (shared->returned)
        printf("%ld errno %d\n", number, shared->number);
    else
        printf("%ld waits\n", number);
    kill(-child, SIGKILL);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

int main(int count, char **words)
{
    long argument = count > 1 ? atol(words[1]) : -1;
    struct outcome *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (long number = 0; number <= 600; number++)
        probe(number, argument, shared);
    for (long number = 0; number <= 600; number++)
        probe(number | 0x40000000, argument, shared);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory"); /* getpid of i386 */
        _exit(result > 0 ? 1 : 2);
    }
    int status;
    waitpid(child, &status, 0);
    printf("i386 %s %d\n", WIFSIGNALED(status) ? "signal" : "exit",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return 0;
}
