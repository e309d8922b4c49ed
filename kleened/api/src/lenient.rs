//! Reading of what Kleene's client sends although it is not quite the type.

use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum BoolOrText {
    Bool(bool),
    Text(Text),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Text {
    True,
    False,
}

/// A boolean, or the text `"true"` or `"false"`.
pub(crate) fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match BoolOrText::deserialize(deserializer) {
        Ok(BoolOrText::Bool(value)) => Ok(value),
        Ok(BoolOrText::Text(text)) => Ok(matches!(text, Text::True)),
        Err(_) => Err(serde::de::Error::custom("Invalid boolean")),
    }
}

/// As [`boolean`], where the field may be `null`.
pub(crate) fn optional_boolean<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    struct Lenient(#[serde(deserialize_with = "boolean")] bool);
    Ok(Option::<Lenient>::deserialize(deserializer)?.map(|Lenient(value)| value))
}

/// A list, where `null` means an empty one.
pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
