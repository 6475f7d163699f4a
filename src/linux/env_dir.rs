//! `--env-dir`: one variable a file, as daemontools' envdir(8) reads it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::files;
use crate::error::Error;
use crate::linux::words;

/// A variable and its new value; `None` unsets it.
pub(super) type Change = (OsString, Option<OsString>);

/// Reads every file of `directory`, which is `typed` for people.
///
/// Names that begin with a dot are left out: Kubernetes keeps the real files of a mounted ConfigMap in such
/// directories, and editors their copies.
///
/// # Errors
/// The directory or one of its files cannot be read, or a name holds an equals sign.
pub(super) fn read(directory: &Path, typed: &Path) -> Result<Vec<Change>, Error> {
    let mut names: Vec<OsString> = Vec::new();
    files::for_each_name(directory, &mut |name| {
        names.extend((!name.as_bytes().starts_with(b".")).then(|| name.to_owned()));
        true
    })
    .map_err(|error| Error::about("read --env-dir", &typed.display(), words(error)))?;
    names.sort_unstable();
    let mut changes = Vec::new();
    for name in names {
        let value = read_file(directory, &name)
            .map_err(|cause| Error::about("read --env-dir file", &typed.join(&name).display(), cause))?;
        changes.push((name, value));
    }
    Ok(changes)
}

fn read_file(directory: &Path, name: &OsStr) -> Result<Option<OsString>, String> {
    if name.as_bytes().contains(&b'=') {
        return Err("a variable's name holds no \"=\"".to_owned());
    }
    let content = files::read(&directory.join(name)).map_err(words)?;
    Ok(value(&content))
}

/// The first line without blanks at its end; NUL stands for a line break; nothing at all unsets.
fn value(content: &[u8]) -> Option<OsString> {
    if content.is_empty() {
        return None;
    }
    let line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let end = line.iter().rposition(|byte| *byte != b' ' && *byte != b'\t').map_or(0, |last| last + 1);
    let bytes = line.iter().take(end).map(|byte| if *byte == 0 { b'\n' } else { *byte }).collect();
    Some(OsString::from_vec(bytes))
}

/// Applies `changes` to `variables`.
pub(super) fn apply(changes: &[Change], variables: &mut Vec<(OsString, OsString)>) {
    for (name, value) in changes {
        set(variables, name, value.as_deref());
    }
}

/// Sets or unsets one variable.
pub(super) fn set(variables: &mut Vec<(OsString, OsString)>, name: &OsStr, value: Option<&OsStr>) {
    variables.retain(|(known, _)| known != name);
    if let Some(value) = value {
        variables.push((name.to_owned(), value.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_envdir_reads_them() {
        for (content, expected) in [
            (&b"a b \t\nsecond"[..], Some("a b")),
            (b"plain", Some("plain")),
            (b"a\0b\n", Some("a\nb")),
            (b"\n", Some("")),
            (b"  \n", Some("")),
            (b"", None),
        ] {
            assert_eq!(value(content).as_deref(), expected.map(OsStr::new), "{content:?}");
        }
    }

    #[test]
    fn an_empty_file_unsets() {
        let mut variables = vec![("A".into(), "1".into()), ("B".into(), "2".into())];
        apply(&[("A".into(), None), ("B".into(), Some("3".into()))], &mut variables);
        assert_eq!(variables, [("B".into(), "3".into())]);
    }
}
