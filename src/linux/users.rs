//! Who runs the workers: `USER[:GROUP]` looked up in `/etc/passwd` and `/etc/group`.
//!
//! Our own few lines instead of libc's `getpwnam`, which in a static file brings in stdio and a client for nscd
//! (15 kB), and blocks on a name service.

use std::path::Path;

use rustix::process::{Gid, Uid};
use rustix::thread::CapabilitySet;

use super::files;
use crate::error::Error;

/// What a worker becomes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Credentials {
    /// Its user.
    pub(super) uid: Uid,
    /// Its main group.
    pub(super) gid: Gid,
    /// All its groups.
    pub(super) groups: Vec<Gid>,
    /// They are not panzer's own, or panzer may set them all the same. An ordinary user may name itself, and may not
    /// set its groups.
    pub(super) change: bool,
    /// Name and home directory, where the user has an entry.
    pub(super) account: Option<(String, String)>,
}

/// Looks up `typed`, `USER[:GROUP]`.
///
/// # Errors
/// There is no such user or group, or this process may not become them.
pub(super) fn look_up(typed: &str) -> Result<Credentials, Error> {
    // A comment may be in any encoding.
    let read = |path: &str| String::from_utf8_lossy(&files::read(Path::new(path)).unwrap_or_default()).into_owned();
    let (passwd, groups) = (read("/etc/passwd"), read("/etc/group"));
    let refuse = |cause: String| Error::about("use --user", &typed, cause);
    let credentials = resolve(typed, &passwd, &groups).map_err(refuse)?;
    let already = credentials.uid == rustix::process::getuid() && credentials.gid == rustix::process::getgid();
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    let may = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    if already || may {
        Ok(Credentials { change: may, ..credentials })
    } else {
        Err(refuse("only root may run workers as another user".to_owned()))
    }
}

fn resolve(typed: &str, passwd: &str, groups: &str) -> Result<Credentials, String> {
    let (user, group) = typed.split_once(':').map_or((typed, None), |(user, group)| (user, Some(group)));
    // name:password:UID:GID:comment:home:shell (passwd(5))
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| match fields[..] {
        [name, _, uid, _, ..] => name == user || uid == user,
        _ => false,
    });
    let (uid, own_group, account) = match entry.as_deref() {
        Some([name, _, uid, gid, _, home, ..]) => {
            let ids = (uid.parse::<u32>(), gid.parse::<u32>());
            let (Ok(uid), Ok(gid)) = ids else {
                return Err(format!("the entry of \"{user}\" in /etc/passwd is broken"));
            };
            (uid, gid, Some(((*name).to_owned(), (*home).to_owned())))
        }
        _ => {
            let uid = user.parse::<u32>().map_err(|_| format!("no user \"{user}\" in /etc/passwd"))?;
            (uid, uid, None)
        }
    };
    let gid = group.map_or(Ok(own_group), |group| group_number(group, groups))?;
    // -1 means "leave as it is" to the kernel.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(format!("{} is no valid number", u32::MAX));
    }
    let mut all = vec![gid];
    if let (Some((name, _)), None) = (&account, group) {
        all.extend(groups_of(name, groups).filter(|other| *other != gid));
    }
    let groups = all.into_iter().map(Gid::from_raw).collect();
    Ok(Credentials { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), groups, change: true, account })
}

/// name:password:GID:members (group(5))
fn group_number(group: &str, groups: &str) -> Result<u32, String> {
    let named = groups.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        if name == group { gid.parse().ok() } else { None }
    });
    named.or_else(|| group.parse().ok()).ok_or_else(|| format!("no group \"{group}\" in /etc/group"))
}

fn groups_of<'a>(user: &'a str, groups: &'a str) -> impl Iterator<Item = u32> + 'a {
    groups.lines().map(|line| line.split(':')).filter_map(move |mut fields| {
        let gid = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:w:/var/www:/bin/false\nbad:x:y:1:::\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:www-data,x\nwww-data:x:33:\ntape:x:26:x\nweb:x:40:xwww-data,www-data\n";

    fn numbers(typed: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let found = resolve(typed, PASSWD, GROUP)?;
        Ok((found.uid.as_raw(), found.gid.as_raw(), found.groups.iter().map(|gid| gid.as_raw()).collect()))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(numbers("www-data"), Ok((33, 33, vec![33, 4, 40])));
        assert_eq!(numbers("33"), Ok((33, 33, vec![33, 4, 40])));
        assert_eq!(numbers("www-data:tape"), Ok((33, 26, vec![26])));
        assert_eq!(numbers("1000"), Ok((1000, 1000, vec![1000])));
        assert_eq!(numbers("1000:7"), Ok((1000, 7, vec![7])));
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(numbers("nobody2"), Err("no user \"nobody2\" in /etc/passwd".to_owned()));
        assert_eq!(numbers("root:nogroup2"), Err("no group \"nogroup2\" in /etc/group".to_owned()));
        assert!(numbers("").is_err() && numbers("root:").is_err() && numbers("bad").is_err());
        assert!(numbers("4294967295").is_err() && numbers("1:4294967295").is_err() && numbers("-1").is_err());
    }
}
