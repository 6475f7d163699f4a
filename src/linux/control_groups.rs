//! The control groups that panzer is in: where their files are, and how often the kernel has killed there for want of memory.
//!
//! Must never write: what a process may use is for others to say.

use std::path::{Path, PathBuf};

use super::files;

/// One of panzer's groups.
pub(super) struct Group<'a> {
    /// Where its hierarchy is mounted.
    pub(super) mount: &'a Path,
    /// Where its files are.
    pub(super) directory: &'a Path,
    /// Which kind of hierarchy that is.
    pub(super) is_version_2: bool,
}

/// `/proc/self/cgroup` and `/proc/self/mountinfo`, empty where they cannot be read.
pub(super) fn own() -> (String, String) {
    let read = |path| files::read_long_text(Path::new(path)).unwrap_or_default();
    (read("/proc/self/cgroup"), read("/proc/self/mountinfo"))
}

/// Calls `each` with the groups of `groups` (`/proc/self/cgroup`) that may have files of this controller.
pub(super) fn of(controller: &str, groups: &str, mounts: &str, each: &mut dyn FnMut(&Group<'_>)) {
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let is_version_2 = controllers.is_empty();
        if !is_version_2 && !controllers.split(',').any(|one| one == controller) {
            continue;
        }
        if let Some((mount, directory)) = locate(controller, mounts, group, is_version_2) {
            each(&Group { mount, directory: &directory, is_version_2 });
        }
    }
}

/// Where the file system is mounted and where `group` is in it. A mount may show only a part of the hierarchy, as in a
/// container without its own cgroup namespace: then the part above its root is left out of the path.
fn locate<'a>(controller: &str, mounts: &'a str, group: &str, is_version_2: bool) -> Option<(&'a Path, PathBuf)> {
    for line in mounts.lines() {
        // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [OPTIONAL]... - TYPE SOURCE SUPER-OPTIONS (proc_pid_mountinfo(5))
        let mut words = line.split(' ').skip(3);
        let (Some(root), Some(mount)) = (words.next(), words.next()) else { continue };
        let mut words = words.skip_while(|word| *word != "-").skip(1);
        let (Some(kind), Some(_), Some(options)) = (words.next(), words.next(), words.next()) else { continue };
        let fits = match kind {
            "cgroup2" => is_version_2,
            "cgroup" => !is_version_2 && options.split(',').any(|option| option == controller),
            _ => false,
        };
        if fits {
            let mount = Path::new(mount);
            let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
            // A group outside of what is mounted shows as `/../..`.
            let below = if group.split('/').any(|part| part == "..") { Path::new("") } else { below };
            return Some((mount, mount.join(below.strip_prefix("/").unwrap_or(below))));
        }
    }
    None
}

/// How often the kernel has killed for want of memory in panzer's own group, where workers are as well.
#[derive(Default)]
pub(super) struct MemoryKills {
    /// Where it counts; empty: nowhere.
    file: PathBuf,
    /// What it had counted when it was last looked at.
    seen: u64,
}

impl MemoryKills {
    /// Counts from now on.
    pub(super) fn new() -> Self {
        let (groups, mounts) = own();
        let mut kills = Self::default();
        of("memory", &groups, &mounts, &mut |group| {
            let file = group.directory.join(if group.is_version_2 { "memory.events" } else { "memory.oom_control" });
            // Version 2 may be mounted as well, without this controller.
            if let Some(seen) = count(&file) {
                kills = Self { file, seen };
            }
        });
        kills
    }

    /// Whether there was another one. The kernel counts before it kills, so that who is reaped is counted.
    pub(super) fn are_more(&mut self) -> bool {
        let Some(count) = count(&self.file) else { return false };
        count > std::mem::replace(&mut self.seen, count)
    }
}

/// The line `oom_kill N`, which both versions have.
fn count(file: &Path) -> Option<u64> {
    files::read_text(file)?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "4:memory:/pod/abc\n1:cpu:/pod/abc\n0::/pod/abc\n";
    const MOUNTS: &str = "41 32 0:36 /pod/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                          42 32 0:37 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_controllers_group_is_found_in_each_version() {
        let mut found = Vec::new();
        of("memory", GROUPS, MOUNTS, &mut |group| found.push((group.directory.to_owned(), group.is_version_2)));
        let expected = [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup/unified/pod/abc", true)];
        assert_eq!(found, expected.map(|(path, is_version_2)| (PathBuf::from(path), is_version_2)));
    }

    #[test]
    fn kills_are_counted_from_the_last_look_on() {
        let file = std::env::temp_dir().join(format!("panzer-kills-{}", rustix::process::getpid().as_raw_nonzero()));
        let write = |text: &str| {
            let descriptor = rustix::fs::open(
                &file,
                rustix::fs::OFlags::CREATE | rustix::fs::OFlags::TRUNC | rustix::fs::OFlags::WRONLY,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            );
            rustix::io::write(descriptor.unwrap(), text.as_bytes()).unwrap();
        };
        write("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        let mut kills = MemoryKills { file: file.clone(), seen: 3 };
        assert!(!kills.are_more());
        write("low 0\noom 9\noom_kill 5\noom_group_kill 0\n");
        assert!(kills.are_more());
        assert!(!kills.are_more(), "each is told once");
        files::unlink(&file).unwrap();
        assert!(!kills.are_more());
        assert!(!MemoryKills::default().are_more());
    }
}
