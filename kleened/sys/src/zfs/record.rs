//! The records around a stream: `dmu_replay_record_t` of `sys/zfs_ioctl.h`, 312 bytes in the order of the
//! machine that sends, as `zfs send -p` writes them.

use std::io::{self, Read};

use libzfs_sys::ReplayRecord;

use super::error::Error;
use super::nvlist::NvList;

/// `DMU_BACKUP_MAGIC`.
const MAGIC: u64 = 0x2_f5ba_cbac;
const DRR_BEGIN: u32 = 0;
const DRR_END: u32 = 5;
const SUBSTREAM: u64 = 1;
const COMPOUND: u64 = 2;
/// `DMU_BACKUP_FEATURE_RAW`.
const RAW: u64 = 1 << 24;
/// More properties than any file system has.
const PAYLOAD: usize = 16 << 20;

/// A record: the type and the length of what follows it in the first word, then as its type has it.
#[derive(Debug, Clone)]
pub(super) struct Record(ReplayRecord);

/// The words of a record that begins something.
mod word {
    pub(super) const MAGIC: usize = 1;
    pub(super) const VERSION: usize = 2;
    pub(super) const TO_GUID: usize = 5;
    pub(super) const FROM_GUID: usize = 6;
    pub(super) const TO_NAME: usize = 7;
}

impl Record {
    pub(super) const SIZE: usize = size_of::<ReplayRecord>();

    fn new(kind: u32, payload: u32) -> Self {
        let mut record = [0; 39];
        record[0] = first_word(kind, payload);
        Self(record)
    }

    /// That ends what is around a stream.
    pub(super) fn end() -> Self {
        Self::new(DRR_END, 0)
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; Self::SIZE];
        from.read_exact(&mut bytes)?;
        let mut record = [0; 39];
        for (word, bytes) in record.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Ok(Self(record))
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    pub(super) fn as_ptr(&self) -> *const ReplayRecord {
        &raw const self.0
    }

    /// The type and the length of what follows, in the order of the sender.
    fn head(&self) -> (u32, u32) {
        let bytes = self.0[0].to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        let (kind, length) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        if self.swapped() { (kind.swap_bytes(), length.swap_bytes()) } else { (kind, length) }
    }

    /// Whether the sender has the other order of bytes.
    fn swapped(&self) -> bool {
        self.0[word::MAGIC] == MAGIC.swap_bytes()
    }

    fn word(&self, index: usize) -> u64 {
        let word = self.0.get(index).copied().unwrap_or(0);
        if self.swapped() { word.swap_bytes() } else { word }
    }

    fn begins(&self, what: u64) -> bool {
        self.word(word::MAGIC) == MAGIC
            && self.head().0 == DRR_BEGIN
            && self.word(word::VERSION) & 3 == what
    }

    /// Whether the stream of one snapshot begins here.
    pub(super) fn begins_stream(&self) -> bool {
        self.begins(SUBSTREAM)
    }

    /// Whether what is around streams begins here.
    pub(super) fn is_package(&self) -> bool {
        self.begins(COMPOUND)
    }

    /// Whether the stream's blocks are as they are on the device.
    pub(super) fn is_raw(&self) -> bool {
        (self.word(word::VERSION) >> 2) & RAW != 0
    }

    /// The number of the snapshot.
    pub(super) fn guid(&self) -> u64 {
        self.word(word::TO_GUID)
    }

    /// Reads what follows the beginning of a package, up to the stream in it: the properties of its only
    /// file system.
    pub(super) fn properties(
        &self,
        from: &mut impl Read,
        snapshot: &str,
    ) -> Result<Option<NvList>, Error> {
        const VERB: &str = "receive";
        let error = |errno, why: &str| Error::new(VERB, snapshot, errno).detail(why);
        let failed = |error: io::Error| Error::from_io(VERB, snapshot, &error);
        let length = self.head().1 as usize;
        if length > PAYLOAD {
            return Err(error(libc::EINVAL, "its properties are too long"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).map_err(failed)?;
        let mut sum = Fletcher4::default();
        sum.add(&self.bytes());
        sum.add(&payload);
        let end = Self::read(from).map_err(failed)?;
        let swapped = self.swapped();
        let stored = [1, 2, 3, 4].map(|index| end.0.get(index).copied().unwrap_or(0));
        // The sender sums words of its own order.
        if !swapped && stored != sum.0 {
            return Err(error(super::error::ECKSUM, "its properties are damaged"));
        }
        let list = NvList::unpack(&payload)?;
        let Some(systems) = list.list("fss") else { return Ok(None) };
        let mut systems = systems.iter();
        let (first, more) = (systems.next(), systems.next());
        if more.is_some() {
            return Err(error(libc::ENOTSUP, "it has several file systems; send one at a time"));
        }
        let properties = first.and_then(|(_, system)| system.list()?.get("props")?.list());
        properties.map(|list| list.to_owned()).transpose()
    }
}

/// The first word of a record, in the order of this machine.
fn first_word(kind: u32, payload: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (kind.to_ne_bytes(), payload.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// What stands in front of a stream with properties: a record, a list, and a record with their sum.
pub(super) fn write_package(
    snapshot: &str,
    (to_guid, from_guid): (u64, u64),
    from: Option<&str>,
    properties: &NvList,
) -> Result<Vec<u8>, Error> {
    let (dataset, name) = snapshot.split_once('@').unwrap_or((snapshot, ""));
    let mut snapshots = NvList::new()?;
    snapshots.put_number(name, to_guid)?;
    let mut system = NvList::new()?;
    system.put_text("name", dataset)?;
    system.put_number("parentfromsnap", 0)?;
    system.put_list("props", properties)?;
    system.put_list("snaps", &snapshots)?;
    let mut systems = NvList::new()?;
    systems.put_list(&format!("0x{to_guid:x}"), &system)?;
    let mut list = NvList::new()?;
    if let Some((_, from)) = from.and_then(|from| from.split_once(['@', '#'])) {
        list.put_text("fromsnap", from)?;
    }
    list.put_text("tosnap", name)?;
    list.put_list("fss", &systems)?;
    let payload = list.pack()?;
    let length =
        u32::try_from(payload.len()).map_err(|_| Error::new("send", snapshot, libc::E2BIG))?;
    let mut begin = Record::new(DRR_BEGIN, length);
    begin.0[word::MAGIC] = MAGIC;
    begin.0[word::VERSION] = COMPOUND;
    begin.0[word::TO_GUID] = to_guid;
    begin.0[word::FROM_GUID] = from_guid;
    // The last byte stays zero.
    let mut to_name = [0; 256];
    to_name.iter_mut().take(255).zip(snapshot.bytes()).for_each(|(to, from)| *to = from);
    for (word, bytes) in begin.0.iter_mut().skip(word::TO_NAME).zip(to_name.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    let mut bytes = begin.bytes();
    bytes.extend(&payload);
    let mut sum = Fletcher4::default();
    sum.add(&bytes);
    let mut end = Record::end();
    end.0.iter_mut().skip(1).zip(sum.0).for_each(|(to, from)| *to = from);
    bytes.extend(end.bytes());
    Ok(bytes)
}

/// `fletcher_4`: the sum of streams.
#[derive(Debug, Default)]
struct Fletcher4([u64; 4]);

impl Fletcher4 {
    fn add(&mut self, bytes: &[u8]) {
        let [mut a, mut b, mut c, mut d] = self.0;
        for word in bytes.as_chunks::<4>().0 {
            a = a.wrapping_add(u32::from_ne_bytes(*word).into());
            b = b.wrapping_add(a);
            c = c.wrapping_add(b);
            d = d.wrapping_add(c);
        }
        self.0 = [a, b, c, d];
    }
}
