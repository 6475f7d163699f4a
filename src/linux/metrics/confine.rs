//! What the metrics child gives up before it reads the first byte from a network.
//!
//! Must never add a call that reaches a file, another process or another host: no open, no socket, no kill, no clone.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{Gid, Uid};

use crate::linux::ports::filter::{MACHINE_AT, NUMBER_AT, THIRD_AT, jump, load, number, ret, unless_equal};
use crate::linux::sys::{self, AUDIT_ARCH, Instruction, Pid};
use crate::signals::Signal;

/// `nobody`, on every distribution.
const NOBODY: u32 = 65534;

const ALLOW: Instruction = ret(libc::SECCOMP_RET_ALLOW);
/// With EPERM, so that what the C library only tries does no harm.
const DENY: Instruction = ret(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs());
const UNLESS_CODE: Instruction = jump(libc::BPF_JSET, libc::PROT_EXEC.unsigned_abs(), 1, 0);

/// The calls that it makes from then on. Those of other machines (i386) have other numbers, x32's are above all of these.
#[rustfmt::skip]
const PROGRAM: [Instruction; 45] = [
    load(MACHINE_AT), unless_equal(AUDIT_ARCH, 0, 1), DENY, load(NUMBER_AT),
    unless_equal(number(libc::SYS_read), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_write), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_accept4), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_shutdown), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_close), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_epoll_ctl), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_epoll_pwait), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_epoll_pwait2), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_ppoll), 1, 0), ALLOW,
    // The C library asks the kernel for it where there is no vDSO.
    unless_equal(number(libc::SYS_clock_gettime), 1, 0), ALLOW,
    // The allocator, and what gives memory back.
    unless_equal(number(libc::SYS_brk), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_munmap), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_mremap), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_madvise), 1, 0), ALLOW,
    unless_equal(number(libc::SYS_exit_group), 1, 0), ALLOW,
    // The allocator's too, as long as nothing becomes code by them.
    unless_equal(number(libc::SYS_mmap), 4, 0), load(THIRD_AT), UNLESS_CODE, DENY, ALLOW,
    unless_equal(number(libc::SYS_mprotect), 4, 0), load(THIRD_AT), UNLESS_CODE, DENY, ALLOW,
    DENY,
];

/// Lets go of everything but what it needs to answer. Each step is worth taking where another one is refused, as in a
/// container without CAP_SETUID or on a kernel without seccomp.
pub(super) fn confine(panzer: &OwnedFd, listener: &OwnedFd) {
    let _ = rustix::thread::set_name(c"panzer-metrics");
    // Its own group, and all signals stay blocked, as with the guard.
    sys::lead_group(Pid::own());
    let _ = rustix::process::chdir(c"/");
    // Not panzer's own stderr, on which it could say what it likes, or read what is typed there.
    if let Ok(null) = rustix::fs::open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = sys::duplicate_to(null.as_fd(), 2);
    }
    let (one, other) = (panzer.as_raw_fd(), listener.as_raw_fd());
    let (low, high) = (one.min(other), one.max(other));
    for &(first, last) in &[(0, 1), (3, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
        sys::close_range(first, last);
    }
    if rustix::process::geteuid().is_root() {
        let _ = rustix::thread::set_thread_groups(&[]);
        let _ = rustix::thread::set_thread_gid(Gid::from_raw(NOBODY));
        let _ = rustix::thread::set_thread_uid(Uid::from_raw(NOBODY));
    }
    // After the credentials: the kernel forgets both where those change.
    let _ = sys::set_parent_death_signal(Signal::KILL);
    // Nobody of the same user may trace it.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = rustix::thread::set_no_new_privs(true);
}

/// Leaves nothing but the calls of the list, for good.
pub(super) fn lock() {
    let _ = sys::confine(&PROGRAM);
}

#[cfg(test)]
mod tests {
    use std::ffi::c_long;

    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType};
    use rustix::process::WaitOptions;

    use super::*;
    use crate::linux::sys::Fork;

    /// Whether the kernel would let the call through.
    fn lets_through(call: c_long, machine: u32, third: u32) -> bool {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = PROGRAM[at];
            at += 1;
            let then = match u32::from(code) {
                c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    loaded = match k {
                        NUMBER_AT => number(call),
                        MACHINE_AT => machine,
                        THIRD_AT => third,
                        other => panic!("reads at {other}"),
                    };
                    continue;
                }
                c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => loaded == k,
                c if c == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => loaded & k != 0,
                _ => return k == libc::SECCOMP_RET_ALLOW,
            };
            at += usize::from(if then { jt } else { jf });
        }
    }

    #[test]
    fn only_a_few_calls_are_let_through() {
        let let_through = (0..1024).filter(|call| lets_through(*call, AUDIT_ARCH, 0));
        assert_eq!(let_through.count(), 17);
        for call in (0..1024).map(|call| call | 0x4000_0000) {
            assert!(!lets_through(call, AUDIT_ARCH, 0), "x32 {call}");
        }
        let refused = [
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_pidfd_send_signal,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_sendmsg,
            libc::SYS_clone,
            libc::SYS_execve,
            libc::SYS_ioctl,
            libc::SYS_prctl,
            libc::SYS_io_uring_setup,
        ];
        assert!(refused.into_iter().all(|call| !lets_through(call, AUDIT_ARCH, 0)));
        let writable = (libc::PROT_READ | libc::PROT_WRITE).unsigned_abs();
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert!(lets_through(call, AUDIT_ARCH, writable));
            assert!(!lets_through(call, AUDIT_ARCH, writable | libc::PROT_EXEC.unsigned_abs()));
        }
        let i386 = 0x4000_0003;
        assert!((0..1024).all(|call| !lets_through(call, i386, 0)));
    }

    #[test]
    fn a_confined_process_reaches_nobody_else() {
        let other = rustix::process::getpid();
        // Between this and its end the child allocates nothing: other threads may have held the allocator's lock.
        let Fork::Parent(child) = sys::fork(Some(Signal::CHLD)).unwrap() else {
            let _ = rustix::thread::set_no_new_privs(true);
            lock();
            let refused = [
                rustix::process::test_kill_process(other).err(),
                rustix::fs::open(c"/", OFlags::RDONLY, Mode::empty()).err(),
                rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).err(),
                rustix::process::chdir(c"/").err(),
                rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).err(),
            ];
            sys::exit_now(u8::from(!refused.iter().all(|error| *error == Some(Errno::PERM))))
        };
        let child = rustix::process::Pid::from_raw(child.number());
        let (_, status) = rustix::process::waitpid(child, WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }
}
