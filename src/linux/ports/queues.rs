//! Listeners with a queue for each slot: which of them take new connections, and what becomes of a queue whose worker is
//! gone for longer.
//!
//! The queues of one address are a SO_REUSEPORT group; the kernel counts its sockets in the order in which they began
//! to listen. Must never let go of a connection that a worker will answer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};

use crate::linux::sys::{self, Instruction};

/// A program for the kernel may have 4096 instructions and, before Linux 6.9, 20 kB (`net.core.optmem_max`); each queue
/// takes two of 8 bytes.
pub(in crate::linux) const MOST_QUEUES: u32 = 1000;

/// How many connections are let go of before panzer looks at anything else.
const LET_GO_AT_ONCE: usize = 1000;

/// Has new connections go to these places of the group of which `member` is one, to each as likely.
pub(super) fn steer(member: &OwnedFd, places: &[u32]) -> Result<(), Errno> {
    sys::attach_reuseport_program(member.as_fd(), &program(places))
}

/// Draws one of the places.
fn program(places: &[u32]) -> Vec<Instruction> {
    let instruction = |code: u32, jt, jf, k| Instruction { code: u16::try_from(code).unwrap_or_default(), jt, jf, k };
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();
    let count = u32::try_from(places.len()).unwrap_or(1).max(1);
    let mut program = vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, random),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, count),
    ];
    for (drawn, place) in (0..).zip(places) {
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, drawn));
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, *place));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, places.first().copied().unwrap_or(0)));
    program
}

/// Resets the connections that wait in the queue of a slot that has no worker: their clients can try again at once.
pub(super) fn let_go(queue: &OwnedFd) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(queue)?;
    // What the dead worker has left may take the last one first, and panzer must not wait for another.
    rustix::fs::fcntl_setfl(queue, flags | OFlags::NONBLOCK)?;
    for _ in 0..LET_GO_AT_ONCE {
        match accept_with(queue, SocketFlags::CLOEXEC) {
            // Closed without lingering, a connection is reset.
            Ok(connection) => drop(sockopt::set_socket_linger(&connection, Some(Duration::ZERO))),
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(_) => break,
        }
    }
    rustix::fs::fcntl_setfl(queue, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place that the program returns where the kernel's random number is `random`.
    fn run(program: &[Instruction], random: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) & 0x07 {
                libc::BPF_LD => a = random,
                libc::BPF_ALU => a %= k,
                libc::BPF_JMP => at += usize::from(if a == k { jt } else { jf }),
                _ => return k,
            }
        }
    }

    #[test]
    fn each_place_in_rotation_is_drawn_as_often_and_no_other() {
        for places in [&[0, 1, 2, 3][..], &[2], &[1, 3, 9]] {
            let program = program(places);
            let drawn: Vec<u32> = (0..12).map(|random| run(&program, random)).collect();
            for place in places {
                assert_eq!(drawn.iter().filter(|one| *one == place).count(), 12 / places.len());
            }
        }
    }
}
