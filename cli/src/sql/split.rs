//! Where a statement ends: at a semicolon outside of quotes, dollar quotes and comments.

/// What a piece of SQL is, as far as splitting and recognising declarations need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Blanks and comments.
    Blank,
    /// A key word, a name or a number.
    Word,
    /// A name in double quotes or backticks.
    Name,
    /// A string in single or dollar quotes.
    Text,
    /// One character that ends a statement.
    Semicolon,
    /// Any other character.
    Symbol,
}

/// The piece that begins at byte `at`, and the byte behind it; no end if the rest of it is still to come.
pub fn piece(sql: &str, at: usize) -> (Kind, Option<usize>) {
    let rest = &sql[at..];
    let mut chars = rest.chars();
    let (Some(first), second) = (chars.next(), chars.next()) else {
        return (Kind::Blank, Some(at));
    };
    let behind = |len: Option<usize>| len.map(|len| at + len);
    match (first, second) {
        ('-', Some('-')) => (
            Kind::Blank,
            behind(Some(rest.find('\n').unwrap_or(rest.len()))),
        ),
        ('/', Some('*')) => (Kind::Blank, behind(comment(rest))),
        ('\'', _) => (Kind::Text, behind(quoted(rest, '\'', false))),
        ('e' | 'E', Some('\'')) => (
            Kind::Text,
            behind(quoted(&rest[1..], '\'', true).map(|len| len + 1)),
        ),
        ('"' | '`', _) => (Kind::Name, behind(quoted(rest, first, false))),
        ('$', _) => match dollar_tag(rest) {
            Some(tag) => {
                let body = &rest[tag.len()..];
                let len = body.find(tag).map(|found| 2 * tag.len() + found);
                (Kind::Text, behind(len))
            }
            None => (Kind::Symbol, Some(at + 1)),
        },
        (';', _) => (Kind::Semicolon, Some(at + 1)),
        _ if first.is_whitespace() => {
            let len = rest.len() - rest.trim_start().len();
            (Kind::Blank, Some(at + len))
        }
        _ if is_word(first) => {
            let len = rest
                .find(|c: char| !is_word(c) && c != '$')
                .unwrap_or(rest.len());
            (Kind::Word, Some(at + len))
        }
        _ => (Kind::Symbol, Some(at + first.len_utf8())),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of a quoted text; the quote itself is written twice inside.
fn quoted(text: &str, quote: char, backslashes: bool) -> Option<usize> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && backslashes {
            chars.next();
        } else if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return Some(at + 1);
        }
    }
    None
}

/// The length of a block comment; they nest, as in standard SQL.
fn comment(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// `$$` or `$tag$`; `$1` is a parameter.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text[1..].find('$')? + 1;
    let tag = &text[1..end];
    let fits = !tag.starts_with(|c: char| c.is_ascii_digit()) && tag.chars().all(is_word);
    fits.then_some(&text[..=end])
}

/// A statement without its semicolon.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    /// The line on which it begins, from 1, over all that was pushed.
    pub line: usize,
}

/// Cuts what is pushed into statements.
#[derive(Debug)]
pub struct Splitter {
    /// What belongs to no finished statement yet.
    text: String,
    /// How much of `text` has been looked at; a piece begins here.
    at: usize,
    /// The line on which `text` begins.
    line: usize,
    /// Whether anything but blanks has been seen in `text`.
    begun: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self {
            text: String::new(),
            at: 0,
            line: 1,
            begun: false,
        }
    }
}

impl Splitter {
    /// The statements that end with this piece of text, which must be whole lines or the last piece.
    pub fn push(&mut self, text: &str) -> Vec<Statement> {
        self.text.push_str(text);
        let mut done = Vec::new();
        while self.at < self.text.len() {
            let (kind, end) = piece(&self.text, self.at);
            // Blanks in front belong to no statement, comments do: they may be what an error points at.
            self.begun |= kind != Kind::Blank;
            let Some(end) = end else { break };
            if kind == Kind::Semicolon {
                let rest = self.text.split_off(end);
                let mut sql = std::mem::replace(&mut self.text, rest);
                sql.truncate(self.at);
                self.at = 0;
                self.begun = false;
                done.extend(self.cut(&sql));
            } else {
                self.at = end;
            }
        }
        done
    }

    /// What was pushed behind the last semicolon, if it is more than blanks and comments.
    pub fn finish(&mut self) -> Option<Statement> {
        let begun = self.begun;
        let sql = std::mem::take(&mut self.text);
        self.at = 0;
        self.begun = false;
        let statement = self.cut(&sql);
        statement.filter(|_| begun)
    }

    /// Whether the next line begins a statement.
    pub fn is_between(&self) -> bool {
        !self.begun && self.at == self.text.len()
    }

    /// The line that comes next, from 1.
    pub fn next_line(&self) -> usize {
        self.line + newlines(&self.text)
    }

    fn cut(&mut self, sql: &str) -> Option<Statement> {
        let body = sql.trim_start();
        let line = self.line + newlines(&sql[..sql.len() - body.len()]);
        self.line += newlines(sql);
        let empty = tokens(body).next().is_none();
        (!empty).then(|| Statement {
            sql: body.trim_end().to_owned(),
            line,
        })
    }
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// The pieces of a statement that are no blanks.
pub fn tokens(sql: &str) -> impl Iterator<Item = (Kind, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < sql.len() {
            let start = at;
            let (kind, end) = piece(sql, start);
            at = end.unwrap_or(sql.len());
            if kind != Kind::Blank {
                return Some((kind, &sql[start..at]));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut statements = splitter.push(text);
        statements.extend(splitter.finish());
        statements.into_iter().map(|s| s.sql).collect()
    }

    #[test]
    fn statements_end_at_semicolons() {
        assert_eq!(split("SELECT 1; SELECT 2"), ["SELECT 1", "SELECT 2"]);
        assert_eq!(split(" ;; \n -- nothing\n;"), Vec::<String>::new());
        assert_eq!(split("SELECT 1 -- one; two\n;"), ["SELECT 1 -- one; two"]);
    }

    #[test]
    fn semicolons_in_quotes_and_comments_are_text() {
        for sql in [
            "SELECT 'a;b', 'it''s; fine'",
            r"SELECT E'a\';b'",
            r"SELECT 'a\'",
            "SELECT \"a;\"\"b\"",
            "SELECT `a;b`",
            "SELECT $$a;b$$",
            "SELECT $x$a;$$;b$x$",
            "SELECT /* a; /* b; */ c; */ 1",
            "SELECT 'ä;', 'é' /* ü; */",
        ] {
            assert_eq!(split(&format!("{sql};SELECT 2;")), [sql, "SELECT 2"]);
        }
    }

    #[test]
    fn a_parameter_is_no_dollar_quote() {
        assert_eq!(split("SELECT $1, $2; SELECT a$b$c;").len(), 2);
    }

    #[test]
    fn a_statement_may_come_line_by_line() {
        let mut splitter = Splitter::default();
        assert!(splitter.is_between());
        assert_eq!(splitter.push("-- what follows\n"), []);
        assert!(splitter.is_between());
        assert_eq!(splitter.push("SELECT 'a\n"), []);
        assert!(!splitter.is_between());
        assert_eq!(splitter.push(";b'\n"), []);
        let done = splitter.push("; \n");
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].sql, "-- what follows\nSELECT 'a\n;b'");
        assert_eq!(done[0].line, 1);
        assert_eq!(splitter.push("SELECT 1;\n")[0].line, 5);
        assert!(splitter.is_between());
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn an_open_comment_is_not_between_statements() {
        let mut splitter = Splitter::default();
        splitter.push("/* begins\n");
        assert!(!splitter.is_between());
        splitter.push("ends */\n");
        assert!(splitter.is_between());
    }

    #[test]
    fn an_open_quote_goes_to_the_server_which_knows_what_to_say() {
        assert_eq!(split("SELECT 'a;"), ["SELECT 'a;"]);
    }
}
