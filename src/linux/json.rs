//! Writes JSON by layouts. Must never write a number that is not a plain decimal.

use std::fmt::Write;
use std::time::Duration;

use crate::records::cut;

/// Fills in layouts: texts with a `#` in the place of each value.
#[derive(Default)]
pub(super) struct Form {
    out: String,
    /// What is still to be written of the layout.
    layout: &'static str,
}

impl Form {
    /// Goes on with this layout after the last value of the one before.
    #[inline(never)]
    pub(super) fn then(&mut self, layout: &'static str) {
        self.advance();
        self.layout = layout;
    }

    /// As [`Form::then`], with a comma unless a list begins with it.
    pub(super) fn element(&mut self, layout: &'static str) {
        self.then(layout);
        if !self.out.ends_with("[\n") {
            self.out.push(',');
        }
    }

    /// Writes what stands before the next value.
    #[inline(never)]
    fn advance(&mut self) {
        let (before, after) = cut(self.layout, b'#').unwrap_or((self.layout, ""));
        self.out.push_str(before);
        self.layout = after;
    }

    /// A text in quotes, with escapes for what JSON does not let stand; or null.
    #[inline(never)]
    pub(super) fn text(&mut self, value: Option<&str>) {
        let Some(text) = value else { return self.number(None) };
        self.advance();
        self.out.push('"');
        for c in text.chars() {
            if c < ' ' {
                let _ = write!(self.out, "\\u{:04x}", u32::from(c));
                continue;
            }
            if matches!(c, '"' | '\\') {
                self.out.push('\\');
            }
            self.out.push(c);
        }
        self.out.push('"');
    }

    /// A number, or null.
    #[inline(never)]
    pub(super) fn number(&mut self, value: Option<u64>) {
        self.advance();
        let _ = match value {
            Some(number) => write!(self.out, "{number}"),
            None => self.out.write_str("null"),
        };
    }

    /// A time in seconds, or null.
    #[inline(never)]
    pub(super) fn seconds(&mut self, value: Option<Duration>) {
        self.number(value.map(|time| time.as_secs()));
        if let Some(time) = value {
            let _ = write!(self.out, ".{:03}", time.subsec_millis());
        }
    }

    /// All that was written, and the end of the layout.
    pub(super) fn finish(mut self) -> String {
        self.advance();
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_filled_in_from_its_start() {
        let mut form = Form::default();
        form.then(r##"{"a":#,"n":#"##);
        form.text(Some("x\n\"\\\u{1b}é#"));
        form.number(Some(7));
        form.then(r##","s":#,"none":#,"no number":#,"list":["##);
        form.seconds(Some(Duration::from_millis(61_005)));
        form.text(None);
        form.number(None);
        form.then("\n");
        form.element("#");
        form.number(Some(1));
        form.element("#");
        form.seconds(None);
        form.then("]}");
        let expected = r#"{"a":"x\u000a\"\\\u001bé#","n":7,"s":61.005,"none":null,"no number":null,"list":["#;
        assert_eq!(form.finish(), format!("{expected}\n1,null]}}"));
    }
}
