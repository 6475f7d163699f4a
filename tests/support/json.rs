//! A strict reader of JSON (RFC 8259), for what panzer writes.

/// A value. A number stays as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Json>),
    /// The fields in the order in which they were written.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a whole document.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Json {
        Json::try_parse(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The same, with what is wrong and where.
    pub(crate) fn try_parse(text: &str) -> Result<Json, String> {
        let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
        let value = reader.value()?;
        reader.blanks();
        if reader.at == text.len() { Ok(value) } else { reader.wrong("more than one value") }
    }

    /// The field of an object.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> &Json {
        let Json::Object(fields) = self else { panic!("no object: {self:?}") };
        let found = fields.iter().find(|(known, _)| known == name);
        &found.unwrap_or_else(|| panic!("no {name} in {self:?}")).1
    }

    /// The names of an object's fields, in order.
    #[track_caller]
    pub(crate) fn names(&self) -> Vec<&str> {
        let Json::Object(fields) = self else { panic!("no object: {self:?}") };
        fields.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[track_caller]
    pub(crate) fn list(&self) -> &[Json] {
        let Json::List(values) = self else { panic!("no list: {self:?}") };
        values
    }

    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        let Json::Text(text) = self else { panic!("no string: {self:?}") };
        text
    }

    /// A whole number.
    #[track_caller]
    pub(crate) fn number(&self) -> u64 {
        let Json::Number(number) = self else { panic!("no number: {self:?}") };
        number.parse().unwrap_or_else(|_| panic!("no whole number: {number}"))
    }

    /// A number with a fraction.
    #[track_caller]
    pub(crate) fn decimal(&self) -> f64 {
        let Json::Number(number) = self else { panic!("no number: {self:?}") };
        number.parse().unwrap_or_else(|_| panic!("no number: {number}"))
    }

    pub(crate) fn is_null(&self) -> bool {
        *self == Json::Null
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("{what} at byte {}", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json, String> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return self.wrong("no value");
        }
        self.at += word.len();
        Ok(value)
    }

    fn value(&mut self) -> Result<Json, String> {
        self.blanks();
        match self.peek() {
            Some(b'{') => self.object(),
            Some(b'[') => self.all_in_list(),
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            _ => self.number(),
        }
    }

    fn object(&mut self) -> Result<Json, String> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        self.at += 1;
        self.blanks();
        if self.take(b'}') {
            return Ok(Json::Object(fields));
        }
        loop {
            self.blanks();
            let name = self.string()?;
            if fields.iter().any(|(known, _)| *known == name) {
                return self.wrong("a name for the second time");
            }
            self.blanks();
            if !self.take(b':') {
                return self.wrong("no colon");
            }
            fields.push((name, self.value()?));
            self.blanks();
            if self.take(b'}') {
                return Ok(Json::Object(fields));
            }
            if !self.take(b',') {
                return self.wrong("no comma");
            }
        }
    }

    fn all_in_list(&mut self) -> Result<Json, String> {
        let mut values = Vec::new();
        self.at += 1;
        self.blanks();
        if self.take(b']') {
            return Ok(Json::List(values));
        }
        loop {
            values.push(self.value()?);
            self.blanks();
            if self.take(b']') {
                return Ok(Json::List(values));
            }
            if !self.take(b',') {
                return self.wrong("no comma");
            }
        }
    }

    fn string(&mut self) -> Result<String, String> {
        if !self.take(b'"') {
            return self.wrong("no string");
        }
        let mut text = Vec::new();
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    let escaped = self.escape()?;
                    text.extend(escaped.to_string().bytes());
                    continue;
                }
                None | Some(0..=31) => return self.wrong("a control character or the end"),
                Some(byte) => text.push(byte),
            }
            self.at += 1;
        }
        self.at += 1;
        String::from_utf8(text).map_err(|error| error.to_string())
    }

    fn escape(&mut self) -> Result<char, String> {
        let Some(letter) = self.bytes.get(self.at + 1) else { return self.wrong("half an escape") };
        self.at += 2;
        Ok(match letter {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'"' | b'\\' | b'/' => char::from(*letter),
            b'u' => {
                let digits = self.bytes.get(self.at..self.at + 4).and_then(|four| std::str::from_utf8(four).ok());
                let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
                let Some(found) = code else { return self.wrong("no character") };
                self.at += 4;
                found
            }
            _ => return self.wrong("no escape"),
        })
    }

    fn number(&mut self) -> Result<Json, String> {
        let begin = self.at;
        self.take(b'-');
        if self.take(b'0') && self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return self.wrong("a zero in front of a number");
        }
        self.digits();
        if self.take(b'.') && self.digits() == 0 {
            return self.wrong("no digits behind the point");
        }
        // Exponents are JSON and not what panzer writes.
        let text = String::from_utf8_lossy(&self.bytes[begin..self.at]).into_owned();
        let is_one = text.trim_start_matches('-').starts_with(|first: char| first.is_ascii_digit());
        if is_one { Ok(Json::Number(text)) } else { self.wrong("no value") }
    }

    fn digits(&mut self) -> usize {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - begin
    }
}

#[test]
fn json_is_read_strictly() {
    let read = |text: &str| Json::try_parse(text).ok();
    assert_eq!(
        read(" {\"a\":[1.50,null,true],\n\"b\":\"\\u00e9\\n\\\"\"} "),
        Some(Json::Object(vec![
            ("a".to_string(), Json::List(vec![Json::Number("1.50".to_string()), Json::Null, Json::Bool(true)])),
            ("b".to_string(), Json::Text("é\n\"".to_string())),
        ]))
    );
    for wrong in
        ["", "{", "{}x", "[1,]", "{\"a\":1,\"a\":2}", "\"\n\"", "01", "1.", "-", "1e3", "\"\\x\"", "nul", "{a:1}", "+1"]
    {
        assert_eq!(read(wrong), None, "{wrong}");
    }
}
