//! Writer for the kernel's initramfs format: cpio "newc" (Documentation/driver-api/early-userspace/
//! buffer-format.rst in the kernel tree). Written here because a run then needs no staging tree and
//! no `cpio` program: files go from where they are straight into the archive.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive under construction. Parent directories are added as they are needed.
pub(crate) struct Archive<W: Write> {
    out: W,
    inode: u32,
    /// Names already in the archive; the kernel would write a second copy of a file over the first.
    names: BTreeSet<String>,
}

impl Archive<BufWriter<File>> {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::new(BufWriter::with_capacity(1 << 20, file)))
    }
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0, names: BTreeSet::new() }
    }

    /// Whether `path` is in the archive already.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.names.contains(relative(path))
    }

    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = relative(path);
        if path.is_empty() || self.names.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(path, DIRECTORY, &[])
    }

    /// Adds a regular file with the permission bits `mode`. A name that is taken stays as it is.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.leaf(path, REGULAR | mode, content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.leaf(path, SYMLINK, target.as_bytes())
    }

    /// Copies `host`, links followed, as an executable or plain file, whichever it is.
    pub(crate) fn copy(&mut self, host: &Path, path: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let content = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        let mode = fs::metadata(host)?.permissions().mode() & 0o777;
        Ok(self.file(path, mode, &content)?)
    }

    /// Writes the trailer and hands the sink back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn leaf(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = relative(path);
        if self.names.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(path, mode, content)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.names.insert(name.to_owned());
        self.inode += 1;
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{name}: newc holds files below 4 GiB only")))?;
        let name_size = name.len() as u32 + 1;
        // magic, then 13 fields of eight hex digits: ino mode uid gid nlink mtime size, major and
        // minor of the device, of the node, the name's length with its NUL, and an unused checksum.
        write!(
            self.out,
            "070701{:08X}{mode:08X}{:08X}{:08X}{:08X}{:08X}{size:08X}{:08X}{:08X}{:08X}{:08X}\
             {name_size:08X}{:08X}",
            self.inode, 0, 0, 1, 0, 0, 0, 0, 0, 0
        )?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + name_size as usize)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Name and content each end on a multiple of four bytes.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.wrapping_neg() % 4])
    }
}

/// Archive names have no leading slash: they are taken relative to the root.
fn relative(path: &str) -> &str {
    path.trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_and_modes(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let hex = |at: usize| {
            let digits = std::str::from_utf8(&bytes[at..at + 8]).unwrap();
            u32::from_str_radix(digits, 16).unwrap()
        };
        let (mut at, mut entries) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "an entry starts at a multiple of four");
            let (mode, size, name_size) = (hex(at + 14), hex(at + 54), hex(at + 94));
            let name = at + 110;
            let content = (name + name_size as usize).next_multiple_of(4);
            let text = String::from_utf8(bytes[name..name + name_size as usize - 1].to_vec());
            let end = content + size as usize;
            entries.push((text.unwrap(), mode, bytes[content..end].to_vec()));
            at = end.next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn a_file_comes_after_its_directories_and_is_read_back_unchanged() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/tool", 0o755, b"12345").unwrap();
        archive.symlink("bin", "usr/bin").unwrap();
        let entries = names_and_modes(&archive.finish().unwrap());
        let expected = [
            ("usr", 0o040_755, &b""[..]),
            ("usr/bin", 0o040_755, b""),
            ("usr/bin/tool", 0o100_755, b"12345"),
            ("bin", 0o120_777, b"usr/bin"),
            ("TRAILER!!!", 0, b""),
        ];
        let expected =
            expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec()));
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_name_that_is_taken_keeps_its_first_content() {
        let mut archive = Archive::new(Vec::new());
        archive.file("lib/a.so", 0o644, b"first").unwrap();
        archive.file("/lib/a.so", 0o644, b"second").unwrap();
        assert!(archive.contains("/lib/a.so"));
        let entries = names_and_modes(&archive.finish().unwrap());
        let contents: Vec<_> = entries.iter().filter(|(name, ..)| name == "lib/a.so").collect();
        assert_eq!(contents, [&("lib/a.so".to_owned(), 0o100_644, b"first".to_vec())]);
    }
}
