//! The layout of docs/DESIGN.md, proved: imports run one way, `unsafe` stands in one module, every picture and command
//! of the README is there.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                // Comments may name what they like.
                let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), code.join("\n")));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The part of the program that a file belongs to.
fn part(path: &Path) -> &str {
    let inside = path.strip_prefix("src").unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
    inside.strip_suffix(".rs").unwrap_or(inside)
}

/// Parts from the bottom to the top: each may use what stands in an earlier row only.
const ORDER: [&[&str]; 7] =
    [&["signals", "error", "records"], &["supervisor"], &["config"], &["cli", "linux"], &["ctl"], &["lib"], &["main"]];

#[test]
fn imports_run_one_way() {
    for (path, code) in sources() {
        let row = ORDER.iter().position(|row| row.contains(&part(&path)));
        let row = row.unwrap_or_else(|| panic!("{} belongs to no part that this test knows", path.display()));
        let not_below = ORDER.iter().skip(row).flat_map(|row| row.iter());
        for name in not_below.filter(|name| **name != part(&path)) {
            for import in [format!("crate::{name}"), format!("panzer::{name}")] {
                assert!(!code.contains(&import), "{} imports {name}", path.display());
            }
        }
    }
}

#[test]
fn the_supervisor_sees_no_system_and_no_clock() {
    for (path, code) in sources().into_iter().filter(|(path, _)| part(path) == "supervisor") {
        for word in ["rustix", "libc", "Instant", "SystemTime", "std::fs", "std::process", "std::net", "std::os"] {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn what_people_type_is_read_without_looking_at_the_system() {
    for (path, code) in sources().into_iter().filter(|(path, _)| part(path) == "cli" || part(path) == "config") {
        for word in ["rustix", "libc", "std::fs", "std::process", "std::os", "std::env::"] {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn what_is_large_in_std_is_left_alone() {
    for (path, code) in sources() {
        for word in [
            "std::fs",
            "time::{Duration, Instant}",
            "time::Instant",
            "SystemTime",
            "thread::sleep",
            "path::absolute",
            "current_dir(",
        ] {
            assert!(!code.contains(word), "{} uses {word}: see docs/DESIGN.md, Size", path.display());
        }
    }
}

#[test]
fn unsafe_stands_in_one_module() {
    for (path, code) in sources() {
        let allowed = path == Path::new("src/linux/sys.rs");
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let found = words.into_iter().any(|word| word == "unsafe");
        assert_eq!(found, allowed, "{}", path.display());
    }
}

#[test]
fn what_the_readme_points_to_is_there() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let targets = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local: Vec<&str> = targets.filter(|target| !target.contains("://") && !target.starts_with('#')).collect();
    assert!(!local.is_empty());
    for target in local {
        let target = target.split('#').next().unwrap();
        assert!(root().join(target).exists(), "README.md points to {target}");
    }
}
