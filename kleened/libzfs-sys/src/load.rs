//! Loading: the names that are tried, and what is said when none is there.

use std::error::Error;
use std::fmt;

use libloading::Library;

/// The libraries are not there, or are not those of OpenZFS 2.1 or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The library, as in "libzfs".
    pub library: &'static str,
    /// Every file name that was tried, and why it would not do.
    pub tried: Vec<(&'static str, String)>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} of OpenZFS 2.1 or later: looked for ", self.library)?;
        for (index, (name, why)) in self.tried.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name} ({why})")?;
        }
        Ok(())
    }
}

impl Error for LoadError {}

/// Opens the first of these that is there and whose symbols `resolve` finds.
pub(crate) fn open<T>(
    library: &'static str,
    names: &[&'static str],
    resolve: impl Fn(&Library) -> Result<T, libloading::Error>,
) -> Result<(Library, T), LoadError> {
    let mut tried = Vec::new();
    for &name in names {
        // SAFETY: the initialisers of these libraries are those of OpenZFS, which set up their own
        // tables and nothing of this process. Whoever can put another file under that name into the
        // system's folder of libraries owns the system.
        let found = unsafe { Library::new(name) };
        match found.and_then(|found| resolve(&found).map(|symbols| (found, symbols))) {
            Ok(loaded) => return Ok(loaded),
            Err(error) => tried.push((name, reason(&error))),
        }
    }
    Err(LoadError { library, tried })
}

/// What the loader said, which names the file again.
fn reason(error: &libloading::Error) -> String {
    match error.source() {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

/// A structure of the functions of a library, and its constructor.
macro_rules! library {
    (
        $(#[$doc:meta])*
        $library:ident of $name:literal;
        linux: [$($linux:literal),*],
        freebsd: [$($freebsd:literal),*];
        $(fn $function:ident($($argument:ty),*) $(-> $result:ty)?;)*
        $(optional fn $newer:ident($($newer_argument:ty),*) $(-> $newer_result:ty)?;)*
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $library {
            $(pub $function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub $newer: Option<unsafe extern "C" fn($($newer_argument),*) $(-> $newer_result)?>,)*
            // Goes last: the functions above are in it.
            _library: libloading::Library,
        }

        impl $library {
            /// The file names that are tried, in that order.
            #[cfg(target_os = "freebsd")]
            pub const NAMES: &[&'static str] = &[$($freebsd),*];
            /// The file names that are tried, in that order.
            #[cfg(not(target_os = "freebsd"))]
            pub const NAMES: &[&'static str] = &[$($linux),*];

            /// Loads the library.
            ///
            /// # Errors
            ///
            /// No file of any of the names is there, or it lacks a function.
            pub fn load() -> Result<Self, crate::LoadError> {
                struct Found {
                    $($function: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
                    $($newer: Option<
                        unsafe extern "C" fn($($newer_argument),*) $(-> $newer_result)?
                    >,)*
                }
                let (library, found) = crate::load::open($name, Self::NAMES, |library| {
                    Ok(Found {
                        // SAFETY: that is its type in the headers of every version that has it.
                        $($function: *unsafe { library.get(stringify!($function)) }?,)*
                        // SAFETY: as above.
                        $($newer: unsafe { library.get(stringify!($newer)) }.ok().map(|found| *found),)*
                    })
                })?;
                Ok(Self {
                    $($function: found.$function,)*
                    $($newer: found.$newer,)*
                    _library: library,
                })
            }
        }
    };
}

pub(crate) use library;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_what_was_looked_for() {
        let names = &["libnosuch.so.9", "libnosuch.so.8"];
        let error = open("libnosuch", names, |_| Ok(())).unwrap_err();
        let text = error.to_string();
        for name in names {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn a_library_without_the_function_will_not_do() {
        let names = if cfg!(target_os = "freebsd") { &["libc.so.7"] } else { &["libc.so.6"] };
        open("libc", names, |_| Ok(())).unwrap();
        let missing = open("libc", names, |library| {
            // SAFETY: it is not there, and is never called.
            let found = unsafe { library.get::<unsafe extern "C" fn()>("nvlist_no_such") };
            found.map(|_| ())
        });
        let text = missing.unwrap_err().to_string();
        assert!(text.contains("nvlist_no_such"), "{text}");
    }
}
