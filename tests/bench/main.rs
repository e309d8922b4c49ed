//! Side by side with the programs that people use today.

fn main() {}
