use crate::fixture::Fixture;
#[allow(dead_code)]
fn x(_: Fixture) {}
