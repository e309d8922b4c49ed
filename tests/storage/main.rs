//! What every storage driver does. Each case runs on every row of the table of drivers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod adopt;
mod cases;
mod crash;
mod dir;
mod fault;
mod fixture;
#[cfg(target_os = "linux")]
mod namespace;
mod place;
mod pools;
mod snapshots;
mod streams;
mod zfs;

/// One test for each case, which runs it on every driver.
macro_rules! on_every_driver {
    ($($case:path as $name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            crate::fixture::each_driver($case);
        }
    )*};
}

on_every_driver! {
    cases::a_new_dataset as a_new_dataset,
    cases::a_name_that_is_taken as a_name_that_is_taken,
    cases::what_does_not_exist as what_does_not_exist,
    cases::lists as lists,
    cases::names as names,
    cases::records as records,
    cases::owner_and_mode as owner_and_mode,
    cases::destroyed as destroyed,
    cases::renamed as renamed,
    cases::in_projects as in_projects,
    cases::a_snapshot_does_not_change as a_snapshot_does_not_change,
    cases::several_snapshots as several_snapshots,
    cases::names_of_snapshots as names_of_snapshots,
    cases::a_clone_is_whole as a_clone_is_whole,
    cases::a_clone_is_apart as a_clone_is_apart,
    cases::rolled_back as rolled_back,
    cases::usage_grows as usage_grows,
    cases::limits as limits,
    cases::opened_again as opened_again,
    cases::one_name_many_threads as one_name_many_threads,
    cases::many_names_many_threads as many_names_many_threads,
    cases::everything_at_once as everything_at_once,
    snapshots::records as records_of_snapshots,
    snapshots::renamed as renamed_snapshots,
    snapshots::held as held_snapshots,
    snapshots::measured as measured_snapshots,
    snapshots::went_back as went_back_to_snapshots,
    snapshots::went_back_and_went as went_back_to_snapshots_and_destroyed,
    snapshots::sources_go_before_clones as sources_of_clones_of_snapshots,
    streams::full as a_full_stream,
    streams::incremental as incremental_streams,
    streams::chain_after_import as a_chain_of_streams,
    streams::refused as streams_that_do_not_fit,
    streams::cut as cut_streams,
    streams::damaged as damaged_streams,
    streams::destroyed_meanwhile as streams_of_what_is_destroyed,
    streams::failing_sides as streams_whose_other_side_fails,
}
