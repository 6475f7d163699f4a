//! Who a process is, and doing something as it: so that the kernel judges what panzer does for a worker as it would
//! judge the worker.
//!
//! Must never leave panzer as somebody else: whatever the action does, the way back is taken.

use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::linux::files;
use crate::linux::sys::Pid;

/// What decides about a file or a port, from `/proc/PID/status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    /// The process of the thread.
    pub(super) process: Pid,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// What it may do beyond that.
    capabilities: CapabilitySet,
    umask: Mode,
}

/// With which capabilities to act.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum With {
    /// With what the process has and panzer has too.
    ItsOwn,
    /// With all that panzer may have: to look into a process, one needs at least what it has itself.
    Panzers,
}

impl Identity {
    /// Its user.
    pub(super) fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Takes its capabilities away: in another user namespace they mean nothing here.
    pub(super) fn forget_capabilities(&mut self) {
        self.capabilities = CapabilitySet::empty();
    }

    /// Whether it may bind ports below `ip_unprivileged_port_start`.
    pub(super) fn may_bind_any_port(&self) -> bool {
        self.capabilities.contains(CapabilitySet::NET_BIND_SERVICE)
    }

    /// Who `thread` is; anybody may ask.
    pub(super) fn of(thread: Pid) -> Option<Self> {
        parse(&files::read_text(Path::new(&format!("/proc/{}/status", thread.number())))?)
    }

    /// Runs `action` as this identity.
    ///
    /// # Errors
    /// panzer may not become it, and nothing was run.
    pub(super) fn act<T>(&self, with: With, mut action: impl FnMut() -> T) -> Result<T, Errno> {
        let mut done = None;
        self.run(with, &mut || done = Some(action()))?;
        done.ok_or(Errno::PERM)
    }

    /// The same for any action, so that it is in the file only once.
    fn run(&self, with: With, action: &mut dyn FnMut()) -> Result<(), Errno> {
        let own = Self::of(Pid::own()).ok_or(Errno::NOENT)?;
        let sets = rustix::thread::capabilities(None)?;
        let effective = match with {
            With::ItsOwn => sets.permitted & self.capabilities,
            With::Panzers => sets.permitted,
        };
        let same_person = (self.uid, self.gid, &self.groups) == (own.uid, own.gid, &own.groups);
        if same_person && effective == sets.effective {
            self.run_with_umask(action);
            return Ok(());
        }
        let dumpable = rustix::process::dumpable_behavior()?;
        let pdeathsig = rustix::process::parent_process_death_signal()?;
        let parent = rustix::process::getppid();
        let became = self.become_it(&own, same_person, CapabilitySets { effective, ..sets });
        if became.is_ok() {
            self.run_with_umask(action);
        }
        own.become_again(sets);
        // The kernel takes these two back with every change of identity.
        let _ = rustix::process::set_dumpable_behavior(match dumpable {
            DumpableBehavior::NotDumpable => DumpableBehavior::NotDumpable,
            DumpableBehavior::Dumpable => DumpableBehavior::Dumpable,
            // Nobody but the kernel may set this one.
            DumpableBehavior::DumpableReadableOnlyByRoot => DumpableBehavior::NotDumpable,
        });
        let _ = rustix::process::set_parent_process_death_signal(pdeathsig);
        // The parent may have died just then.
        if let (Some(signal), true) = (pdeathsig, rustix::process::getppid() != parent) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
        }
        became
    }

    fn run_with_umask(&self, action: &mut dyn FnMut()) {
        let umask = rustix::process::umask(self.umask);
        action();
        rustix::process::umask(umask);
    }

    /// Only the effective ids change: the real and saved ones keep the worker from signalling panzer meanwhile.
    fn become_it(&self, own: &Self, same_person: bool, sets: CapabilitySets) -> Result<(), Errno> {
        if !same_person {
            if self.groups != own.groups {
                rustix::thread::set_thread_groups(&self.groups)?;
            }
            rustix::thread::set_thread_res_gid(None, self.gid, None)?;
            rustix::thread::set_thread_res_uid(None, self.uid, None)?;
        }
        rustix::thread::set_capabilities(None, sets)
    }

    /// Cannot fail: these are the ids and capabilities that this process had a moment ago and still has in reserve.
    fn become_again(&self, sets: CapabilitySets) {
        let _ = rustix::thread::set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets });
        let _ = rustix::thread::set_thread_res_uid(None, self.uid, None);
        let _ = rustix::thread::set_thread_res_gid(None, self.gid, None);
        let _ = rustix::thread::set_thread_groups(&self.groups);
        let _ = rustix::thread::set_capabilities(None, sets);
    }
}

fn parse(status: &str) -> Option<Identity> {
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_ascii);
    // real, effective, saved, file system's
    let effective = |name| field(name)?.split_ascii_whitespace().nth(1)?.parse::<u32>().ok();
    let groups = field("Groups")?.split_ascii_whitespace().map(|group| group.parse().map(Gid::from_raw));
    Some(Identity {
        process: Pid::from_number(field("Tgid")?.parse().ok()?)?,
        uid: Uid::from_raw(effective("Uid")?),
        gid: Gid::from_raw(effective("Gid")?),
        groups: groups.collect::<Result<_, _>>().ok()?,
        capabilities: CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapEff")?, 16).ok()?),
        umask: Mode::from_raw_mode(u32::from_str_radix(field("Umask")?, 8).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUmask:\t0027\nState:\tS (sleeping)\nTgid:\t12\nNgid:\t0\nPid:\t14\nUid:\t1\t2\t3\t4\n\
        Gid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t6 20 \nCapPrm:\t0000000000000000\nCapEff:\t0000000000000400\n";

    #[test]
    fn what_counts_is_the_process_its_effective_ids_and_its_umask() {
        let found = parse(STATUS).unwrap();
        assert_eq!((found.process.number(), found.uid.as_raw(), found.gid.as_raw()), (12, 2, 6));
        assert_eq!(found.groups.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>(), [6, 20]);
        assert_eq!((found.capabilities, found.umask.as_raw_mode()), (CapabilitySet::NET_BIND_SERVICE, 0o027));
        assert_eq!(parse("Tgid:\t12\n"), None);
    }

    #[test]
    fn one_can_always_act_as_oneself() {
        let own = Identity::of(Pid::own()).unwrap();
        let umask = own.umask;
        assert_eq!(own.act(With::ItsOwn, || 7), Ok(7));
        assert_eq!(Identity::of(Pid::own()).unwrap().umask, umask);
    }
}
