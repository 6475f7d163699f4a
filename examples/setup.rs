//! The helper of the example image: what a machine needs that its init does not do.
//!
//! ```text
//! setup ADDRESS/PREFIX GATEWAY COMMAND [ARGUMENT]...
//! ```
//!
//! Loads the kernel's modules that `/lib/modules/order` names, one a line (none where there is no such file), gives the
//! interface `eth0` its address and the default route, and becomes the command. Each worker begins with it: what was done
//! before is found done.

use std::error::Error;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;
use std::{env, fs, thread};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

/// Numbers of `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_addr.h` and `linux/if.h`.
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_REPLACE_CREATE: u16 = 0x100 | 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    eprintln!("setup: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let mut text = || arguments.next().and_then(|word| word.into_string().ok());
    let (Some(address), Some(gateway)) = (text(), text()) else {
        return Err("write setup ADDRESS/PREFIX GATEWAY COMMAND".into());
    };
    let (address, prefix) = address.split_once('/').ok_or("the address has no prefix")?;
    load_modules()?;
    configure(address.parse()?, prefix.parse()?, gateway.parse()?)?;
    let command = arguments.next().ok_or("there is no command")?;
    Err(Command::new(command).args(arguments).exec().into())
}

fn load_modules() -> Result<(), Box<dyn Error>> {
    let folder = Path::new("/lib/modules");
    let Ok(order) = fs::read_to_string(folder.join("order")) else { return Ok(()) };
    for name in order.lines() {
        let file = fs::File::open(folder.join(name))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("cannot load {name}: {error}").into()),
        }
    }
    Ok(())
}

fn configure(address: Ipv4Addr, prefix: u8, gateway: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let mut tries = 0;
    let index: u32 = loop {
        match fs::read_to_string("/sys/class/net/eth0/ifindex") {
            Ok(index) => break index.trim().parse()?,
            Err(_) if tries < 500 => thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(format!("there is no eth0: {error}").into()),
        }
        tries += 1;
    };
    let index = index.to_ne_bytes();
    let up = IFF_UP.to_ne_bytes();
    // struct ifinfomsg: family, type, index, flags, which flags are changed.
    ask(RTM_NEWLINK, &[&[0; 4][..], &index, &up, &up].concat(), &[])?;
    // struct ifaddrmsg: family, prefix, flags, scope, index.
    let own = address.octets();
    ask(RTM_NEWADDR, &[&[2, prefix, 0, 0][..], &index].concat(), &[(IFA_LOCAL, own), (IFA_ADDRESS, own)])?;
    // struct rtmsg: family, lengths of the addresses, tos, table main, protocol boot, scope universe, unicast, flags.
    let route = [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    ask(RTM_NEWROUTE, &route, &[(RTA_GATEWAY, gateway.octets()), (RTA_OIF, index)])
}

/// Asks the kernel by `rtnetlink(7)` and waits for its word.
fn ask(kind: u16, body: &[u8], attributes: &[(u16, [u8; 4])]) -> Result<(), Box<dyn Error>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let how = if kind == RTM_NEWLINK { 0 } else { NLM_F_REPLACE_CREATE };
    let mut message = [kind.to_ne_bytes(), (NLM_F_REQUEST_ACK | how).to_ne_bytes()].concat();
    message.extend([0; 8]);
    message.extend(body);
    for (name, value) in attributes {
        message.extend(8_u16.to_ne_bytes());
        message.extend(name.to_ne_bytes());
        message.extend(value);
    }
    let length = u32::try_from(message.len() + 4)?;
    send(&socket, &[&length.to_ne_bytes()[..], &message].concat(), SendFlags::empty())?;
    let mut answer = [0; 512];
    recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // An nlmsghdr, then the negative error.
    let code = answer.get(16..20).and_then(|code| code.first_chunk()).map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 || code == -Errno::EXIST.raw_os_error() {
        return Ok(());
    }
    Err(format!("the kernel refuses request {kind}: {}", std::io::Error::from_raw_os_error(-code)).into())
}
