//! What is in the guest: a root filesystem made of this machine's own tools, with the libraries
//! that each needs, the kernel's modules, and the files and commands of one run.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Guest, cpio::Archive, kernel::Kernel};

const INIT: &str = include_str!("init.sh");

/// Tools without which the guest cannot work. A program started by busybox's own `timeout` or `sh`
/// would be a busybox applet where there is one of its name, whatever PATH says.
const REQUIRED: &[&str] = &["ip", "modprobe", "sh", "timeout"];

/// Tools that tests call; one that this machine lacks is left out, and the test that calls it says
/// so. busybox fills in for the rest, behind all of these in PATH; ordinary tools are here where
/// its version prints something else.
const OPTIONAL: &str = "arping bash bpftool bridge conntrack curl ethtool iperf3 nc nft nsenter ping \
    setpriv socat ss sysctl tc tcpdump traceroute unshare \
    cat cmp date dd env grep head ls mount pgrep ps readlink sed seq sha256sum sleep stat tail tee \
    truncate umount wc";

/// Name tables that the tools read.
const DATA: &[&str] = &["/etc/iproute2", "/etc/protocols", "/etc/services"];

/// tcpdump gives up root for an account of its own name, and fails where there is none.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    tcpdump:x:100:100::/:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &[u8] = b"root:x:0:\ntcpdump:x:100:\nnogroup:x:65534:\n";

/// Loaded before the first command. The kernel finds the others by itself when a device kind, a
/// qdisc or an nftables expression is asked for; these save the first test that wait.
const PRELOADED: &[&str] = &["veth", "tun", "sch_ingress", "cls_bpf"];

/// Directories that are links on a merged-usr system, and are in the guest on any.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

/// Writes the initramfs for `guest` to `path`. Not compressed: unpacking is the dearest part of
/// booting in emulation, and the file never leaves this machine's page cache.
///
/// # Errors
/// A tool, a library or a file of the guest cannot be read, or the archive cannot be written.
pub(crate) fn write(path: &Path, kernel: &Kernel, guest: &Guest) -> Result<()> {
    let mut archive = Archive::create(path)?;
    for name in MERGED {
        archive.symlink(name, &format!("usr/{name}"))?;
    }
    for name in ["dev", "opt/busybox", "proc", "root", "run", "sys", "tmp", "usr/lib64", "var"] {
        archive.directory(name)?;
    }
    archive.symlink("var/run", "/run")?;
    archive.symlink("etc/mtab", "/proc/self/mounts")?;
    archive.file("etc/passwd", 0o644, PASSWD)?;
    archive.file("etc/group", 0o644, GROUP)?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost natgw-vm\n")?;
    archive.file("etc/nsswitch.conf", 0o644, b"hosts: files\n")?;
    archive.file("init", 0o755, INIT.as_bytes())?;

    let busybox = find_program("busybox").ok_or_else(|| anyhow!("busybox is not installed"))?;
    program(&mut archive, &busybox, "/usr/bin/busybox")?;
    for tool in REQUIRED {
        let found = find_program(tool).ok_or_else(|| anyhow!("{tool} is not installed"))?;
        program(&mut archive, &found, &found.to_string_lossy())?;
    }
    for found in OPTIONAL.split(' ').filter_map(find_program) {
        program(&mut archive, &found, &found.to_string_lossy())?;
    }
    for data in DATA {
        tree(&mut archive, Path::new(data))?;
    }
    for (host, inside) in kernel.guest_files()? {
        archive.copy(&host, &inside)?;
    }
    archive.file("vm/modules", 0o644, (PRELOADED.join("\n") + "\n").as_bytes())?;
    run_files(&mut archive, guest)?;
    archive.finish().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// What differs from run to run: files, environment and commands.
fn run_files<W: std::io::Write>(archive: &mut Archive<W>, guest: &Guest) -> Result<()> {
    for (host, inside) in &guest.files {
        let inside = inside.to_str().ok_or_else(|| anyhow!("{inside:?} is not UTF-8"))?;
        if host.is_dir() {
            bail!("{}: a directory cannot be put into the guest; name its files", host.display());
        }
        program(archive, host, inside)?;
    }
    let environment: String = guest
        .environment
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quote(value)))
        .collect();
    archive.file("vm/environment", 0o644, environment.as_bytes())?;
    archive.directory("vm/commands")?;
    let limit = guest.command_limit.as_secs().max(1);
    for (index, command) in guest.commands.iter().enumerate() {
        let words: Vec<_> = command.iter().map(|word| quote(word)).collect();
        let line = format!("exec timeout -k 5 {limit} {}\n", words.join(" "));
        archive.file(&format!("vm/commands/{index:04}"), 0o644, line.as_bytes())?;
    }
    Ok(())
}

/// Adds a file and, if it is an executable with shared libraries, those and the interpreter.
fn program<W: std::io::Write>(archive: &mut Archive<W>, host: &Path, inside: &str) -> Result<()> {
    let inside = merged(inside);
    if archive.contains(&inside) {
        return Ok(());
    }
    let content = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
    let mode = fs::metadata(host)?.permissions().mode() & 0o777;
    if !content.starts_with(b"\x7fELF") {
        return Ok(archive.file(&inside, mode, &content)?);
    }
    archive.file(&inside, mode, &without_debug_info(host).unwrap_or(content))?;
    for library in libraries(host)? {
        let inside = merged(&library);
        archive.copy(Path::new(&library), &inside)?;
    }
    Ok(())
}

/// Debug information is most of a test executable, and the guest holds its files in memory. `None`
/// where `strip` is missing or refuses: the file goes in as it is.
fn without_debug_info(host: &Path) -> Option<Vec<u8>> {
    if fs::metadata(host).ok()?.len() < 4 << 20 {
        return None;
    }
    // Not through a pipe: strip seeks in what it writes.
    let stripped = tempfile::NamedTempFile::new().ok()?;
    let done =
        Command::new("strip").arg("--strip-debug").arg("-o").args([stripped.path(), host]).output();
    done.ok().filter(|output| output.status.success())?;
    fs::read(stripped.path()).ok()
}

/// Absolute paths of the shared libraries and the interpreter of an executable, by `ldd`.
fn libraries(executable: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(executable).output().context("cannot run ldd")?;
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("cannot resolve the libraries of {}", executable.display()))
}

/// Lines are "name => path (address)", "path (address)" for the interpreter, "name (address)" for
/// what the kernel provides, and "statically linked".
fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for line in text.lines() {
        let target = line.split_once("=>").map_or(line, |(_, target)| target).trim();
        if target == "not found" {
            bail!("{} is not installed", line.split_whitespace().next().unwrap_or("a library"));
        }
        let path = target.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            paths.push(path.to_owned());
        }
    }
    Ok(paths)
}

fn tree<W: std::io::Write>(archive: &mut Archive<W>, path: &Path) -> Result<()> {
    if path.is_file() {
        return archive.copy(path, &path.to_string_lossy());
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        tree(archive, &entry.path())?;
    }
    Ok(())
}

/// Where a file belongs in a guest whose /bin, /sbin, /lib and /lib64 are links into /usr.
fn merged(path: &str) -> String {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if MERGED.contains(&first) { format!("/usr{path}") } else { path.to_owned() }
}

/// The program's place in PATH or the administrator's directories, which a user's PATH may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    // The usual places first: the guest's PATH holds those only.
    usual
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// One word for the guest's shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output_yields_libraries_and_interpreter_but_not_the_vdso() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text).unwrap(), expected);
        assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), [""; 0]);
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_ldd("\tlibnftables.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libnftables.so.1 is not installed");
    }

    #[test]
    fn files_of_linked_directories_go_below_usr() {
        assert_eq!(merged("/lib64/ld-linux-x86-64.so.2"), "/usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged("/sbin/ip"), "/usr/sbin/ip");
        assert_eq!(merged("/usr/bin/curl"), "/usr/bin/curl");
        assert_eq!(merged("/libexec/x"), "/libexec/x");
    }

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let word = "it's $HOME `x` \"y\"";
        let output =
            Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
    }
}
