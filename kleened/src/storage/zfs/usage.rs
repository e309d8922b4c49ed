//! How much space datasets take: properties, one call of the kernel for each dataset.
//!
//! `statfs(2)` of a mounted dataset costs a fiftieth of that, but Linux's ZFS rounds there to the dataset's
//! recordsize, and it says nothing of snapshots and compression on any host. So what was read of an area is
//! kept, and shown again where the pool has written nothing since.

use std::sync::PoisonError;

use kleened_sys::zfs::{Groups, Mark, Properties, pool_of};

use super::super::{Area, DatasetPath, Error, Result, Usage};
use super::Zfs;
use super::line::LINE;
use super::threads::on_threads;

/// The properties that say how much space a dataset takes.
const MEASURES: &[&str] =
    &["used", "referenced", "available", "usedbysnapshots", "refquota", "compressratio", LINE];

/// What the datasets of an area took when the pool had written all before the mark.
#[derive(Debug)]
pub(super) struct Measured {
    area: Area,
    mark: Mark,
    usages: Vec<(DatasetPath, Usage)>,
}

impl Zfs {
    pub(super) fn measure(&self, path: &DatasetPath) -> Result<Usage> {
        let properties = self.zfs.properties(&self.name(path)?, MEASURES);
        let properties = properties.map_err(|error| self.failed("measure", path, error))?;
        let mut usage = usage(&properties);
        if let Some(line) = properties.own_text(LINE) {
            // All that they have is snapshots, as far as people see.
            let aside = self.usage_of_line(line)?;
            usage.used += aside;
            usage.snapshots += aside;
        }
        Ok(usage)
    }

    pub(super) fn measure_all(&self, area: Area) -> Result<Vec<(DatasetPath, Usage)>> {
        // Where it is not told, everything is read each time.
        let groups = Groups::of(pool_of(&self.root)).unwrap_or_default();
        let lock = || self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*lock()
            && known.area == area
            && groups.quiet_since(known.mark)
        {
            return Ok(known.usages.clone());
        }
        let paths = self.children(area)?;
        let all = on_threads(&paths, |path| self.measure(path));
        let mut usages = Vec::with_capacity(paths.len());
        for (path, usage) in paths.into_iter().zip(all) {
            match usage {
                Ok(usage) => usages.push((path, usage)),
                // Destroyed meanwhile.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        *lock() = groups.settled().map(|mark| Measured { area, mark, usages: usages.clone() });
        Ok(usages)
    }
}

fn usage(properties: &Properties) -> Usage {
    let number = |name: &str| properties.number(name);
    Usage {
        used: number("used").unwrap_or_default(),
        referenced: number("referenced").unwrap_or_default(),
        available: number("available").unwrap_or_default(),
        snapshots: number("usedbysnapshots").unwrap_or_default(),
        size: number("refquota").filter(|bytes| *bytes > 0),
        compress_ratio: number("compressratio").and_then(|ratio| ratio.try_into().ok()),
    }
}
