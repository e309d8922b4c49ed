//! What others changed of what a dataset was given.

use std::collections::BTreeMap;

use kleened_sys::zfs::PropertyValue;

use super::super::{DatasetPath, DatasetSpec, Result};
use super::Zfs;

impl Zfs {
    /// The properties that the spec has and that are not so now, with what they are.
    pub(super) fn differing(
        &self,
        path: &DatasetPath,
        spec: &DatasetSpec,
    ) -> Result<BTreeMap<String, String>> {
        let limits = [("refquota", spec.size), ("refreservation", spec.reserve)];
        let limits = limits.into_iter().filter_map(|(name, wanted)| wanted.map(|_| name));
        let names: Vec<&str> = spec.properties.keys().map(String::as_str).chain(limits).collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let wanted = self.properties(spec)?;
        let found = self.zfs.properties(&self.name(path)?, &names);
        let found = found.map_err(|error| self.failed("read", path, error))?;
        let differs = |name: &&str| {
            (found.number(name), found.text(name)) != (wanted.number(name), wanted.text(name))
        };
        let now = |name: &str| match found.get(name).map(|property| &property.value) {
            Some(PropertyValue::Text(text)) => text.clone(),
            Some(PropertyValue::Number(number)) => {
                self.zfs.word(name, *number).unwrap_or_else(|| number.to_string())
            }
            // Nobody has set it.
            Some(PropertyValue::Other) | None => "default".to_owned(),
        };
        Ok(names.into_iter().filter(differs).map(|name| (name.to_owned(), now(name))).collect())
    }
}
