//! Files and directories, by the kernel's own calls: std's ways to them are 6 kB more in the shipped file, and bring in
//! libc's memory and streams.
//!
//! Must never wait for anything but the file system.

use std::ffi::{CString, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

/// So many bytes are asked for at once: most of what is read stands in `/proc` and is shorter.
const AT_ONCE: usize = 2048;

/// More than the largest piece of `sys.rs`'s memory that is kept.
const LONG: usize = 32 * 1024;

/// Opens what is there.
pub(super) fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(&*c_string(path)?, flags | OFlags::CLOEXEC, Mode::empty())
}

/// The directory at a path, to name what is in it; it does not have to be readable.
pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY)
}

/// A path or a name as the kernel takes it. rustix would make one as well, once for each function and type of path: 4 kB.
#[inline(never)]
pub(super) fn c_string(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

/// What is at a path, or where a link there leads.
pub(super) fn stat(path: &Path) -> Result<Stat, Errno> {
    rustix::fs::stat(&*c_string(path)?)
}

/// What is at a path.
pub(super) fn lstat(path: &Path) -> Result<Stat, Errno> {
    rustix::fs::lstat(&*c_string(path)?)
}

/// Whether it may be used so (`access(2)`).
pub(super) fn access(path: &Path, how: Access) -> Result<(), Errno> {
    rustix::fs::access(&*c_string(path)?, how)
}

/// Removes a file.
pub(super) fn unlink(path: &Path) -> Result<(), Errno> {
    rustix::fs::unlink(&*c_string(path)?)
}

/// Whether there is anything that can be seen.
pub(super) fn exists(path: &Path) -> bool {
    stat(path).is_ok()
}

/// Whether it is a directory, or a link to one.
pub(super) fn is_directory(path: &Path) -> bool {
    stat(path).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// All that a file holds.
///
/// # Errors
/// What the kernel says.
pub fn read(path: &Path) -> Result<Vec<u8>, Errno> {
    read_into(path, Vec::new())
}

/// The same, into the room that there is as far as it goes.
fn read_into(path: &Path, mut content: Vec<u8>) -> Result<Vec<u8>, Errno> {
    let file = open(path, OFlags::RDONLY)?;
    loop {
        content.reserve(AT_ONCE);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content)) {
            Ok(0) => return Ok(content),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// All that a file holds; `None`: it cannot be read, or is no text.
pub(super) fn read_text(path: &Path) -> Option<String> {
    String::from_utf8(read(path).ok()?).ok()
}

/// The same of what may be long, is read at the start only, and is let go of again: memory of its own, which goes back to the
/// kernel, where growing pieces would stay resident.
pub(super) fn read_long_text(path: &Path) -> Option<String> {
    String::from_utf8(read_into(path, Vec::with_capacity(LONG)).ok()?).ok()
}

/// Writes all of it.
pub(super) fn write(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Calls `each` with the names in a directory, until it gives false.
pub(super) fn for_each_name(directory: &Path, each: &mut dyn FnMut(&OsStr) -> bool) -> Result<(), Errno> {
    let directory = open(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut space = [MaybeUninit::uninit(); AT_ONCE];
    let mut entries = RawDir::new(directory, &mut space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && !each(OsStr::from_bytes(name)) {
            break;
        }
    }
    Ok(())
}

/// Where a link leads.
pub(super) fn read_link(path: &Path) -> Result<PathBuf, Errno> {
    let target = rustix::fs::readlink(&*c_string(path)?, Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// The path of an open file or directory from the root, with no link in it, as `/proc` tells it.
pub(super) fn path_of(file: &OwnedFd) -> Result<PathBuf, Errno> {
    read_link(Path::new(&format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())))
}

/// The directory that panzer is in.
pub(super) fn current_directory() -> Result<PathBuf, Errno> {
    let path = rustix::process::getcwd(Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

/// The path from the root on: panzer works in `/`, so a path is taken from where it was started.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Errno> {
    if path.is_absolute() { Ok(path.to_owned()) } else { Ok(current_directory()?.join(path)) }
}
