//! What README and docs/ tell people to type is tried: every command line of panzer in a code block is given to panzer
//! with `--check`, every script is there and can be run (`.ci/run` runs them).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::panzer::Panzer;

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
            "-l" => arguments.extend(["-l".to_owned(), words.next().unwrap().replace("8080", "0")]),
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
        let words: Vec<String> = if let Some(typed) = line.strip_prefix("$ panzer ") {
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
