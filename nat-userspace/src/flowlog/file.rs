//! A log file: appended to, rotated by size or time, opened anew when somebody else has rotated it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;

use crate::config::LogFile;

/// Bytes that are gathered before they are written.
const BUFFER: usize = 256 * 1024;

pub(super) struct Rotating {
    settings: LogFile,
    /// First line of every file; may be empty.
    header: String,
    file: File,
    opened: Timestamp,
    /// Bytes in the file.
    size: u64,
    buffer: Vec<u8>,
    /// Records in the buffer.
    pending: u64,
    /// The last write failed, perhaps in the middle of a line.
    broken: bool,
}

impl Rotating {
    /// # Errors
    /// The file cannot be opened for appending.
    pub(super) fn open(settings: &LogFile, header: String) -> io::Result<Self> {
        let file = append(&settings.path)?;
        let size = file.metadata()?.len();
        let mut rotating = Self {
            settings: settings.clone(),
            header,
            file,
            opened: Timestamp::now(),
            size,
            buffer: Vec::with_capacity(BUFFER),
            pending: 0,
            broken: false,
        };
        rotating.begin();
        Ok(rotating)
    }

    fn begin(&mut self) {
        if self.size == 0 && !self.header.is_empty() {
            self.buffer.extend_from_slice(self.header.as_bytes());
            self.buffer.push(b'\n');
        }
    }

    /// Room for the lines of one record. Returns how many records a write has lost meanwhile.
    pub(super) fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        write(&mut self.buffer);
        self.pending += 1;
        if self.buffer.len() >= BUFFER { self.flush() } else { 0 }
    }

    /// Writes what was gathered, and rotates where it is time. Returns the number of records lost.
    pub(super) fn flush(&mut self) -> u64 {
        let mut lost = 0;
        if !self.buffer.is_empty() {
            if self.broken {
                self.buffer.insert(0, b'\n');
            }
            let result = self.file.write_all(&self.buffer);
            if let Err(error) = &result {
                if !self.broken {
                    let path = self.settings.path.display();
                    log::error!("cannot write the flow log {path}: {error}; records are lost");
                }
                lost = self.pending;
            }
            self.broken = result.is_err();
            self.size += self.buffer.len() as u64;
            self.buffer.clear();
            self.pending = 0;
        }
        if self.is_due() {
            self.rotate();
        }
        lost
    }

    fn is_due(&self) -> bool {
        let LogFile { rotate_bytes, rotate_every, .. } = &self.settings;
        let age = Timestamp::now().duration_since(self.opened);
        self.size > self.header.len() as u64
            && (rotate_bytes.is_some_and(|most| self.size >= most)
                || rotate_every.is_some_and(|every| age.as_secs() >= every.as_secs() as i64))
    }

    fn rotate(&mut self) {
        let path = &self.settings.path;
        let aside = free_name(path, Timestamp::now());
        if let Err(error) = fs::rename(path, &aside) {
            log::warn!("cannot rotate the flow log {}: {error}", path.display());
            self.opened = Timestamp::now();
            return;
        }
        self.reopen();
        let (path, keep, compress) =
            (self.settings.path.clone(), self.settings.keep, self.settings.compress);
        // Not here: the log would stand still for seconds.
        let tidy = move || {
            if compress && let Err(error) = pack(&aside) {
                log::warn!("cannot compress {}: {error}", aside.display());
            }
            if let Err(error) = forget_oldest(&path, keep) {
                log::warn!("cannot remove old flow logs of {}: {error}", path.display());
            }
        };
        if let Err(error) = thread::Builder::new().name("natgw-rotate".to_owned()).spawn(tidy) {
            log::warn!("cannot tidy the flow logs: {error}");
        }
    }

    /// Lets go of the file, which somebody may have renamed, and opens its name anew.
    pub(super) fn reopen(&mut self) {
        match append(&self.settings.path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((size, file)) => {
                self.file = file;
                self.size = size;
                self.opened = Timestamp::now();
                self.begin();
            }
            Err(error) => {
                let path = self.settings.path.display();
                log::error!("cannot open the flow log {path} anew: {error}; the old one goes on");
            }
        }
    }
}

/// # Errors
/// As the system gives them.
pub(super) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// `FILE.20261121T140509.123Z`, or the like with a number where that is taken.
fn free_name(path: &Path, now: Timestamp) -> PathBuf {
    let stamp = now.strftime("%Y%m%dT%H%M%S%.3fZ").to_string();
    let named = |suffix: &str| {
        let mut name = OsString::from(path);
        name.push(format!(".{stamp}{suffix}"));
        PathBuf::from(name)
    };
    let numbered = (1_u32..).map(|number| named(&format!("-{number}")));
    let taken = |name: &PathBuf| name.exists() || with_gz(name).exists();
    std::iter::once(named("")).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
}

fn with_gz(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".gz");
    PathBuf::from(name)
}

/// Puts `FILE.gz` in the place of `FILE`.
fn pack(path: &Path) -> io::Result<()> {
    let (packed, mut draft) = (with_gz(path), OsString::from(path));
    draft.push(".gz.part");
    let draft = PathBuf::from(draft);
    let mut encoder = GzEncoder::new(
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(&draft)?,
        Compression::fast(),
    );
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?;
    fs::rename(&draft, &packed)?;
    fs::remove_file(path)
}

/// The file itself and what was rotated away from it, by this program or by logrotate, oldest
/// first, the file itself last.
///
/// # Errors
/// The directory cannot be read.
pub fn family(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        let rest = other.strip_prefix(&name);
        let rotated = rest.is_some_and(|rest| rest.starts_with(['.', '-']));
        if rotated && !other.ends_with(".part") {
            let changed = entry.metadata().and_then(|meta| meta.modified()).ok();
            found.push((changed, entry.path()));
        }
    }
    found.sort();
    let mut family: Vec<PathBuf> = found.into_iter().map(|(_, path)| path).collect();
    if path.exists() {
        family.push(path.to_owned());
    }
    Ok(family)
}

/// Removes the oldest of those that this program has rotated, until `keep` are left.
fn forget_oldest(path: &Path, keep: u32) -> io::Result<()> {
    let prefix = format!("{}.2", path.file_name().unwrap_or_default().to_string_lossy());
    let mut ours: Vec<PathBuf> = family(path)?
        .into_iter()
        .filter(|it| it.file_name().is_some_and(|it| it.to_string_lossy().starts_with(&prefix)))
        .filter(|it| it.to_string_lossy().contains('T'))
        .collect();
    // The time is in the name.
    ours.sort();
    let surplus = ours.len().saturating_sub(keep as usize);
    ours[..surplus].iter().try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn settings(path: &Path) -> LogFile {
        LogFile {
            path: path.to_owned(),
            format: crate::config::LogFormat::Json,
            rotate_bytes: Some(100),
            rotate_every: None,
            keep: 2,
            compress: true,
        }
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_full_file_goes_aside_is_compressed_and_the_oldest_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flows.jsonl");
        let mut log = Rotating::open(&settings(&path), String::new()).expect("opened");
        for round in 0..5_u8 {
            assert_eq!(log.line(|buffer| buffer.extend_from_slice(&[b'a' + round; 120])), 0);
            assert_eq!(log.flush(), 0);
            let rotated = usize::from(round + 1).min(2);
            until("rotated ones are compressed, two of them stay", || {
                let family = family(&path).expect("a list");
                let packed = family.iter().filter(|it| it.to_string_lossy().ends_with(".gz"));
                family.len() == rotated + 1 && packed.count() == rotated
            });
        }
        let family = family(&path).expect("a list");
        let mut text = String::new();
        let packed = File::open(&family[1]).expect("the newest one");
        io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut text)
            .expect("gzip");
        assert_eq!(text, "e".repeat(120));
    }

    #[test]
    fn a_file_that_was_renamed_is_made_anew_with_its_header() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("flows.log");
        let mut log = Rotating::open(&settings(&path), "version".to_owned()).expect("opened");
        log.line(|buffer| buffer.extend_from_slice(b"1\n"));
        log.flush();
        let aside = directory.path().join("flows.log.1");
        fs::rename(&path, &aside).expect("renamed");
        log.reopen();
        log.line(|buffer| buffer.extend_from_slice(b"2\n"));
        log.flush();
        assert_eq!(fs::read_to_string(&aside).expect("read"), "version\n1\n");
        assert_eq!(fs::read_to_string(&path).expect("read"), "version\n2\n");
        assert_eq!(family(&path).expect("a list"), [aside, path]);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted() {
        let full = Path::new("/dev/full");
        let mut log = Rotating::open(&settings(full), String::new()).expect("opened");
        log.line(|buffer| buffer.extend_from_slice(b"1\n"));
        log.line(|buffer| buffer.extend_from_slice(b"2\n"));
        log.settings.rotate_bytes = None;
        assert_eq!(log.flush(), 2);
    }
}
