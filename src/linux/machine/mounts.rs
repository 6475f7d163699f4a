//! The file systems that every program expects, the descriptors 0 to 2, and the end of all mounts. Must never mount over
//! what is there.

use std::ffi::{CStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::super::{files, sys};

/// Where, what, and with which options.
struct Row(&'static CStr, &'static CStr, MountFlags, &'static CStr);

const BARE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const FILES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// What is mounted, in this order.
static ROWS: [Row; 8] = [
    Row(c"/dev", c"devtmpfs", MountFlags::NOSUID, c"mode=755"),
    Row(c"/proc", c"proc", BARE, c""),
    Row(c"/sys", c"sysfs", BARE, c""),
    Row(c"/dev/pts", c"devpts", DEVICES, c"gid=5,mode=620,ptmxmode=666"),
    Row(c"/dev/shm", c"tmpfs", FILES, c"mode=1777"),
    Row(c"/run", c"tmpfs", FILES, c"mode=755"),
    Row(c"/tmp", c"tmpfs", FILES, c"mode=1777"),
    Row(c"/sys/fs/cgroup", c"cgroup2", BARE, c""),
];

/// Links that programs expect in `/dev`, and where they lead.
static LINKS: [(&CStr, &CStr); 4] = [
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
];

/// Takes what was to be done, to what, and whether it was.
pub(super) type Check<'a> = &'a mut dyn FnMut(&str, &str, Result<(), Errno>);

/// Mounts what is missing.
pub(super) fn mount_missing(check: Check<'_>) {
    for Row(place, kind, flags, options) in &ROWS {
        let mounted = mount_one(place, kind, *flags, options);
        // After the first one, so that whatever is said can be seen.
        if *place == c"/dev" {
            open_console();
        }
        check("mount", place.to_str().unwrap_or_default(), mounted);
    }
    for (link, target) in LINKS {
        let _ = rustix::fs::symlink(target, link);
    }
}

fn mount_one(place: &CStr, kind: &CStr, flags: MountFlags, options: &CStr) -> Result<(), Errno> {
    // What is there already is as good; a root that cannot be written to says so below.
    let _ = rustix::fs::mkdir(place, Mode::from_raw_mode(0o755));
    let directory = rustix::fs::open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let parent = rustix::fs::statat(&directory, c"..", AtFlags::empty())?;
    if rustix::fs::fstat(&directory)?.st_dev != parent.st_dev {
        return Ok(());
    }
    mount(kind, place, kind, flags, Some(options))
}

/// Opens the console in place of what was closed when panzer began.
fn open_console() {
    let [stdin, stdout, stderr] = [0, 1, 2].map(sys::was_closed);
    if !(stdin || stdout || stderr) {
        return;
    }
    let open = |path| rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    let Ok(console) = open(c"/dev/console").or_else(|_| open(c"/dev/null")) else { return };
    if stdin {
        let _ = rustix::stdio::dup2_stdin(&console);
    }
    if stdout {
        let _ = rustix::stdio::dup2_stdout(&console);
    }
    if stderr {
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Unmounts everything, the last first. What is in use, as the root is, can only be read from then on. Tells what cannot be
/// had to that either, if it has a device that could keep a trace of it.
pub(super) fn unmount_all(failed: &mut dyn FnMut(&Path, Errno)) {
    let mounts = files::read(Path::new("/proc/self/mounts")).unwrap_or_default();
    for line in mounts.split(|byte| *byte == b'\n').rev() {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(source), Some(place)) = (words.next(), words.next()) else { continue };
        let place = unescaped(place);
        let Ok(name) = files::c_string(&place) else { continue };
        if unmount(&*name, UnmountFlags::empty()).is_err()
            && let Err(error) = mount_remount(&*name, MountFlags::RDONLY, c"")
            && source.starts_with(b"/")
        {
            failed(&place, error);
        }
    }
}

/// A path as `/proc/self/mounts` writes it: a blank and a few others are a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let mut byte = *first;
        rest = after;
        if let (b'\\', [high, middle, low, after @ ..]) = (byte, after) {
            byte = (high & 3) << 6 | (middle & 7) << 3 | low & 7;
            rest = after;
        }
        bytes.push(byte);
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_list_of_mounts_is_read_as_it_is() {
        for (text, path) in
            [("/a", "/a"), ("/a\\040b\\134", "/a b\\"), ("/\\303\\251", "/é"), ("/\\04", "/\\04"), ("", "")]
        {
            assert_eq!(unescaped(text.as_bytes()), PathBuf::from(path));
        }
    }
}
