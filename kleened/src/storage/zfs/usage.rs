//! How much space datasets take: properties, one call of the kernel for each dataset.
//!
//! `statfs(2)` of a mounted dataset costs a fiftieth of that, but Linux's ZFS rounds there to the dataset's
//! recordsize, and it says nothing of snapshots and compression on any host. So what was read is kept, and
//! shown again where the pool has written nothing since.

use std::collections::HashMap;
use std::sync::PoisonError;

use kleened_sys::zfs::{Groups, Mark, Properties, pool_of};

use super::super::{DatasetPath, Error, Result, Usage};
use super::Zfs;
use super::line::LINE;
use super::threads::on_threads;

/// The properties that say how much space a dataset takes.
const MEASURES: &[&str] =
    &["used", "referenced", "available", "usedbysnapshots", "refquota", "compressratio", LINE];

/// What datasets took when the pool had written all before the mark; `None` where there were none.
#[derive(Debug)]
pub(super) struct Measured {
    mark: Mark,
    usages: HashMap<DatasetPath, Option<Usage>>,
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

    pub(super) fn measure_all(&self, paths: &[DatasetPath]) -> Result<Vec<Option<Usage>>> {
        // Where it is not told, everything is read each time.
        let groups = Groups::of(pool_of(&self.root)).unwrap_or_default();
        let lock = || self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().as_ref().filter(|known| groups.quiet_since(known.mark))
            && let Some(usages) = paths.iter().map(|path| known.usages.get(path).copied()).collect()
        {
            return Ok(usages);
        }
        let measured = on_threads(paths, |path| match self.measure(path) {
            Ok(usage) => Ok(Some(usage)),
            // Destroyed meanwhile.
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        });
        let usages: Vec<_> = measured.into_iter().collect::<Result<_>>()?;
        let known = || paths.iter().cloned().zip(usages.iter().copied()).collect();
        *lock() = groups.settled().map(|mark| Measured { mark, usages: known() });
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
