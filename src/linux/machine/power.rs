//! The power button, as the kernel's ACPI driver tells of it by generic netlink (`acpi_event`): that needs neither a device
//! file nor the `evdev` module, and the `button` module may be loaded at any later time. Must never be waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

use super::super::log::Log;
use super::super::sys::Pid;

/// Asks for the family `acpi_event`: `nlmsghdr`, `genlmsghdr`, one attribute (`linux/netlink.h`, `linux/genetlink.h`).
/// Lengths and types are 16 bits in the machine's order, which is little-endian on all that panzer is built for.
const QUESTION: &[u8; 36] = b"\x24\0\0\0\x10\0\x01\0\0\0\0\0\0\0\0\0\
    \x03\x01\0\0\
    \x0f\0\x02\0acpi_event\0\0";

/// The group of the family to which the kernel sends; in the answer its number stands just before its name.
const GROUP: &[u8] = b"acpi_mc_group\0";

/// What is between the two: the head of the name's attribute.
const HEAD: usize = 4;

/// What an event of the power button begins with: its class.
const PRESSED: &[u8] = b"button/power";

/// Messages of this family are shorter.
const LONGEST_MESSAGE: usize = 1024;

/// Where events of the button come.
#[derive(Debug)]
pub(in crate::linux) struct PowerButton(OwnedFd);

impl PowerButton {
    /// Begins to watch. A kernel without ACPI has no such family, and the machine no such button: nothing is said.
    pub(in crate::linux) fn watch(log: &mut Log) -> Option<Self> {
        match subscribe() {
            Ok(socket) => Some(Self(socket)),
            Err(Errno::NOENT | Errno::PROTONOSUPPORT) => None,
            Err(error) => {
                super::complain(log, "watch", &"the power button", Err(error));
                None
            }
        }
    }

    /// Readable when something has happened.
    pub(in crate::linux) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether what has come is that it was pressed.
    pub(in crate::linux) fn was_pressed(&self) -> bool {
        let mut space = [0_u8; LONGEST_MESSAGE];
        let length = recv(&self.0, &mut space[..], RecvFlags::DONTWAIT).map_or(0, |(length, _)| length);
        holds(&space, length, PRESSED).is_some()
    }
}

fn subscribe() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))?;
    // With this address already, since only the groups may be changed later.
    let own = Pid::own().number().unsigned_abs();
    bind(&socket, &SocketAddrNetlink::new(own, 0))?;
    send(&socket, QUESTION, SendFlags::empty())?;
    let mut space = [0_u8; LONGEST_MESSAGE];
    // The kernel has answered before it returned from the call.
    let (length, _) = recv(&socket, &mut space[..], RecvFlags::DONTWAIT)?;
    let group = holds(&space, length, GROUP)
        .and_then(|at| space.get(at.checked_sub(HEAD + size_of::<u32>())?..))
        .and_then(|number| number.first_chunk())
        .map(|number| u32::from_ne_bytes(*number))
        .and_then(|group| 1_u32.checked_shl(group.checked_sub(1)?))
        .ok_or(Errno::NOENT)?;
    bind(&socket, &SocketAddrNetlink::new(own, group))?;
    Ok(socket)
}

/// Where in the first `length` bytes the text stands.
fn holds(bytes: &[u8], length: usize, text: &[u8]) -> Option<usize> {
    bytes.get(..length)?.windows(text.len()).position(|window| window == text)
}
