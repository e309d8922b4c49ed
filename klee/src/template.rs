//! `--format`: the part of Docker's templates that names fields.

use std::str::FromStr;

use kleened_api::ErrorCode;
use serde_json::Value;

use crate::failure::Failure;
use crate::print::{escape, escape_json};

/// A text with places for fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl FromStr for Template {
    type Err = String;

    /// Reads a text with `{{.Field}}`, `{{.Field.Field}}`, `{{json .Field}}` and `{{json .}}`; `\t`
    /// and `\n` stand for a tab and a line end.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after
                .split_once("}}")
                .ok_or_else(|| "'{{' without '}}' in the template".to_owned())?;
            parts.push(Part::Text(unescape(before)));
            parts.push(field(action)?);
            rest = after;
        }
        parts.push(Part::Text(unescape(rest)));
        Ok(Self(parts))
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn field(action: &str) -> Result<Part, String> {
    let bad = || {
        format!(
            "'{{{{{}}}}}' is not understood: write {{{{.Field}}}} or {{{{json .Field}}}}",
            action.escape_default()
        )
    };
    let (json, path) = match *action.split_whitespace().collect::<Vec<_>>() {
        [path] => (false, path),
        ["json", path] => (true, path),
        _ => return Err(bad()),
    };
    let path = path.strip_prefix('.').ok_or_else(bad)?;
    let path: Vec<String> = match path {
        "" => Vec::new(),
        path => path.split('.').map(str::to_owned).collect(),
    };
    if path.iter().any(String::is_empty) { Err(bad()) } else { Ok(Part::Field { path, json }) }
}

impl Template {
    /// The line for an object, with its end. `known` are the fields that objects of this kind have,
    /// also those that are absent where there is nothing to say; empty: those of the object itself.
    /// Texts are escaped, as in tables; JSON is for a terminal.
    pub(crate) fn line(
        &self,
        object: &Value,
        known: &[&str],
        terminal: bool,
    ) -> Result<String, Failure> {
        let mut line = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field { path, json } => match (find(object, path, known)?, json) {
                    (Value::String(text), false) => line.push_str(&escape(text)),
                    (Value::Null, false) => {}
                    (value, _) if terminal => line.push_str(&escape_json(&value.to_string())),
                    (value, _) => line.push_str(&value.to_string()),
                },
            }
        }
        line.push('\n');
        Ok(line)
    }
}

/// The value at a path. An absent field of a known kind, or an absent key below the first level,
/// has no value.
fn find<'a>(object: &'a Value, path: &[String], known: &[&str]) -> Result<&'a Value, Failure> {
    let mut value = object;
    for (depth, name) in path.iter().enumerate() {
        value = match member(value, name) {
            Some(member) => member,
            None if depth > 0 || known.iter().any(|field| same(field, name)) => &Value::Null,
            None => return Err(unknown(object, name, known)),
        };
    }
    Ok(value)
}

fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let Value::Object(members) = value else { return None };
    members
        .get(name)
        .or_else(|| members.iter().find(|(key, _)| same(key, name)).map(|(_, value)| value))
}

/// Whether `ImageName` and `image_name` are the same field.
fn same(key: &str, name: &str) -> bool {
    let letters = |text: &str| text.replace('_', "").to_ascii_lowercase();
    letters(key) == letters(name)
}

fn unknown(object: &Value, name: &str, known: &[&str]) -> Failure {
    let fields = match object {
        Value::Object(members) if known.is_empty() => {
            members.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        }
        _ => known.join(", "),
    };
    Failure::new(ErrorCode::Invalid, format!("there is no field '{name}': known are {fields}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(template: &str, object: &Value) -> Option<String> {
        template.parse::<Template>().unwrap().line(object, &["name", "error"], false).ok()
    }

    #[test]
    fn fields_are_found_in_both_spellings() {
        let object = json!({"name": "v", "image_name": "base", "labels": {"tier": "db"}, "n": 3});
        assert_eq!(line("{{.Name}}: {{ .ImageName }}", &object).unwrap(), "v: base\n");
        assert_eq!(line("{{.labels.tier}}|{{.Labels.other}}|{{.n}}", &object).unwrap(), "db||3\n");
        assert_eq!(
            line(r"{{json .Labels}}\t{{json .name}}", &object).unwrap(),
            "{\"tier\":\"db\"}\t\"v\"\n"
        );
        assert_eq!(line("{{.Error}}", &object).unwrap(), "\n");
        assert_eq!(line("{{json .}}", &json!({"a": 1})).unwrap(), "{\"a\":1}\n");
        assert!(line("{{.Nmae}}", &object).is_none());
    }

    #[test]
    fn a_value_can_not_break_its_line() {
        let object = json!({"name": "a\u{1b}[2J\nb", "labels": {"k": "c\nd"}});
        assert_eq!(line("{{.Name}}", &object).unwrap(), "a\\u{1b}[2J\\u{a}b\n");
        assert_eq!(line("{{.Labels.k}}", &object).unwrap(), "c\\u{a}d\n");
        assert_eq!(line("{{json .Labels.k}}", &object).unwrap(), "\"c\\nd\"\n");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in
            ["{{", "{{.Name", "{{}}", "{{Name}}", "{{.a..b}}", "{{upper .Name}}", "{{range .}}"]
        {
            assert!(bad.parse::<Template>().is_err(), "{bad:?} was accepted");
        }
    }
}
