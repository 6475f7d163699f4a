//! Writes flat JSON records. Must never write a number that is not a plain decimal.

use std::fmt::Write;
use std::time::Duration;

/// Appends a text in quotes, with escapes for what JSON does not let stand.
fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// One record.
pub(super) struct Record<'a> {
    out: &'a mut String,
    separator: char,
}

impl<'a> Record<'a> {
    /// Begins a record at the end of `out`.
    pub(super) fn begin(out: &'a mut String) -> Self {
        Self { out, separator: '{' }
    }

    fn name(&mut self, name: &str) -> &mut String {
        self.out.push(self.separator);
        self.separator = ',';
        push_text(self.out, name);
        self.out.push(':');
        self.out
    }

    /// A field with a text, or null.
    pub(super) fn text(&mut self, name: &str, value: Option<&str>) {
        let out = self.name(name);
        match value {
            Some(text) => push_text(out, text),
            None => out.push_str("null"),
        }
    }

    /// A field with a number, or null.
    pub(super) fn number(&mut self, name: &str, value: Option<u64>) {
        let out = self.name(name);
        let _ = match value {
            Some(number) => write!(out, "{number}"),
            None => out.write_str("null"),
        };
    }

    /// A field with a time in seconds, or null.
    pub(super) fn seconds(&mut self, name: &str, value: Option<Duration>) {
        let out = self.name(name);
        let _ = match value {
            Some(time) => write!(out, "{}.{:03}", time.as_secs(), time.subsec_millis()),
            None => out.write_str("null"),
        };
    }

    /// Ends the record.
    pub(super) fn end(self) {
        self.out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_of_json() {
        let mut out = String::new();
        let mut record = Record::begin(&mut out);
        record.text("a\"b", Some("x\n\\\u{1b}é"));
        record.number("n", Some(7));
        record.seconds("s", Some(Duration::from_millis(61_005)));
        record.text("none", None);
        record.number("no number", None);
        record.end();
        let expected = r#"{"a\"b":"x\u000a\\\u001bé","n":7,"s":61.005,"none":null,"no number":null}"#;
        assert_eq!(out, expected);
    }
}
