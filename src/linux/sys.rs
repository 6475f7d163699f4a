//! The few system calls that need `unsafe`, each wrapped so that its callers need none.
//!
//! A function that may be called between fork and exec says that it is async-signal-safe: it allocates nothing and takes
//! no lock.
#![allow(unsafe_code, reason = "this is the one module that may hold it; a test proves that no other does")]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::signals::Signal;

/// The size of the kernel's signal set in bytes. libc's own `sigset_t` is larger, and its functions leave out the
/// numbers that it keeps for its threads (32, 33, 34), so the calls on signal sets are made without it.
const KERNEL_SIGSET_SIZE: usize = size_of::<u64>();

/// The unit in which the kernel maps a file on all machines that panzer is built for; larger pages only make a call
/// with a smaller unit fail.
const PAGE: u64 = 4096;

static FOUND_MASK: AtomicU64 = AtomicU64::new(0);
static FOUND_PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static FOUND_CHLD_IGNORED: AtomicBool = AtomicBool::new(false);

/// The state of signals that panzer was started with, and that a worker is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InitialSignals {
    /// The blocked signals.
    pub(super) mask: u64,
    /// SIGPIPE was ignored.
    pub(super) pipe_ignored: bool,
    /// SIGCHLD was ignored.
    pub(super) chld_ignored: bool,
}

/// The state of signals before Rust's runtime changed it.
pub(super) fn initial_signals() -> InitialSignals {
    InitialSignals {
        mask: FOUND_MASK.load(Ordering::Relaxed),
        pipe_ignored: FOUND_PIPE_IGNORED.load(Ordering::Relaxed),
        chld_ignored: FOUND_CHLD_IGNORED.load(Ordering::Relaxed),
    }
}

// SAFETY: the loader calls each entry of this section once, before main, on the only thread; `early` has the C
// calling convention and takes no argument that it would need.
#[unsafe(link_section = ".init_array")]
#[used]
static EARLY: extern "C" fn() = early;

/// Runs before Rust's runtime, which ignores SIGPIPE and aborts where one of the descriptors 0 to 2 is closed and
/// there is no /dev/null, as in an initramfs.
extern "C" fn early() {
    FOUND_MASK.store(change_mask(libc::SIG_BLOCK, 0), Ordering::Relaxed);
    FOUND_PIPE_IGNORED.store(is_ignored(Signal::PIPE), Ordering::Relaxed);
    FOUND_CHLD_IGNORED.store(is_ignored(Signal::CHLD), Ordering::Relaxed);
    for number in 0..=2 {
        if descriptor_flags(number).is_err() {
            fill(number);
        }
    }
}

/// Makes a function what the program begins with: it takes its name and the arguments, and gives the exit status.
///
/// In the shipped file it is called without Rust's runtime, whose part before `main` is 15 kB and of no use here: `early`
/// has seen to the descriptors 0 to 2, `hold_signals` sees to SIGPIPE, and the handler for a stack overflow never runs
/// where every signal is held.
#[macro_export]
macro_rules! begin_with {
    ($start:path) => {
        #[cfg(not(panzer_without_unwinder))]
        fn main() -> std::process::ExitCode {
            std::process::ExitCode::from($start(std::env::args_os().collect()))
        }

        // SAFETY: with this cfg nothing else in the program defines the name; the signature is C's.
        #[cfg(panzer_without_unwinder)]
        #[unsafe(no_mangle)]
        extern "C" fn main(count: std::ffi::c_int, list: *const *const std::ffi::c_char) -> std::ffi::c_int {
            // SAFETY: the C library calls this once, with the list that the kernel gave it.
            $start(unsafe { $crate::linux::list_arguments(count, list) }).into()
        }
    };
}

/// The program's name and its arguments.
///
/// # Safety
/// These are what C's `main` is given: so many C strings, which never change.
#[must_use]
pub unsafe fn list_arguments(count: c_int, list: *const *const c_char) -> Vec<OsString> {
    // SAFETY: the list has so many entries.
    let list = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
    // SAFETY: each is a C string that lives as long as the process.
    let strings = list.iter().map(|string| unsafe { CStr::from_ptr(*string) });
    strings.map(|string| OsStr::from_bytes(string.to_bytes()).to_owned()).collect()
}

/// A variable of panzer's own environment.
#[must_use]
pub fn variable(name: &str) -> Option<OsString> {
    environment().find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
}

/// One that is a number.
pub(super) fn number(name: &str) -> Option<u64> {
    variable(name)?.to_str()?.parse().ok()
}

/// All of them. What is no `NAME=value` is left out.
pub(super) fn variables() -> Vec<(OsString, OsString)> {
    environment().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// std's way there, with a lock that panzer's one thread does not need, is 1 kB more.
fn environment() -> impl Iterator<Item = (&'static OsStr, &'static OsStr)> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library sets it before `main`, and nobody changes it.
    let mut next = unsafe { environ };
    let entries = std::iter::from_fn(move || {
        // SAFETY: it points to an entry of a list that null ends, at the latest to that end.
        let entry = unsafe { next.as_ref() }.filter(|entry| !entry.is_null())?;
        // SAFETY: this one was not the end.
        next = unsafe { next.add(1) };
        // SAFETY: each is a C string that lives as long as the process.
        Some(unsafe { CStr::from_ptr(*entry) }.to_bytes())
    });
    entries.filter_map(|entry| {
        // A name may begin with an equals sign, as std has it.
        let equals = entry.iter().skip(1).position(|byte| *byte == b'=')? + 1;
        let (name, value) = entry.split_at_checked(equals)?;
        Some((OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?)))
    })
}

/// Opens something harmless as descriptor `number`, the lowest closed one.
fn fill(number: RawFd) {
    // `number` is the lowest free descriptor, so that is what open gives.
    let null = rustix::fs::open(c"/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty());
    if null.is_ok_and(|null| null.into_raw_fd() == number) {
        return;
    }
    let mut ends: [c_int; 2] = [-1, -1];
    // A pipe's read end without a writer: reading finds the end of the file, writing fails.
    // SAFETY: pipe writes two integers to the array; the lowest free one is `number`.
    let made = unsafe { libc::pipe(ends.as_mut_ptr()) } == 0;
    if let (true, [_, writer]) = (made, ends) {
        // SAFETY: this end was made three lines up and nobody else knows it.
        unsafe { libc::close(writer) };
    }
}

/// Whether `signal` is ignored. Async-signal-safe.
pub(super) fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action sigaction only writes the old one to the pointer, which is valid for it.
    let read = unsafe { libc::sigaction(signal.number().into(), std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: a sigaction of zeros is a valid value, whether or not the call wrote to it.
    let action = unsafe { action.assume_init() };
    read == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// The group that this process is in; `None`: one outside of its PID namespace.
pub(super) fn own_group() -> Option<Pid> {
    // SAFETY: getpgrp takes nothing and does not fail.
    Pid::from_number(unsafe { libc::getpgrp() })
}

/// Makes `leader`, this process or a child that has not executed yet, the leader of a group of its own.
/// Async-signal-safe.
pub(super) fn lead_group(leader: Pid) {
    // SAFETY: setpgid takes two integers. It fails only where the child has executed its program already, and then it
    // has done the same by itself before.
    unsafe { libc::setpgid(leader.0, leader.0) };
}

/// Makes `signal` ignored or gives it its default action. Async-signal-safe.
pub(super) fn set_ignored(signal: Signal, ignored: bool) {
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither value is a function, so no code of ours can run in a handler.
    unsafe { libc::signal(signal.number().into(), action) };
}

/// Blocks exactly the signals of `mask`, all 64 numbers included. Async-signal-safe.
pub(super) fn set_signal_mask(mask: u64) {
    change_mask(libc::SIG_SETMASK, mask);
}

fn change_mask(how: c_int, mask: u64) -> u64 {
    let mut old: u64 = 0;
    // SAFETY: both pointers are to 64-bit sets, the size that is named; the call writes to `old` only.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const mask, &raw mut old, KERNEL_SIGSET_SIZE) };
    old
}

/// A descriptor from which every blocked signal is read (`signalfd(2)`), non-blocking and close-on-exec.
pub(super) fn signal_descriptor() -> Result<OwnedFd, Errno> {
    let all = u64::MAX;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is read only, and has the size that is named.
    let number = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const all, KERNEL_SIGSET_SIZE, flags) };
    owned_descriptor(number)
}

/// Which side of a fork one is on.
pub(super) enum Fork {
    /// In the new process.
    Child,
    /// In panzer; the new process.
    Parent(Pid),
}

/// Forks. `exit_signal` is what the parent gets at the child's end; a child without one is invisible to a wait that
/// does not ask for it (`__WCLONE`, `wait(2)`), so that "no children" can mean "no worker and nothing adopted".
pub(super) fn fork(exit_signal: Option<Signal>) -> Result<Fork, Errno> {
    let flags = exit_signal.map_or(0, |signal| c_long::from(signal.number()));
    // SAFETY: no memory is shared and no stack given, which is a plain fork. panzer has one thread, so the child's copy
    // of every lock is free. The order of the remaining arguments differs between machines, and all are zero.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) if pid > 0 => Ok(Fork::Parent(Pid(pid))),
        _ => Err(last_error()),
    }
}

/// Reaps a child that has no exit signal. It must have been killed, since this waits for its end.
pub(super) fn reap_hidden(pid: Pid) {
    // SAFETY: a null status is allowed; the pid is of a child that only this call waits for.
    while unsafe { libc::waitpid(pid.0, std::ptr::null_mut(), libc::__WCLONE) } == -1 && last_error() == Errno::INTR {}
}

/// Whether what this process forks is in its own PID namespace. After `unshare --pid` without a fork it is not: there
/// the first child becomes the new namespace's PID 1, which must not be the guard: it would end with all of them, and
/// only after them.
pub(super) fn children_share_namespace() -> bool {
    let namespace = |name: &str| super::files::read_link(Path::new(&format!("/proc/self/ns/{name}"))).ok();
    namespace("pid") == namespace("pid_for_children")
}

/// The number of this process's PID namespace; 0 where it cannot be told.
pub(super) fn pid_namespace() -> u64 {
    rustix::fs::stat(c"/proc/self/ns/pid").map_or(0, |namespace| namespace.st_ino)
}

/// A process, or the group that it leads or led.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Pid(rustix::process::RawPid);

impl Pid {
    /// This process. Async-signal-safe.
    pub(super) fn own() -> Self {
        Self::from(rustix::process::getpid())
    }

    /// The process with this number, which is above 0.
    pub(super) fn from_number(number: i32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// Its number.
    pub(super) fn number(self) -> i32 {
        self.0
    }
}

impl From<rustix::process::Pid> for Pid {
    fn from(pid: rustix::process::Pid) -> Self {
        Self(pid.as_raw_nonzero().get())
    }
}

/// Whom a signal is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// One process.
    Process(Pid),
    /// Every process of the group that this one leads or led.
    Group(Pid),
    /// Every process of the PID namespace but this one. Only PID 1 may mean that.
    Namespace,
}

impl Target {
    fn number(self) -> i32 {
        match self {
            Self::Process(pid) => pid.0,
            Self::Group(pid) => -pid.0,
            Self::Namespace => -1,
        }
    }
}

/// `kill(2)`. Async-signal-safe.
pub(super) fn kill(target: Target, signal: Signal) -> Result<(), Errno> {
    // SAFETY: kill takes two integers.
    result_of(unsafe { libc::kill(target.number(), signal.number().into()) })
}

/// A descriptor of a process, which stays with it whatever becomes of its number (`pidfd_open(2)`, Linux 5.3).
pub(super) fn open_process(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers.
    owned_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) })
}

/// `kill(2)` by such a descriptor (`pidfd_send_signal(2)`, Linux 5.1).
pub(super) fn signal_process(process: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let number = c_int::from(signal.number());
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo the kernel makes one as kill does; the rest are integers.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), number, none, 0) };
    if sent == 0 { Ok(()) } else { Err(last_error()) }
}

/// Whether there is such a process or group; a zombie counts.
pub(super) fn exists(target: Target) -> bool {
    // SAFETY: signal 0 is never delivered; the kernel only looks the target up.
    let sent = result_of(unsafe { libc::kill(target.number(), 0) });
    sent.map_or_else(|error| error == Errno::PERM, |()| true)
}

/// Has the kernel send `signal` to this process when its parent dies (`PR_SET_PDEATHSIG`); gone again when the
/// credentials change. Async-signal-safe.
pub(super) fn set_parent_death_signal(signal: Signal) -> Result<(), Errno> {
    // SAFETY: this operation takes an integer.
    result_of(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(signal.number())) })
}

/// Makes descriptor `to` a copy of `from` that survives exec, whatever it was before. Async-signal-safe.
pub(super) fn duplicate_to(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    // SAFETY: `from` is open. `to` belongs to nobody in the forked child, whose only further act is to exec.
    result_of(unsafe { libc::dup2(from.as_raw_fd(), to) })
}

/// Closes every descriptor from `first` to `last` (`close_range(2)`, Linux 5.9; one by one where it is missing).
pub(super) fn close_range(first: RawFd, last: RawFd) {
    let (Ok(low), Ok(high)) = (u32::try_from(first), u32::try_from(last)) else { return };
    if low > high {
        return;
    }
    // SAFETY: the callers name only descriptors that no value in this process owns.
    if unsafe { libc::syscall(libc::SYS_close_range, low, high, 0) } == 0 {
        return;
    }
    for number in first..=last.min(65_535) {
        // SAFETY: as above.
        unsafe { libc::close(number) };
    }
}

/// The flags of whatever descriptor there is.
fn descriptor_flags(number: RawFd) -> Result<c_long, Errno> {
    // SAFETY: F_GETFD reads a flag. By `fcntl`, which knows each command and its argument, it would be 300 bytes more.
    let flags = unsafe { libc::syscall(libc::SYS_fcntl, number, libc::F_GETFD) };
    if flags == -1 { Err(last_error()) } else { Ok(flags) }
}

/// Takes over a descriptor that panzer inherited.
pub(super) fn adopt(number: RawFd) -> Option<OwnedFd> {
    descriptor_flags(number).ok()?;
    // SAFETY: it is open, and each inherited number is adopted once, before anything else could own it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// How much of the stack below the present frame is kept for the calls to come, and how much after that is given back.
const STACK_KEPT: usize = 4096;
const STACK_GIVEN_BACK: usize = 96 * 1024;

/// Gives back the memory that deeper calls of the start have left below the present end of the stack.
pub(super) fn release_stack() {
    let here = 0_u8;
    let page = usize::try_from(PAGE).unwrap_or(STACK_KEPT);
    let end = (&raw const here).addr().saturating_sub(STACK_KEPT) & !(page - 1);
    let start = end.saturating_sub(STACK_GIVEN_BACK) as *mut libc::c_void;
    // SAFETY: all of it lies below every frame in use and its red zone (128 bytes); no thread and no signal handler has a
    // stack there. What is not mapped is passed over.
    let _ = unsafe { rustix::mm::madvise(start, STACK_GIVEN_BACK, rustix::mm::Advice::LinuxDontNeed) };
}

/// Takes the program's own code and constants out of this process's resident memory; what runs next is mapped again
/// from the page cache, 64 kB at a time. Most of panzer runs once, at its start, and need not stay.
///
/// Inlined, and the code last of all: so what comes back at once is the function that called it, and no more.
#[inline(always)]
pub(super) fn release_program() {
    // SAFETY: getauxval reads what the kernel has told this process.
    let table = unsafe { libc::getauxval(libc::AT_PHDR) } as *const libc::Elf64_Phdr;
    // SAFETY: as above.
    let count = usize::try_from(unsafe { libc::getauxval(libc::AT_PHNUM) }).unwrap_or(0);
    if table.is_null() {
        return;
    }
    // SAFETY: the kernel says that the program's headers are there, so many of them; they are never written to.
    let headers = unsafe { std::slice::from_raw_parts(table, count) };
    let own = headers.iter().find(|header| header.p_type == libc::PT_PHDR).map(|header| header.p_vaddr);
    let bias = own.map_or(0, |address| (table as u64).wrapping_sub(address));
    let unwritten = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    // All are read before the first is given back: the headers stand in a segment themselves.
    let mut segments = [(0, 0); 4];
    for (segment, header) in segments.iter_mut().zip(headers.iter().filter(unwritten)) {
        let start = header.p_vaddr.wrapping_add(bias);
        let start_of_page = start & !(PAGE - 1);
        let length = start.wrapping_add(header.p_memsz).wrapping_sub(start_of_page);
        *segment = (start_of_page, usize::try_from(length).unwrap_or(0));
    }
    for &(start, length) in &segments {
        if length > 0 {
            let start = start as *mut libc::c_void;
            // SAFETY: the range is a segment of the program's file that is mapped without leave to write, so its pages
            // hold nothing but the file's bytes, and those come back at the next access.
            let _ = unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxDontNeed) };
        }
    }
}

/// What a clock shows, which is zero where there is none.
pub(super) fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one such structure. By `clock_gettime`, which looks for the kernel's own function, it would be
    // 700 bytes and a resident page more; panzer looks at a clock a few times an event.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The kernel's unit of memory in bytes.
pub(super) fn page_size() -> u64 {
    // SAFETY: getauxval reads what the kernel has told this process.
    unsafe { libc::getauxval(libc::AT_PAGESZ) }
}

/// Ends this process without running anything. Async-signal-safe.
pub(super) fn exit_now(status: u8) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// Strings as exec takes them, made before the fork.
#[derive(Debug, Default)]
pub(super) struct StringList {
    strings: Vec<Box<[u8]>>,
}

impl StringList {
    /// Adds a string; its end is added too. It comes from a command line, an environment or a file name and so holds no
    /// NUL byte; where it did, the string would end there.
    pub(super) fn push(&mut self, string: &[u8]) {
        let mut bytes = Vec::with_capacity(string.len() + 1);
        bytes.extend_from_slice(string);
        bytes.push(0);
        self.strings.push(bytes.into_boxed_slice());
    }
}

/// Pointers to the strings of some lists, with the null that ends them.
#[derive(Debug)]
pub(super) struct Pointers<'a> {
    pointers: Vec<*const c_char>,
    strings: std::marker::PhantomData<&'a StringList>,
}

impl<'a> Pointers<'a> {
    /// To all strings of `lists`, in order.
    pub(super) fn to(lists: &[&'a StringList]) -> Self {
        let strings = lists.iter().flat_map(|list| list.strings.iter());
        let pointers = strings.map(|string| string.as_ptr().cast()).chain([std::ptr::null()]).collect();
        Self { pointers, strings: std::marker::PhantomData }
    }

    /// Lets the `index`th pointer be to `string` instead. Async-signal-safe.
    pub(super) fn set(&mut self, index: usize, string: &'a CStr) {
        // The last one is the null that ends the list.
        if index + 1 < self.pointers.len()
            && let Some(pointer) = self.pointers.get_mut(index)
        {
            *pointer = string.as_ptr();
        }
    }
}

/// `execve(2)`; comes back only with an error. Async-signal-safe.
pub(super) fn execute(path: &CStr, arguments: &Pointers<'_>, variables: &Pointers<'_>) -> c_int {
    // SAFETY: `Pointers` holds pointers to strings that end in NUL and live as long as it does, and ends in null.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), variables.pointers.as_ptr()) };
    last_error().raw_os_error()
}

/// What std calls to print a backtrace, in the shipped file, which has no unwind tables to make one from: it says that
/// there are no frames. Without these, std's reference pulls in the whole of libunwind, 50 kB. A panic's message is
/// printed all the same.
#[cfg(panzer_without_unwinder)]
mod no_unwinder {
    use std::ffi::{c_int, c_void};

    /// `_URC_END_OF_STACK` (Itanium C++ ABI, "Exception Handling")
    const END_OF_STACK: c_int = 5;

    // SAFETY: with this cfg nothing else in the program defines the name; the signature is the ABI's.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_Backtrace(_: *const c_void, _: *mut c_void) -> c_int {
        END_OF_STACK
    }

    // SAFETY: as above. It is called with frames only, of which there are none.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_GetIP(_: *mut c_void) -> usize {
        0
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_GetIPInfo(_: *mut c_void, _: *mut c_int) -> usize {
        0
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_GetCFA(_: *mut c_void) -> usize {
        0
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn _Unwind_FindEnclosingFunction(_: *mut c_void) -> *mut c_void {
        std::ptr::null_mut()
    }
}

/// One instruction of a classic BPF program: code, jumps, value.
pub(super) type Instruction = libc::sock_filter;

/// Which calls and machines a filter knows, for [`install_filter`]: its own, and not that of 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub(super) const AUDIT_ARCH: u32 = 0xc000_003e;
/// As above.
#[cfg(target_arch = "aarch64")]
pub(super) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Puts this process and its descendants under a filter, and gives the descriptor to which it sends calls
/// (`seccomp(2)`, Linux 5.0). A process that may not do so otherwise gives up new privileges (`no_new_privs`) for it.
/// Async-signal-safe.
///
/// # Errors
/// EBUSY where a filter with such a descriptor is in force already, EINVAL or ENOSYS where the kernel has none.
pub(super) fn install_filter(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    // Without SPEC_ALLOW kernels before 5.16 slow the whole program down. KILLABLE (5.19) keeps a call that panzer has
    // taken up from being begun anew because of a signal; without it that is harmless.
    let base = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let mut flags = base | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    loop {
        // SAFETY: the program is as long as it says; the kernel copies it and does not write to it.
        let installed = owned_descriptor(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) });
        match installed {
            Err(Errno::INVAL) if flags != base => flags = base,
            // SAFETY: this operation takes integers.
            Err(Errno::ACCESS) if unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 0 => {
                rustix::thread::set_no_new_privs(true)?;
            }
            Ok(_) | Err(_) => return installed,
        }
    }
}

/// Puts this process under a filter that sends nothing to anybody, for good. It has given up new privileges before.
pub(super) fn confine(program: &[Instruction]) -> Result<(), Errno> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program is as long as it says; the kernel copies it and does not write to it.
    result_of(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
}

/// A call that a filter has sent: the caller waits for the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notification {
    /// What the answer is for.
    pub(super) id: u64,
    /// The calling thread, which may be any of its process's.
    pub(super) thread: Pid,
    /// The call's number on this machine.
    pub(super) call: c_long,
    /// Its arguments.
    pub(super) arguments: [u64; 6],
}

/// What becomes of a call that a filter has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The kernel does it, as if there were no filter.
    PassOn,
    /// It has succeeded.
    Done,
    /// It has failed with this errno.
    Failed(c_int),
}

/// Takes the next call that a filter has sent. To be asked for only where one waits: otherwise this may block.
pub(super) fn receive_notification(filter: BorrowedFd<'_>) -> Result<Notification, Errno> {
    let mut space = std::mem::MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the operation writes one such structure, which must be zero before (seccomp_unotify(2)).
    result_of(unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV as _, space.as_mut_ptr()) })?;
    // SAFETY: a structure of zeros is a valid value, and the kernel has filled it in.
    let got = unsafe { space.assume_init() };
    // A caller outside of panzer's PID namespace has no number here, so nothing can be known of it.
    let thread = i32::try_from(got.pid).ok().and_then(Pid::from_number);
    let Some(thread) = thread else {
        answer_notification(filter, got.id, Answer::PassOn)?;
        return Err(Errno::NOENT);
    };
    Ok(Notification { id: got.id, thread, call: got.data.nr.into(), arguments: got.data.args })
}

/// Whether the caller still waits for the answer; until then its thread's number cannot be another's.
pub(super) fn is_notification_valid(filter: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the operation reads one 64-bit number.
    unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID as _, &raw const id) == 0 }
}

/// Lets the caller's descriptor `number` be a copy of `from`, whatever it was (`SECCOMP_IOCTL_NOTIF_ADDFD`, Linux 5.9).
pub(super) fn replace_descriptor(
    filter: BorrowedFd<'_>,
    id: u64,
    from: BorrowedFd<'_>,
    number: u32,
    close_on_exec: bool,
) -> Result<(), Errno> {
    let request = libc::seccomp_notif_addfd {
        id,
        flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SETFD).unwrap_or_default(),
        srcfd: from.as_raw_fd().unsigned_abs(),
        newfd: number,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC.unsigned_abs() } else { 0 },
    };
    // SAFETY: the operation reads one such structure; it answers with the number, or -1.
    let added = unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD as _, &raw const request) };
    if added == -1 { Err(last_error()) } else { Ok(()) }
}

/// Lets the caller go on. It may be gone by now, which is nobody's fault.
pub(super) fn answer_notification(filter: BorrowedFd<'_>, id: u64, answer: Answer) -> Result<(), Errno> {
    let (error, flags) = match answer {
        Answer::PassOn => (0, u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or_default()),
        Answer::Done => (0, 0),
        Answer::Failed(errno) => (-errno, 0),
    };
    let response = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the operation reads one such structure.
    result_of(unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND as _, &raw const response) })
}

/// Puts `socket` into somebody else's epoll set as if it were descriptor `number` here: the kernel knows a member by its
/// file and its number, and its owner will name it by that one.
pub(super) fn add_to_epoll_as(
    epoll: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    number: RawFd,
    events: u32,
    data: u64,
) -> Result<(), Errno> {
    // Whatever numbers these have, now they are others.
    let epoll = rustix::io::fcntl_dupfd_cloexec(epoll, number + 1)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(socket, number + 1)?;
    let flags = descriptor_flags(number);
    // SAFETY: F_DUPFD_CLOEXEC copies whatever descriptor there is.
    let saved = owned_descriptor(unsafe { libc::syscall(libc::SYS_fcntl, number, libc::F_DUPFD_CLOEXEC, number + 1) });
    if flags.is_ok() && saved.is_err() {
        return saved.map(drop);
    }
    // SAFETY: panzer has one thread, so nobody uses `number` meanwhile; what it was is kept in `saved`.
    let taken = unsafe { libc::syscall(libc::SYS_dup3, socket.as_raw_fd(), number, libc::O_CLOEXEC) };
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads the event, and both descriptors are open.
    let added = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, number, &raw mut event) };
    let added = if taken == -1 { Err(last_error()) } else { result_of(added) };
    let close_on_exec = if flags == Ok(0) { 0 } else { libc::O_CLOEXEC };
    match saved {
        // SAFETY: this gives the number back to what it was.
        Ok(saved) => drop(unsafe { libc::syscall(libc::SYS_dup3, saved.as_raw_fd(), number, close_on_exec) }),
        // SAFETY: it was closed before, and is what was made of it just now.
        Err(_) => drop(unsafe { libc::close(number) }),
    }
    added
}

/// A message, and who has sent it (`SCM_CREDENTIALS`, `unix(7)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    /// How many bytes it has.
    pub(super) length: usize,
    /// It was longer than there was room.
    pub(super) is_cut: bool,
    /// The sender's process; 0 where this PID namespace does not show it, which is why rustix, whose pids are never 0, is
    /// not used here.
    pub(super) pid: i32,
    /// The sender's user.
    pub(super) uid: u32,
}

/// Takes the next message of a datagram socket with SO_PASSCRED; `None`: there is none. Descriptors that come along are
/// closed by the kernel, since there is no room for them: that is what `sd_notify_barrier(3)` waits for.
pub(super) fn receive_with_sender(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Option<Message> {
    const CREDENTIALS: usize = size_of::<libc::ucred>();
    /// Aligned as the kernel wants it.
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        credentials: libc::ucred,
    }
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all fields of these two C structures may be zero.
    let (mut header, mut control) = unsafe { std::mem::zeroed::<(libc::msghdr, Control)>() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    #[allow(clippy::useless_conversion, reason = "its type is not the same with musl")]
    let control_length = (size_of::<libc::cmsghdr>() + CREDENTIALS).try_into().unwrap_or_default();
    header.msg_controllen = control_length;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names one part and a control buffer, both valid for writing with the lengths that it gives.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(length).ok()?;
    let is_known = control.header.cmsg_level == libc::SOL_SOCKET && control.header.cmsg_type == libc::SCM_CREDENTIALS;
    let (pid, uid) = if is_known { (control.credentials.pid, control.credentials.uid) } else { (0, u32::MAX) };
    Some(Message { length, is_cut: header.msg_flags & libc::MSG_TRUNC != 0, pid, uid })
}

/// What socket option `name` of `level` is, as bytes; `None`: the socket has no such option.
pub(super) fn socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> Option<[u8; SOCKET_OPTION_LENGTH]> {
    let mut value = [0; SOCKET_OPTION_LENGTH];
    read_socket_option(socket, level, name, &mut value).then_some(value)
}

/// Reads the beginning of socket option `name` of `level`; whether the socket has such an option.
pub(super) fn read_socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &mut [u8]) -> bool {
    let mut length = libc::socklen_t::try_from(value.len()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has so many.
    unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) == 0 }
}

/// As many bytes as the options have that panzer looks at: all are integers.
pub(super) const SOCKET_OPTION_LENGTH: usize = size_of::<c_int>();

/// Sets socket option `name` of `level`.
pub(super) fn set_socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(value.len()).unwrap_or_default();
    // SAFETY: the kernel reads `length` bytes from `value`, which has so many.
    result_of(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) })
}

/// Has `program` choose which socket of a SO_REUSEPORT group takes a new connection (`SO_ATTACH_REUSEPORT_CBPF`,
/// `socket(7)`, Linux 4.5).
pub(super) fn attach_reuseport_program(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), Errno> {
    /// The same on all machines that panzer is built for; libc does not have it everywhere.
    const SO_ATTACH_REUSEPORT_CBPF: c_int = 51;
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    // SAFETY: the kernel reads the structure and the program, which is as long as it says, and writes to neither.
    result_of(unsafe {
        let program = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program, size)
    })
}

/// `tcgetattr(3)`. rustix's own is 1 kB more in the file: it decodes all speeds of a serial line.
pub(super) fn terminal_modes(terminal: BorrowedFd<'_>) -> Result<libc::termios, Errno> {
    let mut modes = std::mem::MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: the call writes one such structure.
    result_of(unsafe { libc::tcgetattr(terminal.as_raw_fd(), modes.as_mut_ptr()) })?;
    // SAFETY: a structure of zeros is a valid value, and the call has filled it in.
    Ok(unsafe { modes.assume_init() })
}

/// `tcsetattr(3)`, at once.
pub(super) fn set_terminal_modes(terminal: BorrowedFd<'_>, modes: &libc::termios) {
    // SAFETY: the call reads one such structure.
    unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, modes) };
}

/// What the call that was made last has failed with.
#[inline(never)]
fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
}

/// What the system says of an error (`strerror_r(3)`).
#[must_use]
pub fn words(error: Errno) -> String {
    let mut text = [0_u8; 128];
    // SAFETY: the call writes at most as many bytes as it is told that there are, and ends them with NUL.
    unsafe { libc::strerror_r(error.raw_os_error(), text.as_mut_ptr().cast(), text.len()) };
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    text.to_str().unwrap_or_default().to_owned()
}

fn owned_descriptor(number: c_long) -> Result<OwnedFd, Errno> {
    match RawFd::try_from(number) {
        // SAFETY: the kernel has just made this descriptor, and only this value knows it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(last_error()),
    }
}

fn result_of(result: c_int) -> Result<(), Errno> {
    if result == -1 { Err(last_error()) } else { Ok(()) }
}

/// The shipped file's memory, in place of musl's, which is 9 kB. Small pieces come in a few sizes; one that is freed waits
/// in a list for the next of its size. So they take as much as were in use at once, however long panzer lives. Large
/// pieces are the kernel's own and go back to it.
#[cfg(any(panzer_without_unwinder, test))]
mod heap {
    use std::ptr::null_mut;

    use rustix::mm::{MapFlags, ProtFlags};

    /// What every piece is aligned to, and the smallest one's size.
    pub(super) const UNIT: usize = 16;

    /// The largest piece that comes from a list.
    pub(super) const LARGEST: usize = 16 * 1024;

    /// Two sizes for each power of two, of which the first has one only.
    const SIZES: usize = 21;

    /// What is asked of the kernel at once. It gives memory only where something is written.
    const CHUNK: usize = 256 * 1024;

    /// A piece that is free holds the next one of its size.
    type Free = *mut u8;

    /// Which list has pieces of at least `size` bytes, and how long those are. `size` is not above [`LARGEST`].
    pub(super) fn class(size: usize) -> (usize, usize) {
        let last = size.max(1).next_multiple_of(UNIT) - 1;
        let bit = last.ilog2();
        let half = (last >> (bit - 1)) & 1;
        let index = usize::try_from(bit).unwrap_or_default() * 2 + half;
        (index.saturating_sub(7), (half + 3) << (bit - 1))
    }

    /// New memory from the kernel, all zero; null: there is none.
    fn map(length: usize) -> *mut u8 {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses an address where nothing is.
        unsafe { rustix::mm::mmap_anonymous(null_mut(), length, access, flags) }
            .map_or(null_mut(), |start| start.cast())
    }

    /// Where all pieces come from.
    pub(super) struct Heap {
        free: [Free; SIZES],
        fresh: *mut u8,
        left: usize,
    }

    impl Heap {
        pub(super) const EMPTY: Self = Self { free: [null_mut(); SIZES], fresh: null_mut(), left: 0 };

        /// A piece of at least `size` bytes that nobody else has; null: there is none.
        pub(super) fn take(&mut self, size: usize) -> *mut u8 {
            if size > LARGEST {
                return map(size);
            }
            let (index, length) = class(size);
            if let Some(first) = self.free.get_mut(index).filter(|first| !first.is_null()) {
                let piece = *first;
                // SAFETY: a free piece is aligned and begins with what `give_back` has written there.
                *first = unsafe { piece.cast::<Free>().read() };
                return piece;
            }
            if self.left < length {
                self.fresh = map(CHUNK);
                self.left = if self.fresh.is_null() { 0 } else { CHUNK };
            }
            if self.left < length {
                return null_mut();
            }
            let piece = self.fresh;
            // SAFETY: so much is left of the chunk.
            self.fresh = unsafe { piece.add(length) };
            self.left -= length;
            piece
        }

        /// Takes back a piece that [`Heap::take`] has given for `size` bytes.
        ///
        /// # Safety
        /// It is that, and nobody uses it any more.
        pub(super) unsafe fn give_back(&mut self, piece: *mut u8, size: usize) {
            if size > LARGEST {
                // SAFETY: it is a mapping of its own of this length, which the kernel rounds up as it did before.
                let _ = unsafe { rustix::mm::munmap(piece.cast(), size) };
            } else if let Some(first) = self.free.get_mut(class(size).0) {
                // SAFETY: it has at least one unit of memory, aligned to it.
                unsafe { piece.cast::<Free>().write(*first) };
                *first = piece;
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_size_has_the_next_longer_list() {
            let mut before = (0, UNIT);
            for size in 1..=LARGEST {
                let (index, length) = class(size);
                assert!(index < SIZES && length >= size && length.is_multiple_of(UNIT), "{size}: {index}, {length}");
                assert!(length <= UNIT.max(size * 3 / 2 + UNIT), "{size} takes {length}");
                assert!((index, length) == before || (index > before.0 && length > before.1 && size == before.1 + 1));
                before = (index, length);
            }
        }

        #[test]
        fn pieces_in_use_are_apart_and_free_ones_come_again() {
            let mut heap = Heap::EMPTY;
            let sizes = [1, 16, 17, 48, 100, 4096, LARGEST, LARGEST + 1, 300_000];
            for _ in 0..1000 {
                let pieces = sizes.map(|size| heap.take(size));
                for ((piece, size), mark) in pieces.iter().zip(sizes).zip(1..) {
                    assert!(!piece.is_null() && piece.addr().is_multiple_of(UNIT));
                    // SAFETY: the piece has so many bytes.
                    unsafe { piece.write_bytes(mark, size) };
                }
                for ((piece, size), mark) in pieces.iter().zip(sizes).zip(1..) {
                    // SAFETY: all of it was written just now.
                    let bytes = unsafe { std::slice::from_raw_parts(*piece, size) };
                    assert!(bytes.iter().all(|byte| *byte == mark), "{size}");
                    // SAFETY: it was taken with this size, and nobody uses it any more.
                    unsafe { heap.give_back(*piece, size) };
                }
            }
            assert!(heap.left > CHUNK / 2, "only the first round took anything new");
        }
    }
}

/// That memory for all of Rust's and C's code in the file. What C's functions give has its size in front.
#[cfg(panzer_without_unwinder)]
mod memory {
    use std::alloc::{GlobalAlloc, Layout};
    use std::cell::UnsafeCell;
    use std::ffi::c_void;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::heap::{Heap, LARGEST, UNIT, class};

    struct Memory {
        is_locked: AtomicBool,
        heap: UnsafeCell<Heap>,
    }

    // SAFETY: `with` lets only one thread at a time have the heap.
    unsafe impl Sync for Memory {}

    #[global_allocator]
    static MEMORY: Memory = Memory { is_locked: AtomicBool::new(false), heap: UnsafeCell::new(Heap::EMPTY) };

    impl Memory {
        /// panzer has one thread, so this never waits.
        fn with<T>(&self, action: impl FnOnce(&mut Heap) -> T) -> T {
            while self.is_locked.swap(true, Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // SAFETY: the lock is held, and no action comes back here.
            let result = action(unsafe { &mut *self.heap.get() });
            self.is_locked.store(false, Ordering::Release);
            result
        }

        #[inline(never)]
        fn take(&self, size: usize) -> *mut u8 {
            self.with(|heap| heap.take(size))
        }

        /// # Safety
        /// As for [`Heap::give_back`].
        #[inline(never)]
        unsafe fn give_back(&self, piece: *mut u8, size: usize) {
            // SAFETY: the caller's word.
            self.with(|heap| unsafe { heap.give_back(piece, size) });
        }
    }

    // SAFETY: pieces are apart from each other, as long as was asked for, and aligned, or null is given.
    unsafe impl GlobalAlloc for Memory {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if layout.align() > UNIT { null_mut() } else { self.take(layout.size()) }
        }

        unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
            // SAFETY: it was taken with this layout's size, and the caller is done with it.
            unsafe { self.give_back(piece, layout.size()) };
        }

        unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            let old = layout.size();
            if old.max(size) <= LARGEST && class(old) == class(size) {
                return piece;
            }
            let new = self.take(size);
            if !new.is_null() {
                // SAFETY: both have so many bytes, and they are apart.
                unsafe { new.copy_from_nonoverlapping(piece, old.min(size)) };
                // SAFETY: as in `dealloc`.
                unsafe { self.give_back(piece, old) };
            }
            new
        }
    }

    // SAFETY: with this cfg nothing else in the program defines the name; what it gives is as C has it.
    #[unsafe(no_mangle)]
    extern "C" fn malloc(size: usize) -> *mut c_void {
        let piece = size.checked_add(UNIT).map_or(null_mut(), |whole| MEMORY.take(whole));
        if piece.is_null() {
            return null_mut();
        }
        // SAFETY: a piece begins with a unit of its own.
        unsafe { piece.cast::<usize>().write(size) };
        // SAFETY: as above.
        unsafe { piece.add(UNIT) }.cast()
    }

    // SAFETY: as above; a new piece may hold what it held before.
    #[unsafe(no_mangle)]
    extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
        let Some(size) = count.checked_mul(size) else { return null_mut() };
        let piece = malloc(size);
        if !piece.is_null() {
            // SAFETY: it has so many bytes.
            unsafe { piece.write_bytes(0, size) };
        }
        piece
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn free(piece: *mut c_void) {
        if piece.is_null() {
            return;
        }
        // SAFETY: it comes from `malloc`, which has put a unit with its size in front.
        let start = unsafe { piece.cast::<u8>().sub(UNIT) };
        // SAFETY: as above.
        let size = unsafe { start.cast::<usize>().read() };
        // SAFETY: it was taken with this size, and the caller is done with it.
        unsafe { MEMORY.give_back(start, size + UNIT) };
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn realloc(piece: *mut c_void, size: usize) -> *mut c_void {
        let new = malloc(size);
        if new.is_null() || piece.is_null() {
            return new;
        }
        // SAFETY: it comes from `malloc`.
        let old = unsafe { piece.cast::<u8>().sub(UNIT).cast::<usize>().read() };
        // SAFETY: both have so many bytes, and they are apart.
        unsafe { new.cast::<u8>().copy_from_nonoverlapping(piece.cast(), old.min(size)) };
        // SAFETY: the caller is done with it.
        unsafe { free(piece) };
        new
    }

    // SAFETY: as above. Nothing in the file asks for more than a unit's alignment; whoever does is refused.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> libc::c_int {
        let piece = if alignment > UNIT { null_mut() } else { malloc(size) };
        if piece.is_null() {
            return libc::ENOMEM;
        }
        // SAFETY: C's caller gives a place for it.
        unsafe { place.write(piece) };
        0
    }
}
