/* The floor: the least that one command behind a full set of walls costs on this kernel.
 *
 *     floor LOWER FILTER RUNS AT_ONCE PAUSE_USEC -- COMMAND…
 *
 * Each run is what sandboxd does for a job, without everything that makes it a service: a process in user, mount, pid, network,
 * ipc, uts and cgroup namespaces of its own, a single id, an overlay with a bounded tmpfs above LOWER as its root, the host's /usr
 * read-only, proc, no capabilities, no_new_privs, the seccomp filter of the file FILTER, the command, and waiting for its end. Nothing
 * is left out that a wall is made of, and nothing is done twice: there is no helper program, no pipe, no interpreter, and no page that
 * is touched for something else. Cgroups are not walls, and not in it.
 *
 * AT_ONCE processes make RUNS runs each, with a pause before each. Prints how long each took, in nanoseconds, a line for each, then
 * "all" and how long they took together. The first step that fails names itself, and nothing is printed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BOX "/tmp"             /* where the scratch is mounted; in the sandbox's mount namespace only */
#define INSIDE_ID 1000         /* not root inside: the command has no capabilities once it is executed */
#define LAST_CAPABILITY 40
#define STEP(call) do { if ((call) < 0) fail(#call); } while (0)

static const char *lower;
static char **command;
static struct sock_fprog filter;
static char uid_map[64], gid_map[64], overlay[4096];
static unsigned long usr_flags; /* a bind mount keeps these: an id map may not take them away */

static void fail(const char *step)
{
    fprintf(stderr, "floor: %s: %s\n", step, strerror(errno));
    _exit(111);
}

static void write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0)
        fail(path);
    close(file);
}

static void map_one_id(void)
{
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", uid_map);
    write_file("/proc/self/gid_map", gid_map);
}

static void make_root(void)
{
    STEP(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    STEP(mount("tmpfs", BOX, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=16384,mode=755"));
    STEP(mkdir(BOX "/upper", 0755));
    STEP(mkdir(BOX "/work", 0755));
    STEP(mkdir(BOX "/root", 0755));
    STEP(mount("overlay", BOX "/root", "overlay", MS_NOSUID | MS_NODEV, overlay));
    STEP(mount("/usr", BOX "/root/usr", NULL, MS_BIND | MS_REC, NULL));
    STEP(mount(NULL, BOX "/root/usr", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | usr_flags, NULL));
    STEP(mount("proc", BOX "/root/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

static void enter_root(void)
{
    STEP(chdir(BOX "/root"));
    STEP(syscall(SYS_pivot_root, ".", "."));
    STEP(umount2(".", MNT_DETACH));
    STEP(chdir("/"));
}

static void give_up_privileges(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    struct rlimit no_core = {0, 0}, files = {1024, 1024};

    STEP(sethostname("sandbox", 7));
    STEP(setrlimit(RLIMIT_CORE, &no_core));
    STEP(setrlimit(RLIMIT_NOFILE, &files));
    for (int capability = 0; capability <= LAST_CAPABILITY; capability++)
        STEP(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
    STEP(syscall(SYS_capset, &header, none));
    STEP(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    STEP(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
}

static void run_once(void)
{
    static char *const environment[] = {"PATH=/usr/bin:/bin", NULL};
    struct clone_args how = {
        .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP,
        .exit_signal = SIGCHLD,
    };
    int status;
    pid_t child = syscall(SYS_clone3, &how, sizeof how);

    if (child == 0) {
        map_one_id();
        make_root();
        enter_root();
        give_up_privileges();
        execve(command[0], command, environment);
        fail("execve");
    }
    STEP(child);
    STEP(waitpid(child, &status, 0));
    if (status != 0) {
        fprintf(stderr, "floor: the command ended with status %d\n", status);
        _exit(111);
    }
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void run_many(int runs, int pause_usec, int64_t *taken)
{
    for (int run = 0; run < runs; run++) {
        if (pause_usec)
            usleep(pause_usec);
        int64_t began = now();
        run_once();
        taken[run] = now() - began;
    }
}

static void read_filter(const char *path)
{
    static struct sock_filter program[BPF_MAXINSNS];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, program, sizeof program);
    if (size <= 0)
        fail(path);
    filter = (struct sock_fprog){size / sizeof *program, program};
    close(file);
}

int main(int count, char **words)
{
    if (count < 8)
        return fprintf(stderr, "floor LOWER FILTER RUNS AT_ONCE PAUSE_USEC -- COMMAND...\n"), 2;
    int runs = atoi(words[3]), at_once = atoi(words[4]), pause_usec = atoi(words[5]), failed = 0;
    lower = words[1];
    read_filter(words[2]);
    command = words + 7;
    snprintf(uid_map, sizeof uid_map, "%d %d 1", INSIDE_ID, geteuid());
    snprintf(gid_map, sizeof gid_map, "%d %d 1", INSIDE_ID, getegid());
    snprintf(overlay, sizeof overlay, "lowerdir=%s,upperdir=" BOX "/upper,workdir=" BOX "/work", lower);
    struct statvfs usr;
    STEP(statvfs("/usr", &usr));
    usr_flags = usr.f_flag & (ST_NODEV | ST_NOEXEC | ST_NOATIME | ST_NODIRATIME | ST_RELATIME);

    int64_t *taken = mmap(NULL, sizeof *taken * runs * at_once, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (taken == MAP_FAILED)
        fail("mmap");
    int64_t began = now();
    for (int worker = 0; worker < at_once; worker++) {
        pid_t pid = fork();
        STEP(pid);
        if (pid == 0) {
            run_many(runs, pause_usec, taken + worker * runs);
            _exit(0);
        }
    }
    for (int status; wait(&status) > 0;)
        failed |= status;
    int64_t together = now() - began;
    if (failed)
        return 1;
    for (int run = 0; run < runs * at_once; run++)
        printf("%lld\n", (long long)taken[run]);
    printf("all %lld\n", (long long)together);
    return 0;
}
