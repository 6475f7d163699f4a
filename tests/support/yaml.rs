//! A strict reader of the little YAML that `deploy/` is written in: maps and lists by indentation, lists of words in brackets,
//! words with and without quotes, comments. Whatever else there is in YAML it refuses.

use super::json::Json;

/// Reads a document.
#[track_caller]
pub(crate) fn parse(text: &str) -> Json {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for line in text.lines() {
        let content = line.split(" #").next().unwrap_or_default().trim_end();
        let inside = content.trim_start();
        if !inside.is_empty() && !inside.starts_with('#') {
            assert!(!inside.contains(['\t', '&', '*', '|', '>', '{', '\'']), "more YAML than this reads: {line}");
            lines.push((content.len() - inside.len(), inside.to_string()));
        }
    }
    lines.reverse();
    let value = block(&mut lines, 0);
    assert!(lines.is_empty(), "more than one value: {lines:?}");
    value
}

/// The value whose lines begin with so many blanks; the last line is the next one.
#[track_caller]
fn block(lines: &mut Vec<(usize, String)>, indent: usize) -> Json {
    let (mut items, mut fields) = (Vec::new(), Vec::new());
    while let Some((at, line)) = lines.pop_if(|(at, _)| *at >= indent) {
        assert_eq!(at, indent, "an indentation that means nothing: {line}");
        if let Some(item) = line.strip_prefix("- ") {
            if item.contains(": ") || item.ends_with(':') {
                lines.push((indent + 2, item.to_string()));
                items.push(block(lines, indent + 2));
            } else {
                items.push(word(item));
            }
            continue;
        }
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line}"));
        assert!(!fields.iter().any(|(known, _)| known == name), "{name} is there twice");
        let value = match value.trim_start() {
            "" => block(lines, lines.last().map_or(0, |(next, _)| *next).max(indent + 1)),
            value => flow(value),
        };
        fields.push((name.to_string(), value));
    }
    assert!(items.is_empty() != fields.is_empty(), "neither a map nor a list: {items:?} {fields:?}");
    if fields.is_empty() { Json::List(items) } else { Json::Object(fields) }
}

/// A value behind a colon.
#[track_caller]
fn flow(text: &str) -> Json {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(list) => Json::List(list.split(", ").map(word).collect()),
        None => word(text),
    }
}

#[track_caller]
fn word(text: &str) -> Json {
    if let Some(quoted) = text.strip_prefix('"') {
        let inside = quoted.strip_suffix('"').filter(|inside| !inside.contains(['"', '\\']));
        return Json::Text(inside.unwrap_or_else(|| panic!("more YAML than this reads: {text}")).to_string());
    }
    match text {
        "true" | "false" => Json::Bool(text == "true"),
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => Json::Number(text.to_string()),
        _ => Json::Text(text.to_string()),
    }
}

#[test]
fn maps_lists_and_words_are_read() {
    let text = "# c\na:\n  b: [x, \"1\"]  # c\n  c:\n    - d: 1\n      e: true\n    - d: 2\n    - 0.5s\nf: g:h\n";
    let json = "{\"a\":{\"b\":[\"x\",\"1\"],\"c\":[{\"d\":1,\"e\":true},{\"d\":2},\"0.5s\"]},\"f\":\"g:h\"}";
    assert_eq!(parse(text), Json::parse(json));
}
