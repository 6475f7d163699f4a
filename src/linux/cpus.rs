//! How many CPUs this process may use: the affinity mask, cut by the CPU quota of its control groups.
//!
//! Reads `/proc` and the cgroup file system once at the start. Where nothing can be read the mask alone counts.

use std::path::Path;

use super::{control_groups, files};

/// The smaller of the affinity mask and the quota, which is rounded up; at least 1.
pub(super) fn usable() -> u32 {
    let allowed = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    let (groups, mounts) = control_groups::own();
    let quota = quota(&groups, &mounts, &files::read_text);
    quota.map_or(allowed, |quota| allowed.min(quota)).max(1)
}

/// The smallest quota of the groups that `groups` (`/proc/self/cgroup`) names, in whole CPUs, rounded up.
fn quota(groups: &str, mounts: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let mut smallest = None;
    control_groups::of("cpu", groups, mounts, &mut |group| {
        // A limit may stand at any level above, up to the mount.
        for level in group.directory.ancestors().take_while(|level| level.starts_with(group.mount)) {
            let limit = if group.is_version_2 { limit_v2(level, read) } else { limit_v1(level, read) };
            smallest = match (smallest, limit) {
                (Some(known), Some(limit)) => Some(limit.min(known)),
                (known, limit) => known.or(limit),
            };
        }
    });
    smallest
}

/// `cpu.max`: `QUOTA PERIOD` or `max PERIOD`.
fn limit_v2(directory: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let text = read(&directory.join("cpu.max"))?;
    let mut words = text.split_ascii_whitespace();
    whole(words.next()?, words.next()?)
}

/// `cpu.cfs_quota_us`, -1 for none, and `cpu.cfs_period_us`.
fn limit_v1(directory: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<u32> {
    let quota = read(&directory.join("cpu.cfs_quota_us"))?;
    let period = read(&directory.join("cpu.cfs_period_us"))?;
    whole(quota.trim_ascii(), period.trim_ascii())
}

fn whole(quota: &str, period: &str) -> Option<u32> {
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    if period == 0 { None } else { u32::try_from(quota.div_ceil(period)).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
    const V1: &str = "40 32 0:35 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                      41 32 0:36 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";

    fn with(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u32> {
        quota(groups, mounts, &|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn a_version_2_quota_is_rounded_up() {
        for (text, cpus) in [("150000 100000\n", Some(2)), ("50000 100000\n", Some(1)), ("max 100000\n", None)] {
            assert_eq!(with("0::/\n", V2, &[("/sys/fs/cgroup/cpu.max", text)]), cpus, "{text}");
        }
    }

    #[test]
    fn the_smallest_quota_of_all_levels_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "400000 100000"),
            ("/sys/fs/cgroup/a/cpu.max", "300000 100000"),
            ("/sys/fs/cgroup/cpu.max", "max 100000"),
        ];
        assert_eq!(with("0::/a/b\n", V2, &files), Some(3));
    }

    #[test]
    fn a_version_1_quota_is_found_below_the_mounts_root() {
        let groups = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n";
        let quota = |quota| {
            let files = [
                ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota),
                ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ];
            with(groups, V1, &files)
        };
        assert_eq!(quota("250000\n"), Some(3));
        assert_eq!(quota("-1\n"), None);
    }

    #[test]
    fn nonsense_limits_nothing() {
        for (groups, text) in [("", ""), ("0::/../..\n", "x y"), ("junk", "1"), ("0::/\n", "100000 0")] {
            assert_eq!(with(groups, V2, &[("/sys/fs/cgroup/cpu.max", text)]), None);
        }
    }
}
