//! What README and docs/ tell people to type is tried: every command line of panzer in a code block is given to panzer
//! with `--check`, every script is there and can be run (`.ci/run` runs them), and every event's name is explained.

mod control;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::panzer::Panzer;
use crate::support::scratch::Scratch;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let markdown = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    markdown.chain([root().join("README.md"), root().join("Dockerfile")]).collect()
}

/// The lines of all code blocks; a Dockerfile is one.
fn code_lines() -> Vec<String> {
    let mut lines = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let mut inside = path.ends_with("Dockerfile");
        for line in text.lines() {
            if line.starts_with("```") {
                inside = !inside;
            } else if inside {
                lines.push(line.to_owned());
            }
        }
    }
    lines
}

/// Everything before the command is as it stands in the document, but for ports, which may be taken here.
fn arguments(words: &[&str]) -> Vec<String> {
    let mut arguments = vec!["--check".to_owned()];
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--" => break,
            option @ ("-l" | "--metrics") => {
                let address = words.next().unwrap().replace("8080", "0").replace("9100", "0");
                arguments.extend([option.to_owned(), address]);
            }
            option => arguments.push(option.to_owned()),
        }
    }
    arguments.extend(["--", "true"].map(str::to_owned));
    arguments
}

#[test]
fn every_panzer_command_line_in_the_documents_is_right() {
    let mut tried = 0;
    for line in code_lines() {
        let typed = line.strip_prefix("$ panzer ").filter(|typed| !typed.starts_with("ctl "));
        let words: Vec<String> = if let Some(typed) = typed {
            let typed = typed.split(" #").next().unwrap();
            typed.split_ascii_whitespace().map(str::to_owned).collect()
        } else if let Some(list) = line.strip_prefix("ENTRYPOINT [").and_then(|rest| rest.strip_suffix(']')) {
            list.split(',').skip(1).map(|word| word.trim().trim_matches('"').to_owned()).collect()
        } else {
            continue;
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = Panzer::new(arguments(&words)).run();
        assert!(output.status.success(), "{line}\n{}", output.stderr);
        tried += 1;
    }
    assert!(tried >= 3, "only {tried} command lines were found");
}

#[test]
fn every_file_of_options_in_the_documents_and_in_deploy_is_right() {
    let page = fs::read_to_string(root().join("docs/vm.md")).unwrap();
    let blocks = page.split("```").skip(1).step_by(2).filter(|block| block.contains("\n-- /")).map(str::to_owned);
    let deployed = fs::read_to_string(root().join("deploy/vm/panzer.conf")).unwrap();
    let scratch = Scratch::new();
    let files: Vec<String> = blocks.chain([deployed]).collect();
    assert_eq!(files.len(), 2, "docs/vm.md has one");
    for text in files {
        let text = text.replace("listen 8080", "listen 0");
        let (options, command) = text.split_once("\n-- ").unwrap();
        // The command as it stands is there in a machine only.
        let path = scratch.write("panzer.conf", &format!("{options}\n-- /bin/sh {command}"));
        let output = Panzer::new(["--config", path.to_str().unwrap(), "--check"]).run();
        assert!(output.status.success(), "{text}\n{}", output.stderr);
        let said = output.stdout;
        assert!(said.contains("/bin/sh") && said.contains("workers: 2"), "{said}");
        // What is typed, and then what a variable says, wins.
        let output =
            Panzer::new(["--config", path.to_str().unwrap(), "--check", "-n", "3"]).env("PANZER_STOP", "INT").run();
        assert!(output.stdout.contains("workers: 3") && output.stdout.contains("INT"), "{}", output.stdout);
    }
}

#[test]
fn every_script_in_the_documents_can_be_run() {
    let mut found = 0;
    for line in code_lines().iter().filter(|line| line.starts_with("scripts/")) {
        let script = root().join(line.split_ascii_whitespace().next().unwrap());
        let mode = fs::metadata(&script).unwrap_or_else(|error| panic!("{line}: {error}")).permissions().mode();
        assert!(mode & 0o111 != 0, "{line} cannot be run");
        found += 1;
    }
    assert!(found >= 2, "the README's two commands are not there");
}

#[test]
fn every_kubectl_line_in_the_documents_names_what_is_there() {
    let mut tried = 0;
    for line in code_lines().iter().filter_map(|line| line.strip_prefix("$ kubectl ")) {
        if let Some(file) = line.strip_prefix("apply -f ") {
            assert!(root().join(file).exists(), "{line}");
        } else {
            let words = line.strip_prefix("exec deploy/hello -- /bin/panzer ").unwrap_or_else(|| panic!("{line}"));
            let output = Panzer::new(words.split(' ')).args(["--control", "/no/such/socket"]).run();
            assert!(output.stderr.starts_with("panzer: cannot ask panzer at /no/such/socket: "), "{line}: {output:?}");
        }
        tried += 1;
    }
    assert!(tried >= 3, "only {tried} lines were found");
}

/// All files of `src`.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(fs::read_to_string(path).unwrap()),
            }
        }
    }
    found
}

/// The texts in quotes.
fn quoted(code: &str) -> impl Iterator<Item = &str> {
    code.split('"').skip(1).step_by(2)
}

#[test]
fn every_events_name_is_explained_and_no_other() {
    let mut used: BTreeSet<String> = BTreeSet::new();
    for code in sources() {
        // What is said in its own place: the first text of the call is the name.
        let calls = code.split(".say").skip(1).filter(|call| call.starts_with(['(', '_']));
        let calls = calls.filter_map(|call| call.split_once('(')?.1.trim_start().strip_prefix("Level::"));
        used.extend(calls.map(|call| quoted(call).next().unwrap().to_owned()));
        // What the supervisor reports has a table of its own.
        let table = code.split_once("pub fn event(").and_then(|(_, rest)| rest.split_once("\n    }\n"));
        used.extend(table.iter().flat_map(|(table, _)| quoted(table)).map(str::to_owned));
    }
    assert!(used.len() > 25 && used.contains("worker_ended") && used.contains("path_not_kept"), "{used:?}");
    let log = fs::read_to_string(root().join("docs/log.md")).unwrap();
    let (_, table) = log.split_once("| event | means |").expect("the table of events");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    let explained: BTreeSet<String> = names.map(str::to_owned).collect();
    assert_eq!(explained, used, "docs/log.md, and what is said");
}
