"""Hostile programs. Each prints, a word each, what it achieved; contained ones print only `ended`.

`TRY` goes before a program that makes several attempts and survives being refused. Should the
sandbox ever fail them, none does lasting harm: signals to everybody are of number 0, and calls that
administer the machine carry arguments that an unfiltered kernel finds wrong, not forbidden.
"""

TRY = """
import ctypes, errno, os, resource, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if os.uname().machine != "x86_64":  # whose numbers these are
        raise OSError(errno.EPERM, "not tried")
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def attempt(name, act, *arguments):
    try:
        act(*arguments)
    except (OSError, ValueError):
        return
    print(name, flush=True)

def forbidden(name, act, *arguments):
    try:
        act(*arguments)
    except ValueError:  # what Python makes of a limit that may not be raised
        return
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            return
    print(name, flush=True)
"""

# Arguments: a file of a run.
READ = (
    TRY
    + """
for path in ("/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/1/mem", "/proc/self/mem",
             f"/proc/{os.getppid()}/environ", "/proc/kcore", "/dev/vda", "/dev/sda", sys.argv[1]):
    attempt(path, open, path)
for path in ("/home", "/dev/shm", "/proc/1/root", "/proc", os.path.dirname(sys.argv[1])):
    attempt(path, os.listdir, path)
print("ended")
"""
)

# Arguments: a directory that it may see, with a file `text`, where everybody may write.
WRITE = (
    TRY
    + """
text = sys.argv[1] + "/text"
for place in ("", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/usr/lib", "/run", sys.argv[1]):
    attempt(place or "/", os.open, place + "/x", os.O_WRONLY | os.O_CREAT)
    attempt("tmpfile", os.open, place or "/", os.O_WRONLY | os.O_TMPFILE)
attempt("append", open, text, "a")
attempt("unlink", os.unlink, text)
attempt("chmod", os.chmod, text, 0)
attempt("chown", os.chown, text, 1, 1)
attempt("utime", os.utime, text, (0, 0))
attempt("xattr", os.setxattr, text, "user.x", b"x")
attempt("truncate", os.truncate, text, 0)
attempt("link", os.link, text, sys.argv[1] + "/other")
attempt("device", os.mkdir, "/dev/trireme-was-here")
forbidden("node", call, 133, b"/nonexistent/sda", 0o60666, os.makedev(8, 0))
open("/dev/null", "w").write("x")
print("ended")
"""
)

HUGE_FILE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
file = open("huge", "wb")
while True:
    file.write(bytes(1 << 16))
    file.flush()
"""

# Arguments: the port, path and abstract name of sockets that listen.
KNOCK = (
    TRY
    + """
def knock(family, address):
    socket.socket(family).connect(address)

attempt("inet", knock, socket.AF_INET, ("127.0.0.1", int(sys.argv[1])))
attempt("inet6", knock, socket.AF_INET6, ("::1", int(sys.argv[1])))
attempt("unix", knock, socket.AF_UNIX, sys.argv[2])
attempt("abstract", knock, socket.AF_UNIX, chr(0) + sys.argv[3])
for family in range(2, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        attempt(f"family-{family}", socket.socket, family, kind)
print("ended")
"""
)

# Arguments: the pid of a bystander.
MEDDLE = (
    TRY
    + """
here = int(sys.argv[1])
for pid in {here, 1, os.getppid()}:
    attempt("trace", call, 101, 16, pid, 0, 0)
    attempt("seize", call, 101, 0x4206, pid, 0, 0)
    attempt("pidfd", os.pidfd_open, pid)
    attempt("read", call, 310, pid, 0, 0, 0, 0, 0)
attempt("kill", os.kill, here, 9)
attempt("test", os.kill, here, 0)
attempt("group", os.killpg, here, 9)
attempt("nice", os.setpriority, os.PRIO_PROCESS, here, 19)
attempt("affinity", os.sched_setaffinity, here, {0})
attempt("limit", resource.prlimit, here, resource.RLIMIT_CPU, (1, 1))
if os.getpid() > 2:  # no namespace of its own: everything is in reach
    attempt("all", os.kill, -1, 0)
    attempt("keeper", os.kill, os.getppid(), 0)
print("ended")
"""
)

FORKS = """
import os, time
while True:
    try:
        if os.fork() == 0:
            os.write(1, b"+")
    except OSError:
        time.sleep(0.01)
"""

THREADS = """
import os, threading, time
made = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        made += 1
except RuntimeError:
    print(made, flush=True)
os._exit(0)
"""

DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(1, 32):
            if number not in (9, 19):
                signal.signal(number, signal.SIG_IGN)
        for fd in range(3):
            os.close(fd)
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
time.sleep(0.1)
print("left it behind")
"""

# Memory that the limit on address space does not see.
UNCOUNTED = (
    TRY
    + """
attempt("memfd", os.memfd_create, "x")
attempt("secret", call, 447, 0)
attempt("shm", call, 29, 0, 1 << 20, 0o1600)
attempt("queue", call, 68, 0, 0o1600)
attempt("lock", call, 151, 1)
print("ended")
"""
)

DEAF = """
import signal, time
for number in range(1, 32):
    if number not in (9, 19):
        signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(1)
"""

RISE = (
    TRY
    + """
for name in ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "CORE"):
    which = getattr(resource, "RLIMIT_" + name)
    forbidden(name, resource.setrlimit, which, (resource.RLIM_INFINITY,) * 2)
forbidden("user-namespace", call, 272, 0x10000000)
forbidden("net-namespace", call, 272, 0x40000000)
forbidden("clone-namespace", call, 56, 0x10000011, 0, 0, 0, 0)
forbidden("clone3", call, 435, None, 88)
forbidden("setns", call, 308, -1, 0)
forbidden("mount", call, 165, b"none", b"/nonexistent", b"none", 0, 0)
forbidden("open_tree", call, 428, -100, b"/nonexistent", 1)
forbidden("chroot", call, 161, b"/nonexistent")
forbidden("io_uring", call, 425, 8, None)
forbidden("bpf", call, 321, -1, None, 0)
forbidden("keyctl", call, 250, 0, -3)
forbidden("perf", call, 298, None, 0, -1, -1, 0)
forbidden("userfaultfd", call, 323, -1)
forbidden("hostname", call, 170, None, 1)
forbidden("newer", call, 467, -1, None, 0, 0, 0)
forbidden("x32", call, 0x40000000 + 39)
forbidden("handle", call, 303, -100, b"/nonexistent", None, None, 0)
if os.getuid() != 0:
    attempt("root", os.setuid, 0)
print("ended")
"""
)

DESCRIPTORS = """
import os
found = []
for fd in range(1024):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
print(found)
"""
