//! What the metrics child gives up before it reads the first byte from a network.
//!
//! Must never add a call that reaches a file, another process or another host: no open, no socket, no kill, no clone.

use std::ffi::c_long;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::process::DumpableBehavior;
use rustix::thread::{Gid, Uid};

use crate::linux::ports::filter::{MACHINE_AT, NUMBER_AT, THIRD_AT, instruction, load, number, ret, unless_equal};
use crate::linux::sys::{self, AUDIT_ARCH, Instruction, Pid};
use crate::signals::Signal;

/// `nobody`, on every distribution.
const NOBODY: u32 = 65534;

/// The calls that it makes from then on, and that a panic makes.
const ALLOWED: [c_long; 15] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // The C library asks the kernel for it where there is no vDSO.
    libc::SYS_clock_gettime,
    // The allocator, and what gives memory back.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_exit_group,
];

/// The allocator's too, as long as nothing becomes code by them.
const ALLOWED_WITHOUT_CODE: [c_long; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Lets go of everything but what it needs to answer. Each step is worth taking where another one is refused, as in a
/// container without CAP_SETUID or on a kernel without seccomp.
#[inline(never)]
pub(super) fn confine(panzer: &OwnedFd, listener: &OwnedFd) {
    let _ = rustix::thread::set_name(c"panzer-metrics");
    // Its own group, and all signals stay blocked, as with the guard.
    sys::lead_group(Pid::own());
    let _ = rustix::process::chdir(c"/");
    let (one, other) = (panzer.as_raw_fd(), listener.as_raw_fd());
    let (low, high) = (one.min(other), one.max(other));
    for (first, last) in [(0, 1), (3, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
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
#[inline(never)]
pub(super) fn lock() {
    let _ = sys::confine(&program());
}

/// The filter: what is not named fails with EPERM, so that what the C library only tries does no harm.
fn program() -> Vec<Instruction> {
    let (allow, deny) = (ret(libc::SECCOMP_RET_ALLOW), ret(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()));
    // Calls of other machines have other numbers. x32's are all above those of the list.
    let mut program = vec![load(MACHINE_AT), unless_equal(AUDIT_ARCH, 0, 1), deny, load(NUMBER_AT)];
    for call in ALLOWED {
        program.extend([unless_equal(number(call), 1, 0), allow]);
    }
    for call in ALLOWED_WITHOUT_CODE {
        let has_code = instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, libc::PROT_EXEC.unsigned_abs());
        program.extend([unless_equal(number(call), 4, 0), load(THIRD_AT), has_code, deny, allow]);
    }
    program.push(deny);
    program
}
