//! Jails: the kernel's calls, and the parameters that they take.

pub mod param;

#[cfg(target_os = "freebsd")]
pub use host::{
    Error, attach, find, get_bool, is_jailed, load_module, parameters, parents, remove, set,
};

/// The jails below this one, at any depth, by pairs of a jail and the one that it is in.
#[must_use]
pub fn descendants(jid: i32, parents: &[(i32, i32)]) -> Vec<i32> {
    let mut found: Vec<i32> = Vec::new();
    let mut above = vec![jid];
    while let Some(parent) = above.pop() {
        for (child, _) in parents.iter().filter(|(_, other)| *other == parent) {
            if *child != jid && !found.contains(child) {
                found.push(*child);
                above.push(*child);
            }
        }
    }
    found
}

/// What [`set`] does.
#[cfg(target_os = "freebsd")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Makes a jail.
    Create,
    /// Changes one, which the parameters `jid` or `name` say.
    Update,
}

#[cfg(target_os = "freebsd")]
mod host {
    use std::ffi::{CString, c_int, c_uint};
    use std::mem::size_of_val;
    use std::{fmt, io, ptr};

    use super::Action;
    use super::param::{Parameter, Table, Type};

    /// `JAIL_ERRMSGLEN` of `jail.h`.
    const MESSAGE_LENGTH: usize = 1024;

    /// `CTL_MAXNAME` of `sys/sysctl.h`.
    const MAX_NAME: usize = 24;

    /// What the kernel said of a jail.
    #[derive(Debug)]
    pub struct Error {
        /// The number.
        pub errno: io::Error,
        /// The words, where it had some.
        pub message: Option<String>,
    }

    impl fmt::Display for Error {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match &self.message {
                Some(message) => f.write_str(message),
                None => self.errno.fmt(f),
            }
        }
    }

    impl std::error::Error for Error {}

    impl From<Error> for io::Error {
        fn from(error: Error) -> Self {
            match error.message {
                Some(ref message) => Self::new(error.errno.kind(), message.clone()),
                None => error.errno,
            }
        }
    }

    /// A jail has these parameters; the answer is its id. Of a parameter that is given twice the later
    /// one counts.
    ///
    /// # Errors
    ///
    /// What `jail_set(2)` says, in the kernel's words.
    pub fn set(parameters: &[Parameter], action: Action) -> Result<i32, Error> {
        let flags = match action {
            Action::Create => libc::JAIL_CREATE,
            Action::Update => libc::JAIL_UPDATE,
        };
        let mut parameters = parameters.to_vec();
        call(&mut parameters, |iov, count| {
            // SAFETY: the array has that many entries, and each is a buffer of its length or empty; the
            // kernel writes to none but that of the message, which is ours alone.
            unsafe { libc::jail_set(iov, count, flags) }
        })
    }

    /// The id of the jail with this name; `None` where there is none that is alive. What is dying, with
    /// processes that have not ended yet or none, is not alive.
    ///
    /// # Errors
    ///
    /// What `jail_get(2)` says.
    pub fn find(name: &str) -> Result<Option<i32>, Error> {
        found(get(&mut vec![Parameter::text("name", name.as_bytes())]))
    }

    /// A boolean of the jail with this id, or whether a number of it is not 0; `None` where there is none
    /// that is alive.
    ///
    /// # Errors
    ///
    /// What `jail_get(2)` says.
    pub fn get_bool(jid: i32, name: &str) -> Result<Option<bool>, Error> {
        let mut parameters = vec![Parameter::int("jid", jid), Parameter::int(name, 0)];
        let answer = found(get(&mut parameters))?;
        let value = parameters.get(1).and_then(|parameter| parameter.value.as_deref());
        let value = value.is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0));
        Ok(answer.map(|_| value))
    }

    /// Every jail that is alive, and the one that it is in: 0 for this process's own.
    ///
    /// # Errors
    ///
    /// What `jail_get(2)` says.
    pub fn parents() -> Result<Vec<(i32, i32)>, Error> {
        let (mut all, mut last) = (Vec::new(), 0);
        loop {
            let mut parameters = vec![Parameter::int("lastjid", last), Parameter::int("parent", 0)];
            let Some(jid) = found(get(&mut parameters))? else { return Ok(all) };
            all.push((jid, number(parameters.get(1))));
            last = jid;
        }
    }

    fn number(parameter: Option<&Parameter>) -> i32 {
        let bytes = parameter.and_then(|parameter| parameter.value.as_deref());
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
    }

    /// Whether this process is in a jail.
    ///
    /// # Errors
    ///
    /// What `sysctl(3)` says.
    pub fn is_jailed() -> io::Result<bool> {
        let value = query(&[], &mib("security.jail.jailed")?)?;
        Ok(value.iter().any(|byte| *byte != 0))
    }

    // kldload(2), of libc.
    unsafe extern "C" {
        fn kldload(file: *const std::ffi::c_char) -> c_int;
    }

    /// The kernel has this module. A repeat is safe.
    ///
    /// # Errors
    ///
    /// `ENOENT` where there is no such module; what `kldload(2)` says.
    pub fn load_module(name: &str) -> io::Result<()> {
        let name = CString::new(name)?;
        // SAFETY: the name is a C string.
        if unsafe { kldload(name.as_ptr()) } >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            error => Err(error),
        }
    }

    fn get(parameters: &mut Vec<Parameter>) -> Result<i32, Error> {
        call(parameters, |iov, count| {
            // SAFETY: the array has that many entries, and each is a buffer of its length, which is ours
            // alone for the kernel to write to.
            unsafe { libc::jail_get(iov, count, 0) }
        })
    }

    fn found(answer: Result<i32, Error>) -> Result<Option<i32>, Error> {
        match answer {
            Ok(jid) => Ok(Some(jid)),
            Err(error) if error.errno.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn call(
        parameters: &mut Vec<Parameter>,
        call: impl Fn(*mut libc::iovec, c_uint) -> c_int,
    ) -> Result<i32, Error> {
        let mut message = [0_u8; MESSAGE_LENGTH];
        let mut name = *b"errmsg\0";
        let entry = |bytes: &mut [u8]| libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let mut iov = Vec::with_capacity(2 * parameters.len() + 2);
        for parameter in parameters {
            iov.push(entry(&mut parameter.name));
            iov.push(match &mut parameter.value {
                Some(value) => entry(value),
                None => libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            });
        }
        iov.extend([entry(&mut name), entry(&mut message)]);
        let count = c_uint::try_from(iov.len()).unwrap_or(c_uint::MAX);
        let jid = call(iov.as_mut_ptr(), count);
        if jid >= 0 {
            return Ok(jid);
        }
        let errno = io::Error::last_os_error();
        let text: Vec<u8> = message.iter().copied().take_while(|byte| *byte != 0).collect();
        let text = (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned());
        Err(Error { errno, message: text })
    }

    /// This process is in the jail, whose root is its root and present directory.
    ///
    /// # Errors
    ///
    /// `EINVAL` where there is no such jail or it is dying; what `jail_attach(2)` says.
    pub fn attach(jid: i32) -> io::Result<()> {
        // SAFETY: the number is all that it takes.
        let result = unsafe { libc::jail_attach(jid) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The jail is dying: every process in it was sent SIGKILL, and there will be no new one. False where
    /// there was none.
    ///
    /// # Errors
    ///
    /// What `jail_remove(2)` says.
    pub fn remove(jid: i32) -> io::Result<bool> {
        // SAFETY: the number is all that it takes.
        if unsafe { libc::jail_remove(jid) } == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            error => Err(error),
        }
    }

    /// The parameters that this kernel has.
    ///
    /// # Errors
    ///
    /// What `sysctl(3)` says.
    ///
    /// # Source
    ///
    /// `jailparam_all` and `jailparam_type` in `lib/libjail/jail.c`; the calls of `sys/kern/kern_sysctl.c`
    /// that have numbers only: 0.1 for a name, 0.2 for the next one, 0.4 for flags and format.
    pub fn parameters() -> io::Result<Table> {
        const ROOT: &str = "security.jail.param";
        let root = mib(ROOT)?;
        let mut at = root.clone();
        let mut entries = Vec::new();
        loop {
            let next = match query(&[0, 2], &at) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                next => next?,
            };
            at = next
                .chunks_exact(4)
                .filter_map(|c| c.try_into().ok().map(c_int::from_ne_bytes))
                .collect();
            if !at.starts_with(&root) {
                break;
            }
            let name = text(&query(&[0, 1], &at)?);
            let format = query(&[0, 4], &at)?;
            let Some((flags, format)) = format.split_first_chunk() else { continue };
            let (flags, format) = (u32::from_ne_bytes(*flags), text(format));
            // What a text's size is.
            let value = if flags & 0xf == 3 { text(&query(&[], &at)?) } else { String::new() };
            let name = name.strip_prefix(ROOT).and_then(|name| name.strip_prefix('.'));
            // A node that is a parameter itself has a nameless child.
            let name = name.map(|name| name.strip_suffix('.').unwrap_or(name));
            if let (Some(name), Some(kind)) = (name, Type::from_sysctl(flags, &format, &value)) {
                entries.push((name.to_owned(), kind));
            }
        }
        Ok(entries.into_iter().collect())
    }

    fn text(bytes: &[u8]) -> String {
        let bytes: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn mib(name: &str) -> io::Result<Vec<c_int>> {
        let name = CString::new(name)?;
        let mut mib = [0; MAX_NAME];
        let mut length = mib.len();
        // SAFETY: the name is a C string, and the array has `length` entries.
        let result =
            unsafe { libc::sysctlnametomib(name.as_ptr(), mib.as_mut_ptr(), &raw mut length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mib.get(..length).unwrap_or_default().to_vec())
    }

    /// The value of `prefix` with `at` after it; no more than a page of it.
    fn query(prefix: &[c_int], at: &[c_int]) -> io::Result<Vec<u8>> {
        let name: Vec<c_int> = prefix.iter().chain(at).copied().collect();
        let count = c_uint::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut value = [0_u64; 512];
        let mut size = size_of_val(&value);
        let (base, old) = (name.as_ptr(), value.as_mut_ptr().cast());
        // SAFETY: the name has `count` entries, and the buffer `size` bytes.
        let result = unsafe { libc::sysctl(base, count, old, &raw mut size, ptr::null(), 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = value.iter().flat_map(|word| word.to_ne_bytes());
        Ok(bytes.take(size).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jails_in_jails() {
        let parents = [(2, 0), (3, 2), (4, 0), (7, 3), (8, 4), (9, 2)];
        assert_eq!(descendants(2, &parents), [3, 9, 7]);
        assert_eq!(descendants(4, &parents), [8]);
        assert_eq!(descendants(7, &parents), []);
        // The kernel never says so, and it ends all the same.
        assert_eq!(descendants(1, &[(1, 2), (2, 1), (3, 3)]), [2]);
    }
}
