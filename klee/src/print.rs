//! What goes to standard output: tables, JSON, templates, lines; and the escaping of names that may
//! hold anything.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use kleened_api::{ErrorCode, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tabled::builder::Builder;
use tabled::settings::Style;
use tabled::settings::style::HorizontalLine;

use crate::cli::ListOutput;
use crate::failure::Failure;
use crate::template::Template;
use crate::terminal;

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// The daemon's answer, keys in alphabetical order.
    Json,
}

/// The look of tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Theme {
    /// Blanks between columns, a line below the header.
    #[default]
    Fancy,
    /// ASCII.
    Simple,
}

/// An object that lists show.
pub(crate) trait Listed: DeserializeOwned {
    /// The table's columns.
    const COLUMNS: &'static [&'static str];
    /// The fields that a template can name.
    const FIELDS: &'static [&'static str];

    /// What `--quiet` shows.
    fn key(&self) -> &str;

    /// The lines of the table.
    fn rows(&self, now: Timestamp) -> Vec<Vec<String>>;
}

/// Prints a list that the daemon sent as JSON, in the form that was asked for.
pub(crate) fn list<T: Listed>(
    body: &[u8],
    keep: impl Fn(&T) -> bool,
    output: &ListOutput,
    theme: Theme,
) -> Result<(), Failure> {
    if output.output.output == OutputFormat::Json || output.format.is_some() {
        let mut values: Vec<Value> = parse(body)?;
        values.retain(|value| T::deserialize(value).is_ok_and(|item| keep(&item)));
        return match &output.format {
            None => sorted_json(&values),
            Some(template) => {
                let terminal = io::stdout().is_terminal();
                let lines: Result<String, Failure> =
                    values.iter().map(|value| template.line(value, T::FIELDS, terminal)).collect();
                out(&lines?)
            }
        };
    }
    let mut items: Vec<T> = parse(body)?;
    items.retain(keep);
    if output.quiet {
        return lines(items.iter().map(T::key));
    }
    let now = Timestamp::now();
    out(&table(T::COLUMNS, items.iter().flat_map(|item| item.rows(now)), theme))
}

/// Prints an object that the daemon sent as JSON.
pub(crate) fn inspect(body: &[u8], format: Option<&Template>) -> Result<(), Failure> {
    let value: Value = parse(body)?;
    match format {
        None => sorted_json(&value),
        Some(template) => out(&template.line(&value, &[], io::stdout().is_terminal())?),
    }
}

/// Prints the answer of a verb: as JSON, or `line`.
pub(crate) fn reply(
    value: &impl Serialize,
    line: &str,
    output: OutputFormat,
) -> Result<(), Failure> {
    match output {
        OutputFormat::Json => json(value),
        OutputFormat::Table => lines([line]),
    }
}

/// Prints a value as JSON, indented by two, keys in alphabetical order.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    // The fields of a struct are sorted only as members of an object.
    sorted_json(&serde_json::to_value(value).map_err(|error| no_json(&error))?)
}

/// Prints objects as JSON.
fn sorted_json(value: &(impl Serialize + ?Sized)) -> Result<(), Failure> {
    let mut json = serde_json::to_string_pretty(value).map_err(|error| no_json(&error))?;
    json.push('\n');
    if io::stdout().is_terminal() { out(&escape_json(&json)) } else { out(&json) }
}

fn no_json(error: &serde_json::Error) -> Failure {
    Failure::local("cannot write JSON", error)
}

/// Prints each line.
pub(crate) fn lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<(), Failure> {
    let terminal = io::stdout().is_terminal();
    let mut text = String::new();
    for line in lines {
        text.push_str(&if terminal { escape(line) } else { Cow::Borrowed(line) });
        text.push('\n');
    }
    out(&text)
}

/// Prints as it is. A reader that went away has seen what it wanted: what the command has to do
/// still goes on.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    match terminal::output(io::stdout()).and_then(|mut to| to.write_all(text.as_bytes())) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::local("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// A line on standard error. Where it can't be written there is nowhere to say so.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The value that the daemon sent.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(ErrorCode::Internal, "cannot read the daemon's answer").caused_by(&error)
    })
}

/// A table without blanks at the ends of its lines. What could break a line is escaped.
fn table(
    columns: &'static [&'static str],
    rows: impl Iterator<Item = Vec<String>>,
    theme: Theme,
) -> String {
    let mut builder = Builder::with_capacity(rows.size_hint().0 + 1, columns.len());
    builder.push_record(columns.iter().copied());
    for row in rows {
        builder.push_record(row.into_iter().map(|cell| match escape(&cell) {
            Cow::Borrowed(_) => cell,
            Cow::Owned(escaped) => escaped,
        }));
    }
    let mut table = builder.build();
    match theme {
        Theme::Fancy => table
            .with(Style::blank().horizontals([(1, HorizontalLine::new('─').intersection('─'))])),
        Theme::Simple => table.with(Style::psql()),
    };
    let drawn = table.to_string();
    let mut text = String::with_capacity(drawn.len() + 1);
    for line in drawn.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in Kleene's words.
pub(crate) fn age(moment: Timestamp, now: Timestamp) -> String {
    let seconds = (now.date_time() - moment.date_time()).whole_seconds();
    let minutes = seconds / 60;
    let hours = (minutes + 30) / 60;
    let span = match (seconds, minutes, hours) {
        (..1, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, ..48) => format!("{hours} hours"),
        (_, _, ..336) => format!("{} days", hours / 24),
        (_, _, ..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    };
    format!("{span} ago")
}

/// The text, or as much of it as fits into `width` columns, with a mark that there is more.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Whether a terminal would act on the character, or show other text than there is.
fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// The text with everything escaped that a terminal would act on.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    replace_unsafe(text, |char, escaped| escaped.extend(char.escape_unicode()))
}

/// As [`escape`] for JSON, which stays JSON of the same value.
pub(crate) fn escape_json(json: &str) -> Cow<'_, str> {
    replace_unsafe(json, |char, escaped| match char {
        '\n' => escaped.push('\n'),
        char => {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    })
}

fn replace_unsafe(text: &str, replace: impl Fn(char, &mut String)) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() * 2);
    for char in text.chars() {
        if is_unsafe(char) { replace(char, &mut escaped) } else { escaped.push(char) }
    }
    Cow::Owned(escaped)
}

/// Checks that the fields which templates know are those that a full object has.
#[cfg(test)]
pub(crate) fn assert_fields<T: Listed + Serialize>(full: &T) {
    let Value::Object(members) = serde_json::to_value(full).unwrap() else { panic!("no object") };
    let mut known = T::FIELDS.to_vec();
    known.sort_unstable();
    assert_eq!(members.keys().collect::<Vec<_>>(), known);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_are_kleenes() {
        let now = Timestamp::now();
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (13 * 86400, "13 days"),
            (14 * 86400, "2 weeks"),
            (59 * 86400, "8 weeks"),
            (60 * 86400, "2 months"),
            (729 * 86400, "24 months"),
            (730 * 86400, "2 years"),
        ] {
            let moment = Timestamp::from(now.date_time() - Duration::from_secs(seconds));
            assert_eq!(age(moment, now), format!("{expected} ago"), "{seconds} s");
        }
    }

    #[test]
    fn a_clock_that_went_back_is_no_error() {
        let now = Timestamp::now();
        let later = Timestamp::from(now.date_time() + Duration::from_secs(60));
        assert_eq!(age(later, now), "Less than a second ago");
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_gets_through() {
        assert_eq!(escape("my-vol æ"), "my-vol æ");
        assert_eq!(escape("a\u{1b}[2J\n\u{9b}1m"), r"a\u{1b}[2J\u{a}\u{9b}1m");
        assert_eq!(escape("txt.\u{202e}exe\u{200b}"), r"txt.\u{202e}exe\u{200b}");
    }

    #[test]
    fn escaped_json_is_the_same_value() {
        let value = Value::from("a\u{7f}\u{9b}\u{202e}\u{e0041}\n");
        let json = serde_json::to_string(&value).unwrap();
        let escaped = escape_json(&json);
        assert!(escaped.is_ascii(), "{escaped}");
        assert_eq!(serde_json::from_str::<Value>(&escaped).unwrap(), value);
    }

    #[test]
    fn a_cell_can_not_break_its_line() {
        let rows = [vec!["a\nb".to_owned(), "x".to_owned()]];
        let text = table(&["A", "B"], rows.into_iter(), Theme::Simple);
        assert_eq!(text, " A       | B\n---------+---\n a\\u{a}b | x\n");
    }
}
