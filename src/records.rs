//! Reads what panzer writes about itself: the status document, and the lines of a reload's progress.
//!
//! They are JSON, laid out so that each record stands on a line of its own and is flat. Pure: text in, fields out. Must
//! never panic, whatever the text is: what is no record is passed over.

/// The records of a document, each with the name of the section that it stands in.
#[must_use]
pub fn records(document: &str) -> Records<'_> {
    Records { section: "", rest: document }
}

/// See [`records`].
#[derive(Clone)]
pub struct Records<'a> {
    section: &'a str,
    rest: &'a str,
}

impl<'a> Iterator for Records<'a> {
    type Item = (&'a str, Record<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let (line, rest) = cut(self.rest, b'\n').unwrap_or((self.rest, ""));
            self.rest = rest;
            if line.ends_with('}') {
                let line = line.strip_prefix(',').unwrap_or(line);
                if line.starts_with('{') {
                    return Some((self.section, Record(line)));
                }
            } else if let Some((_, name)) = cut(line, b'"') {
                self.section = cut(name, b'"').unwrap_or_default().0;
            }
        }
        None
    }
}

/// A record: one line.
#[derive(Clone, Copy)]
pub struct Record<'a>(&'a str);

impl<'a> Record<'a> {
    /// What it holds, in its order; it ends where the line is not as it should be.
    #[must_use]
    pub fn fields(self) -> Fields<'a> {
        Fields(self.0)
    }

    /// The field's value, still escaped; `None`: it is null, or not there.
    #[must_use]
    pub fn get(self, name: &str) -> Option<&'a str> {
        let (_, value) = self.fields().find(|(known, _)| *known == name)?;
        match value {
            Value::Text(text) | Value::Number(text) => Some(text),
            Value::Null => None,
        }
    }

    /// A number in thousandths; `None`: it is none.
    #[must_use]
    pub fn thousandths(self, name: &str) -> Option<u64> {
        thousandths(self.get(name)?)
    }
}

/// A field's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    /// A string, still escaped: see [`unescape`].
    Text(&'a str),
    /// A number, as it was written. Nobody has looked whether it is one.
    Number(&'a str),
    /// There is none.
    Null,
}

/// The fields of a record, name and value each.
pub struct Fields<'a>(&'a str);

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a str, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        // What comes before it is a bracket or a comma, and its quote.
        let (name, rest) = cut(self.0.get(2..)?, b'"')?;
        let rest = rest.strip_prefix(':')?;
        let (value, rest) = if let Some(text) = rest.strip_prefix('"') {
            let (text, rest) = text.split_at_checked(end_of_string(text)?)?;
            (Value::Text(text), rest.get(1..)?)
        } else {
            let end = rest.bytes().position(|byte| byte == b',' || byte == b'}')?;
            let (number, rest) = rest.split_at_checked(end)?;
            (if number == "null" { Value::Null } else { Value::Number(number) }, rest)
        };
        self.0 = rest;
        Some((name, value))
    }
}

/// What comes before the first such byte, which is ASCII, and what after it.
#[must_use]
pub fn cut(text: &str, at: u8) -> Option<(&str, &str)> {
    let (before, after) = text.split_at_checked(text.bytes().position(|byte| byte == at)?)?;
    Some((before, after.get(1..)?))
}

/// Takes the next column of a row of text, which `|` separates.
pub fn column<'a>(rest: &mut &'a str) -> &'a str {
    let (column, after) = cut(rest, b'|').unwrap_or((rest, ""));
    *rest = after;
    column
}

/// Where the string's closing quote stands.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// A decimal number in thousandths, what is finer cut off; `None`: it is none, or too large.
#[must_use]
pub fn thousandths(number: &str) -> Option<u64> {
    let (whole, decimals) = cut(number, b'.').unwrap_or((number, ""));
    let mut value = whole.parse::<u64>().ok()?;
    let mut decimals = decimals.bytes();
    for _ in 0..3 {
        let digit = decimals.next().unwrap_or(b'0').wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(digit.into())?;
    }
    Some(value)
}

/// The text that a JSON string stands for. What is escaped wrongly becomes U+FFFD, and so does half a character: panzer
/// writes none as two escapes.
#[must_use]
pub fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(mut c) = chars.next() {
        if c == '\\' {
            c = match chars.next().unwrap_or(char::REPLACEMENT_CHARACTER) {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'u' => {
                    let mut code = 0;
                    for _ in 0..4 {
                        let digit = chars.next().and_then(|digit| digit.to_digit(16));
                        code = code << 4 | digit.unwrap_or(0xff_ffff);
                    }
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                other => other,
            };
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "{\"panzer\":\n{\"version\":\"0.1.0\",\"pid\":7}\n,\"listeners\":[\n],\"workers\":[\n\
        {\"slot\":0,\"pid\":31}\n,{\"slot\":1,\"pid\":null,\"status\":\"a \\\"}\\\\\"}\n],\"restarts\":\n{\"exit\":0}\n]}\n";

    #[test]
    fn every_record_comes_with_its_section() {
        let found: Vec<_> = records(DOCUMENT).map(|(section, record)| (section, record.fields().count())).collect();
        assert_eq!(found, [("panzer", 2), ("workers", 2), ("workers", 3), ("restarts", 1)]);
        let (_, second) = records(DOCUMENT).nth(2).unwrap();
        let fields: Vec<_> = second.fields().collect();
        let status = Value::Text("a \\\"}\\\\");
        assert_eq!(fields, [("slot", Value::Number("1")), ("pid", Value::Null), ("status", status)]);
        assert_eq!((second.get("slot"), second.get("pid"), second.get("gone")), (Some("1"), None, None));
    }

    #[test]
    fn text_is_what_its_escapes_stand_for() {
        for (escaped, text) in [
            ("plain é", "plain é"),
            (r#"\"\\\/\n\t\r"#, "\"\\/\n\t\r"),
            (r"\u0041\u00e9\u000a", "Aé\n"),
            (r"\b\f", "\u{8}\u{c}"),
            (r"\ud83dx", "\u{fffd}x"),
            (r"\u12", "\u{fffd}"),
            (r"\uzzzz", "\u{fffd}"),
            ("\\", "\u{fffd}"),
        ] {
            assert_eq!(unescape(escaped), text, "{escaped}");
        }
    }

    #[test]
    fn decimals_are_thousandths() {
        for (text, value) in [
            ("93.120", Some(93_120)),
            ("0.5", Some(500)),
            ("7", Some(7000)),
            ("1.23456", Some(1234)),
            ("", None),
            ("-1", None),
            ("1.x", None),
            ("99999999999999999999", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(thousandths(text), value, "{text}");
        }
    }

    #[test]
    fn what_is_cut_or_changed_anywhere_is_read_without_harm() {
        let mut read = 0;
        let mut look = |text: &str| {
            for (_, record) in records(text) {
                for (_, value) in record.fields() {
                    if let Value::Text(text) = value {
                        read += unescape(text).len() + 1;
                    }
                }
            }
        };
        for end in 0..DOCUMENT.len() {
            let (start, rest) = DOCUMENT.split_at(end);
            look(start);
            for byte in ['"', '{', '}', '\\', ',', ':', '\n', '\u{0}', 'é'] {
                look(&format!("{start}{byte}{}", rest.get(1..).unwrap()));
            }
        }
        assert!(read > 0);
    }
}
