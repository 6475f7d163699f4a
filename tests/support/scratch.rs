//! A directory of its own for each test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A new empty directory that is removed, with all that is in it, when this is dropped.
pub(crate) struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    /// Makes the directory under the system's directory for temporary files.
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("panzer-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        // One may be left from an earlier process with the same pid.
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).expect("cannot make a scratch directory");
        Scratch { directory }
    }

    /// The directory itself.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("cannot write a scratch file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
