//! `--pid-file` and `--status-file`: for programs that look panzer and its workers up in the file system.
//!
//! A file appears whole or not at all: it is written under another name and renamed. Must never remove what is not
//! panzer's own any more.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::files;
use super::log::Log;
use super::own_path::OwnPath;
use crate::error::Error;
use crate::linux::words;
use crate::supervisor::report::Level;

/// The file that says which process panzer is. It is locked for as long as panzer lives, so that another one can tell.
pub(super) struct PidFile {
    /// Removed first, while the file is still locked.
    _path: OwnPath,
    /// Holds the lock.
    _file: OwnedFd,
}

impl PidFile {
    /// Takes the path, whatever a dead panzer has left there.
    ///
    /// # Errors
    /// A living one has it, or it cannot be written.
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        let path = &absolute("--pid-file", path)?;
        loop {
            // Whoever holds the lock of what is at the path may replace it; where nothing is, the first one has it.
            let present = lock_present(path)?;
            match write(path, &format!("{}\n", std::process::id()), present.is_some()) {
                Ok((file, own)) => return Ok(Self { _path: own, _file: file }),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(refused("--pid-file", path, words(error))),
            }
        }
    }
}

/// The path to use, which is from the root on.
///
/// # Errors
/// panzer's directory is not to be had.
pub(super) fn absolute(option: &str, path: &Path) -> Result<PathBuf, Error> {
    files::absolute(path).map_err(|error| refused(option, path, words(error)))
}

fn refused(option: &str, path: &Path, cause: String) -> Error {
    Error::about(&format!("use {option}"), &path.display(), cause)
}

/// Locks what is at the path, which a dead panzer has left there.
///
/// # Errors
/// A living one has it, or it cannot be looked at.
pub(super) fn lock_present(path: &Path) -> Result<Option<OwnedFd>, Error> {
    loop {
        let found = match files::open(path, OFlags::RDONLY) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(refused("--pid-file", path, words(error))),
        };
        match flock(&found, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let text = files::read_text(path).unwrap_or_default();
                let who = text
                    .trim_ascii()
                    .parse::<u32>()
                    .map_or("another panzer".to_owned(), |pid| format!("panzer with pid {pid}"));
                return Err(refused("--pid-file", path, format!("{who} has it")));
            }
            // There are file systems that know no locks.
            Err(_) => return Ok(Some(found)),
            Ok(()) if is_at(&found, path) => return Ok(Some(found)),
            // Somebody has replaced it in the meantime.
            Ok(()) => {}
        }
    }
}

/// Whether a file can be made at this path.
///
/// # Errors
/// It cannot.
pub(super) fn check(option: &str, path: &Path) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    files::access(directory, rustix::fs::Access::WRITE_OK).map_err(|error| refused(option, path, words(error)))
}

/// The file that says which workers there are.
pub(super) struct StatusFile {
    path: PathBuf,
    content: String,
    own: OwnPath,
    /// It was said that it cannot be written.
    said: bool,
}

impl StatusFile {
    /// Writes the first one, of no worker.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let path = absolute("--status-file", path)?;
        let (_, own) = write(&path, "", true).map_err(|error| not_written(&path, error))?;
        Ok(Self { path, content: String::new(), own, said: false })
    }

    /// Writes it anew where something has changed. What fails is said once, until it works again.
    pub(super) fn update(&mut self, content: String, log: &mut Log) {
        if content == self.content {
            return;
        }
        match write(&self.path, &content, true) {
            Ok((_, own)) => {
                self.own = own;
                self.said = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    let text = format!("{}; trying again at the next change", not_written(&self.path, error));
                    log.say(Level::Error, "error", &text);
                }
            }
        }
        self.content = content;
    }
}

fn not_written(path: &Path, error: Errno) -> Error {
    Error::about("write --status-file", &path.display(), words(error))
}

fn is_at(file: &OwnedFd, path: &Path) -> bool {
    let (Ok(file), Ok(there)) = (rustix::fs::fstat(file), files::stat(path)) else { return false };
    (file.st_dev, file.st_ino) == (there.st_dev, there.st_ino)
}

/// Writes a file under a name of its own, locks it, and renames it; over what is there only where it may.
fn write(path: &Path, content: &str, may_replace: bool) -> Result<(OwnedFd, OwnPath), Errno> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let new = new.as_path();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&*files::c_string(new)?, flags, Mode::from_raw_mode(0o644))?;
    // Before anybody can find it. Nobody else has it, so this cannot fail where there are locks.
    let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
    let renamed = files::write(file.as_fd(), content.as_bytes()).and_then(|()| OwnPath::of(new)).and_then(|own| {
        let how = if may_replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let (from, to) = (files::c_string(new)?, files::c_string(path)?);
        match renameat_with(CWD, &*from, CWD, &*to, how) {
            // There are file systems that cannot tell.
            Err(Errno::INVAL) => rustix::fs::rename(&*from, &*to)?,
            renamed => renamed?,
        }
        Ok(own.moved_to(path, content))
    });
    if renamed.is_err() {
        let _ = files::unlink(new);
    }
    Ok((file, renamed?))
}
