//! The seccomp filter that sends the calls to panzer that make a listener, and those calls as values.
//!
//! Must never name a call that servers make for each connection: all others cost nothing, these a round trip. Removals of
//! files, which some make for requests, are named only for workers that may take a UNIX path away.

use std::ffi::{c_int, c_long};
use std::os::fd::RawFd;

use crate::linux::socket_options::WATCHED;
use crate::linux::sys::{AUDIT_ARCH, Instruction, Notification};

/// Where the filter's data has the call's number, the machine and the arguments' lower halves (`seccomp(2)`); all
/// machines that panzer is built for have those first.
pub(in crate::linux) const NUMBER_AT: u32 = 0;
pub(in crate::linux) const MACHINE_AT: u32 = 4;
const LEVEL_AT: u32 = 16 + 8;
pub(in crate::linux) const THIRD_AT: u32 = 16 + 16;

/// A call that the filter has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    /// `bind(2)`: the descriptor, and where in the caller's memory the address is.
    Bind(RawFd, u64, usize),
    /// `listen(2)`: the descriptor and the length of the queue.
    Listen(RawFd, c_int),
    /// `getsockopt(2)` of `SO_ACCEPTCONN`: the descriptor that the caller wants to know of whether it listens.
    AskWhetherListening(RawFd),
    /// `unlink(2)`, `unlinkat(2)`: the directory's descriptor, and where in the caller's memory the path is.
    Unlink(RawFd, u64),
    /// `setsockopt(2)`: the descriptor, level and name, and where in the caller's memory the value is.
    SetOption(RawFd, c_int, c_int, u64),
}

impl Call {
    /// What `notification` is about. The kernel takes the lower half of each argument that is an integer in C.
    pub(super) fn of(notification: &Notification) -> Option<Self> {
        let [a, b, c, d, ..] = notification.arguments;
        Some(match notification.call {
            libc::SYS_bind => Self::Bind(lower(a), b, usize::try_from(lower(c)).ok()?),
            libc::SYS_listen => Self::Listen(lower(a), lower(b)),
            libc::SYS_getsockopt => Self::AskWhetherListening(lower(a)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink => Self::Unlink(libc::AT_FDCWD, a),
            libc::SYS_unlinkat if lower(c) == 0 => Self::Unlink(lower(a), b),
            libc::SYS_setsockopt => Self::SetOption(lower(a), lower(b), lower(c), d),
            _ => return None,
        })
    }
}

fn lower(argument: u64) -> c_int {
    let [a, b, c, d, ..] = argument.to_le_bytes();
    c_int::from_le_bytes([a, b, c, d])
}

/// What a filter sends besides bind and listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::linux) struct AlsoSent {
    /// The options that [`WATCHED`] names.
    pub(in crate::linux) options: bool,
    /// Removals of files.
    pub(in crate::linux) unlink: bool,
}

/// The calls that remove files; newer machines have only the second one.
#[cfg(target_arch = "x86_64")]
const UNLINKS: [c_long; 2] = [libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const UNLINKS: [c_long; 1] = [libc::SYS_unlinkat];

/// The filter's program.
pub(in crate::linux) fn program(also: AlsoSent) -> Vec<Instruction> {
    let send = ret(libc::SECCOMP_RET_USER_NOTIF);
    let allow = ret(libc::SECCOMP_RET_ALLOW);
    let mut program = vec![
        // 32-bit programs (and x32, whose numbers are others) have their calls in other places: they are left alone.
        load(MACHINE_AT),
        unless_equal(AUDIT_ARCH, 0, 1),
        allow,
        load(NUMBER_AT),
        unless_equal(number(libc::SYS_bind), 1, 0),
        send,
        unless_equal(number(libc::SYS_listen), 1, 0),
        send,
        unless_equal(number(libc::SYS_getsockopt), 6, 0),
        load(LEVEL_AT),
        unless_equal(libc::SOL_SOCKET.unsigned_abs(), 3, 0),
        load(THIRD_AT),
        unless_equal(libc::SO_ACCEPTCONN.unsigned_abs(), 1, 0),
        send,
        load(NUMBER_AT),
    ];
    if also.unlink {
        for call in UNLINKS {
            program.extend([unless_equal(number(call), 1, 0), send]);
        }
    }
    if also.options {
        program.extend([unless_equal(number(libc::SYS_setsockopt), 0, 1), allow]);
        for (level, name) in WATCHED {
            program.extend([
                load(LEVEL_AT),
                unless_equal(level.unsigned_abs(), 3, 0),
                load(THIRD_AT),
                unless_equal(name.unsigned_abs(), 1, 0),
                send,
            ]);
        }
    }
    program.push(allow);
    program
}

/// A call's number as a filter sees it.
pub(in crate::linux) const fn number(call: c_long) -> u32 {
    let [a, b, c, d, ..] = call.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Reads the 32 bits of the filter's data that stand `at`.
pub(in crate::linux) const fn load(at: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
}

/// Goes on `otherwise` instructions further down where the number loaded last is not `value`, and `then` where it is.
pub(in crate::linux) const fn unless_equal(value: u32, otherwise: u8, then: u8) -> Instruction {
    jump(libc::BPF_JEQ, value, otherwise, then)
}

/// The same with another comparison.
pub(in crate::linux) const fn jump(comparison: u32, value: u32, otherwise: u8, then: u8) -> Instruction {
    instruction(libc::BPF_JMP | comparison | libc::BPF_K, then, otherwise, value)
}

/// Ends with this answer.
pub(in crate::linux) const fn ret(value: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> Instruction {
    let [low, high, ..] = code.to_le_bytes();
    Instruction { code: u16::from_le_bytes([low, high]), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the call.
    fn run(program: &[Instruction], call: c_long, machine: u32, level: c_int, name: c_int) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    loaded = match k {
                        0 => number(call),
                        4 => machine,
                        24 => level.unsigned_abs(),
                        32 => name.unsigned_abs(),
                        other => panic!("reads at {other}"),
                    };
                }
                c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if loaded == k { jt } else { jf });
                }
                _ => return k,
            }
        }
    }

    #[test]
    fn the_filter_sends_bind_and_listen_and_lets_all_else_pass() {
        for (options, unlink) in [(false, false), (true, false), (false, true), (true, true)] {
            let program = program(AlsoSent { options, unlink });
            let run = |call| run(&program, call, AUDIT_ARCH, 0, 0);
            let mut sent = vec![libc::SYS_bind, libc::SYS_listen];
            sent.extend(UNLINKS.iter().filter(|_| unlink));
            for call in &sent {
                assert_eq!(run(*call), libc::SECCOMP_RET_USER_NOTIF);
            }
            for call in (0..600).filter(|call| !sent.contains(call)) {
                assert_eq!(run(call), libc::SECCOMP_RET_ALLOW, "{call}");
                // x32
                assert_eq!(run(call | 0x4000_0000), libc::SECCOMP_RET_ALLOW, "{call}");
            }
        }
        let i386 = 0x4000_0003;
        let all = program(AlsoSent { options: true, unlink: true });
        assert_eq!(run(&all, libc::SYS_bind, i386, 0, 0), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn of_the_options_that_are_read_one_is_sent() {
        let program = program(AlsoSent { options: true, unlink: true });
        let run = |level, name| run(&program, libc::SYS_getsockopt, AUDIT_ARCH, level, name);
        assert_eq!(run(libc::SOL_SOCKET, libc::SO_ACCEPTCONN), libc::SECCOMP_RET_USER_NOTIF);
        assert_eq!(run(libc::SOL_SOCKET, libc::SO_ERROR), libc::SECCOMP_RET_ALLOW);
        assert_eq!(run(libc::IPPROTO_TCP, libc::SO_ACCEPTCONN), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn the_watched_options_are_sent_and_those_of_a_connection_are_not() {
        let sends = |watch: bool, level, name| {
            run(&program(AlsoSent { options: watch, unlink: true }), libc::SYS_setsockopt, AUDIT_ARCH, level, name)
                == libc::SECCOMP_RET_USER_NOTIF
        };
        for (level, name) in WATCHED {
            assert!(sends(true, level, name) && !sends(false, level, name));
        }
        assert!(!sends(true, libc::IPPROTO_TCP, libc::TCP_NODELAY));
        assert!(!sends(true, libc::SOL_SOCKET, libc::SO_KEEPALIVE));
        assert!(!sends(true, libc::IPPROTO_UDP, libc::SO_RCVBUF));
    }

    #[test]
    fn calls_read_as_the_kernel_reads_them() {
        let thread = crate::linux::sys::Pid::own();
        let of = |call, arguments| Call::of(&Notification { id: 1, thread, call, arguments });
        // The upper half is whatever was in the register.
        let seven = 0xdead_beef_0000_0007;
        assert_eq!(
            of(libc::SYS_bind, [seven, 0x7fff_0000_1000, 16, 0, 0, 0]),
            Some(Call::Bind(7, 0x7fff_0000_1000, 16))
        );
        assert_eq!(of(libc::SYS_bind, [7, 0, u64::from(u32::MAX), 0, 0, 0]), None);
        assert_eq!(of(libc::SYS_listen, [seven, 511, 0, 0, 0, 0]), Some(Call::Listen(7, 511)));
        assert_eq!(of(libc::SYS_listen, [7, u64::MAX, 0, 0, 0, 0]), Some(Call::Listen(7, -1)));
        assert_eq!(of(libc::SYS_unlinkat, [seven, 4096, 0, 0, 0, 0]), Some(Call::Unlink(7, 4096)));
        let directory = u64::from(libc::AT_REMOVEDIR.unsigned_abs());
        assert_eq!(of(libc::SYS_unlinkat, [seven, 4096, directory, 0, 0, 0]), None);
        let asked = u64::from(libc::SO_ACCEPTCONN.unsigned_abs());
        assert_eq!(of(libc::SYS_getsockopt, [seven, 1, asked, 0, 0, 0]), Some(Call::AskWhetherListening(7)));
        assert_eq!(of(libc::SYS_read, [0; 6]), None);
    }
}
