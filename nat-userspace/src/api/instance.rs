//! One daemon a name: the lock that says so, and the socket that it answers on.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::stat::{Mode, umask},
    unistd::{Gid, Group, chown},
};

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error(
        "gateway \"{name}\" is already running{}; stop it first, or give this one another --name",
        by(pid)
    )]
    Running { name: String, pid: String },
    #[error("cannot {what} {}: {source}; run as root, or name a directory of yours with --state-dir", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is there and is not a socket; move it away", path.display())]
    NotASocket { path: PathBuf },
}

fn by(pid: &str) -> String {
    if pid.is_empty() { String::new() } else { format!(" (process {pid})") }
}

/// Where the gateway of this name answers.
#[must_use]
pub fn socket_path(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.sock"))
}

/// Where it answers those who may only look; no name of a gateway has a dot.
#[must_use]
pub fn view_socket_path(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.view.sock"))
}

/// Who may look at the gateway without being able to change it, if the host has such a group.
const VIEW_GROUP: &str = "natgw-view";

/// Held for as long as this process is the gateway of this name; the kernel lets go of it whatever
/// way the process ends.
#[derive(Debug)]
pub struct Instance {
    socket: PathBuf,
    lock: Flock<File>,
}

impl Instance {
    /// # Errors
    /// Another process holds the name, or the state directory is not writable.
    pub fn claim(state_dir: &Path, name: &str) -> Result<Self, InstanceError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| InstanceError::File { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(state_dir)
            .map_err(failed("create", state_dir))?;
        // Never removed: a second process could lock the removed file while a third makes a new one.
        let path = state_dir.join(format!("{name}.lock"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut lock = match Flock::lock(
            file.try_clone().map_err(failed("open", &path))?,
            FlockArg::LockExclusiveNonblock,
        ) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Only for the message; without it the message is shorter.
                file.read_to_string(&mut pid).unwrap_or_default();
                let (name, pid) = (name.to_owned(), pid.trim().to_owned());
                return Err(InstanceError::Running { name, pid });
            }
            Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
        };
        let pid = std::process::id();
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{pid}"))
            .map_err(failed("write", &path))?;
        Ok(Self { socket: socket_path(state_dir, name), lock })
    }

    /// Opens the sockets with mode 0660 from their first moment on. Call it before threads start:
    /// the umask is the whole process's.
    ///
    /// # Errors
    /// Something else is in a socket's place, or the directory is not writable.
    pub fn listen(self) -> Result<ControlSocket, InstanceError> {
        let group = Group::from_name(VIEW_GROUP).ok().flatten();
        self.listen_for(group.map(|group| group.gid))
    }

    /// [`Self::listen`], `viewers` having a socket of their own.
    ///
    /// # Errors
    /// As above.
    pub fn listen_for(self, viewers: Option<Gid>) -> Result<ControlSocket, InstanceError> {
        let Self { socket: path, lock } = self;
        let all = Bound::open(path.clone())?;
        let view = match viewers {
            Some(group) => Bound::open(path.with_extension("view.sock"))?.given_to(group),
            None => None,
        };
        Ok(ControlSocket { all, view, _lock: lock })
    }
}

/// A socket file that listens; dropped, it is gone.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Bound {
    fn open(path: PathBuf) -> Result<Self, InstanceError> {
        let failed = |what| {
            let path = path.clone();
            move |source| InstanceError::File { what, path, source }
        };
        match UnixStream::connect(&path) {
            Ok(_) => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                return Err(InstanceError::Running { name, pid: String::new() });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A socket that nobody listens on is a dead daemon's.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                if !is_socket(&path) {
                    return Err(InstanceError::NotASocket { path });
                }
                fs::remove_file(&path).map_err(failed("remove the old socket"))?;
            }
            Err(error) => return Err(failed("try the old socket")(error)),
        }
        let previous = umask(Mode::from_bits_truncate(0o117));
        let bound = UnixListener::bind(&path);
        umask(previous);
        let listener = bound.map_err(failed("bind"))?;
        listener.set_nonblocking(true).map_err(failed("set up"))?;
        Ok(Self { listener, path })
    }

    /// Not, and said so, where this process may not give it to the group.
    fn given_to(self, group: Gid) -> Option<Self> {
        match chown(&self.path, None, Some(group)) {
            Ok(()) => Some(self),
            Err(error) => {
                log::warn!(
                    "cannot give {} to group {VIEW_GROUP}: {error}; nobody but the owner's group \
                     may look; make natgw's user a member of it",
                    self.path.display()
                );
                None
            }
        }
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// The bound sockets and the lock on their name.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) all: Bound,
    /// Answers only what changes nothing.
    pub(super) view: Option<Bound>,
    _lock: Flock<File>,
}

impl ControlSocket {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.all.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}
