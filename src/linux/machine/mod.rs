//! panzer as the init of a whole machine: what nobody else has made ready it makes, and at the end the machine ends.
//!
//! Must never touch anything in a container, and never end without an end of the machine: the kernel panics when its init
//! ends. What fails is one line, and panzer goes on.

mod mounts;
mod power;

use std::ffi::{CStr, OsStr};
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Resource, Rlimit, WaitOptions, setrlimit};
use rustix::system::RebootCommand;

use super::log::Log;
use super::sys::{self, Target};
use super::{clock, files};
use crate::config::{Config, OnExit};
use crate::error::{Error, Status};
use crate::linux::words;
use crate::signals::Signal;
use crate::supervisor::report::Level;
use crate::supervisor::stop::Schedule;

pub(super) use power::PowerButton;

/// The PID namespace that a machine begins with (`PROC_PID_INIT_INO` in the kernel's `proc_ns.h`).
const FIRST_NAMESPACE: u64 = 4_026_531_836;

/// Where options stand without `--config`.
const FILE: &CStr = c"/etc/panzer.conf";

/// How often, and after which pause each time, it is looked whether all that was killed is gone.
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// So many descriptors each process may ask for, as under systemd; the kernel begins with 4096.
const DESCRIPTORS: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// The machine whose init panzer is.
#[derive(Debug)]
pub struct Machine {
    has_file: bool,
    on_exit: OnExit,
}

impl Machine {
    /// Makes the machine ready, where panzer is its init. Signals must be held already.
    pub fn enter(log: &mut Log) -> Option<Self> {
        if !rustix::process::getpid().is_init() || !is_machine() {
            return None;
        }
        sys::end_machine_on_crash(RebootCommand::PowerOff);
        let mut check = |action: &str, object: &str, done: Result<(), Errno>| complain(log, action, &object, done);
        mounts::mount_missing(&mut check);
        check("bring up", "lo", sys::bring_loopback_up());
        let name = files::read_text(Path::new("/etc/hostname")).unwrap_or_default();
        let name = name.trim_ascii();
        if !name.is_empty() {
            check("set hostname", name, rustix::system::sethostname(name.as_bytes()));
        }
        // From now on the kernel sends INT to panzer instead of ending the machine at once.
        check("take", "Ctrl-Alt-Del", rustix::system::reboot(RebootCommand::CadOff));
        let _ = setrlimit(Resource::Nofile, DESCRIPTORS);
        Some(Self { has_file: rustix::fs::access(FILE, Access::EXISTS).is_ok(), on_exit: OnExit::PowerOff })
    }

    /// The machine's own file of options.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.has_file.then_some(Path::new(OsStr::from_bytes(FILE.to_bytes())))
    }

    /// Does what was asked for the machine. Where there is one child it gets the console as its terminal, and a stop that ends in
    /// KILL: nobody else is there to escalate.
    pub fn adapt(&mut self, config: &mut Config) {
        self.on_exit = config.on_exit;
        sys::end_machine_on_crash(self.command());
        config.stop.get_or_insert_with(Schedule::standard);
        if config.workers.is_none() {
            let _ = rustix::process::setsid();
            let _ = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin());
        }
    }

    fn command(&self) -> RebootCommand {
        match self.on_exit {
            OnExit::PowerOff => RebootCommand::PowerOff,
            OnExit::Reboot => RebootCommand::Restart,
            OnExit::Halt => RebootCommand::Halt,
        }
    }

    /// Ends the machine. It returns only where the kernel does not let panzer do that.
    pub fn end(&self, status: Status, log: &mut Log) {
        let what = match self.on_exit {
            OnExit::PowerOff => "powering off",
            OnExit::Reboot => "rebooting",
            OnExit::Halt => "halting",
        };
        log.say(Level::Warning, "machine_ends", &format!("exit status {}; {what}", status.0));
        let _ = sys::kill(Target::Namespace, Signal::KILL);
        for _ in 0..LOOKS {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => clock::sleep(PAUSE),
                Err(_) => break,
            }
        }
        rustix::fs::sync();
        mounts::unmount_all(&mut |place, error| complain(log, "unmount", &place.display(), Err(error)));
        complain(log, "end", &"the machine", rustix::system::reboot(self.command()));
    }
}

/// Whether panzer is in the PID namespace that the machine began with. Where there is no `/proc` one is made that nobody
/// sees, and that is gone again when it was looked at: a container is not to be changed.
fn is_machine() -> bool {
    let mut number = sys::pid_namespace();
    if number == 0 {
        number = look_unseen().unwrap_or_default();
    }
    number == FIRST_NAMESPACE
}

#[inline(never)]
fn complain(log: &mut Log, action: &str, object: &dyn Display, done: Result<(), Errno>) {
    if let Err(error) = done {
        log.say(Level::Warning, "machine", &Error::about(action, object, words(error)).to_string());
    }
}

fn look_unseen() -> Result<u64, Errno> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let unseen = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::fs::statat(unseen, c"self/ns/pid", AtFlags::empty()).map(|namespace| namespace.st_ino)
}
