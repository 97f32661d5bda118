//! What the worker calls: mount, remount, show at a second directory, unmount.
//!
//! All methods block (on the supervisor, a helper or the kernel, never on the network): call them from a blocking
//! thread of the runtime.

#[cfg(test)]
pub(crate) mod tests;

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fs_core::mount::{Identity, Mount};
use fuser::{Session, SessionACL};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::adapter::{Adapter, Boundary, BoundaryStatistics, Declining, OpenPolicy, Owner};
use crate::mounting::executor::{Done, Executor, Request, resolve};
use crate::mounting::{MountError, MountSpec, Result, table};
use crate::supervisor::{SOCKET_VARIABLE, ask};
use crate::tree::Tree;

/// How a version is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// User whom the files belong to, and who may use the mount.
    pub uid: u32,
    /// Group whom the files belong to.
    pub gid: u32,
    /// Whether other users may use the mount, as far as the files' modes let them. Ordinary users need
    /// `user_allow_other` in `/etc/fuse.conf` for this.
    pub allow_other: bool,
    /// Threads that take requests from the kernel, 1 at least.
    pub threads: usize,
    /// The kernel's read-ahead in KiB, if it is to be set; takes effect only where this process may write
    /// `/sys/class/bdi`. 1 MiB is the kernel's largest read request; 128 KiB is its default.
    pub read_ahead_kb: Option<u32>,
    /// The same while parts of a launch set may have to be fetched: until [`Mounted::launch_set_is_here`] or
    /// [`Mounted::launch_is_over`].
    pub launch_read_ahead_kb: Option<u32>,
    /// Parts of files that the version's launch set names are handed to the kernel when the file is opened, before
    /// anybody reads them, if of that file they are no more bytes than this. 0 hands nothing over. Without a launch set
    /// this changes nothing.
    pub push_max_bytes: u64,
    /// Which reads of more than a page are refused, after which the kernel asks for single pages.
    pub declining: Declining,
    /// How opening a file is answered.
    pub open_policy: OpenPolicy,
    /// Whether the kernel shall read nothing ahead and nothing without asking, so that it asks for exactly the pages
    /// that are used; for recording. Goes before `read_ahead_kb` and `open_policy`.
    pub exact_reads: bool,
    /// Whether a directory with something in it, or another file system's mount point, may be covered.
    pub nonempty: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        MountOptions {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            allow_other: false,
            threads: (2 * cores).min(4),
            read_ahead_kb: Some(1024),
            launch_read_ahead_kb: Some(0),
            push_max_bytes: 512 << 20,
            declining: Declining::BesideLaunchSet,
            open_policy: OpenPolicy::permitted(),
            exact_reads: false,
            nonempty: false,
        }
    }
}

impl MountOptions {
    /// What the kernel's read-ahead is set to, if it is.
    fn kernel_read_ahead_kb(&self, launching: bool) -> Option<u32> {
        let kb = if launching { self.launch_read_ahead_kb } else { self.read_ahead_kb };
        kb.filter(|_| !self.exact_reads)
    }
}

/// One mount of a version at a directory.
#[derive(Debug, Clone)]
pub struct Mounted {
    dir: PathBuf,
    mount_id: u64,
    connection: Arc<Connection>,
}

impl Mounted {
    /// Where it stands: absolute, links resolved.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel's number of the mount.
    pub fn mount_id(&self) -> u64 {
        self.mount_id
    }

    /// Waits until the last user of the last mount of this connection is gone: after unmounting, also from outside,
    /// and after the last open file of a detached mount is closed. An error is one of reading from the kernel.
    pub async fn ended(&self) -> Result<()> {
        let mut ended = self.connection.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The thread died without a word, which only a panic in it does.
            Err(_) => Err(MountError::Protocol { reason: "the session's thread ended without a result".into() }),
        }
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.connection.ended.borrow().is_some() || self.connection.ended.has_changed().is_err()
    }

    /// Lets the kernel read ahead as it does without a launch set: nothing of the launch set is away any more, so
    /// neighbours of what is read cost no round trip. To be called as soon as that is known.
    pub fn launch_set_is_here(&self) {
        if let (true, Some(kb)) =
            (self.connection.boundary.is_launching(), self.connection.served.options().kernel_read_ahead_kb(false))
        {
            set_read_ahead(self.mount_id, kb);
        }
    }

    /// Tells the adapter that what the launch set says of what will be read has served its purpose: nothing is pushed
    /// into the page cache from now on, opens may become cheaper, and the kernel reads ahead as it does without a
    /// launch set. Before this is called nothing is wrong, only slower than it could be.
    pub fn launch_is_over(&self) {
        if self.connection.boundary.launch_is_over()
            && let Some(kb) = self.connection.served.options().kernel_read_ahead_kb(false)
        {
            set_read_ahead(self.mount_id, kb);
        }
    }

    /// What crossed the boundary between the kernel and this process since the mount was made.
    pub fn statistics(&self) -> BoundaryStatistics {
        self.connection.boundary.statistics()
    }

    /// Whether the mount is still in the mount table: false after a remount or an unmount, also from outside.
    pub fn is_attached(&self) -> bool {
        matches!(table::find(self.mount_id), Ok(Some(_)))
    }
}

/// A connection to the kernel and what is served over it.
#[derive(Debug)]
struct Connection {
    served: Arc<dyn Serve>,
    ended: Ended,
    boundary: Arc<dyn Boundary>,
}

type Ended = watch::Receiver<Option<Result<()>>>;

/// A version with all that is needed to serve it over one more connection.
trait Serve: Send + Sync + std::fmt::Debug {
    /// Answers INIT and starts the threads.
    fn start(&self, device: OwnedFd) -> io::Result<(Ended, Arc<dyn Boundary>)>;
    fn options(&self) -> &MountOptions;
    fn identity(&self) -> &Identity;
}

struct Version<T: Tree> {
    tree: Arc<T>,
    options: MountOptions,
    runtime: Handle,
}

impl<T: Tree> std::fmt::Debug for Version<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version").field("identity", self.tree.identity()).finish_non_exhaustive()
    }
}

impl<T: Tree> Serve for Version<T> {
    fn start(&self, device: OwnedFd) -> io::Result<(Ended, Arc<dyn Boundary>)> {
        let owner = Owner { uid: self.options.uid, gid: self.options.gid };
        let MountOptions { open_policy, push_max_bytes, declining, exact_reads, .. } = self.options;
        let (policy, push) = match exact_reads {
            true => (OpenPolicy::ZeroMessage, 0),
            false => (open_policy, push_max_bytes),
        };
        let mut adapter = Adapter::new(self.tree.clone(), owner, policy, push, declining, self.runtime.clone());
        if exact_reads {
            adapter = adapter.without_kernel_read_ahead();
        }
        let boundary = adapter.boundary();
        let mut config = fuser::Config::default();
        config.n_threads = Some(self.options.threads.max(1));
        // A clone's end would abort the requests that were read through it.
        config.clone_fd = false;
        // The kernel restricts who may use the mount; fuser compares with this process's user, who need not be it.
        config.acl = SessionACL::All;
        let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
        boundary.send_by(session.notifier());
        let (end, ended) = watch::channel(None);
        thread::Builder::new().name("streamfs-session".into()).spawn(move || {
            let result = match session.run() {
                // Whoever unmounts by force, or the kernel while it unmounts, aborts the connection: that is an end, too.
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
                other => other.map_err(|error| MountError::Protocol {
                    reason: format!("reading requests from the kernel failed: {error}"),
                }),
            };
            // Whoever asked may be gone.
            let _ = end.send(Some(result));
        })?;
        Ok((ended, boundary))
    }

    fn options(&self) -> &MountOptions {
        &self.options
    }

    fn identity(&self) -> &Identity {
        self.tree.identity()
    }
}

/// Mounts, through the supervisor if this process has one.
#[derive(Debug)]
pub struct Mounter {
    link: Link,
    /// Held while a connection is made: the other side keeps one mount that is not yet in place.
    connecting: Mutex<()>,
}

#[derive(Debug)]
enum Link {
    Supervisor { socket: Mutex<OwnedFd>, gone: watch::Receiver<bool>, fallback: Mutex<Executor> },
    Own(Mutex<Executor>),
}

impl Mounter {
    /// Uses the supervisor that started this process, or mounts by itself if there is none.
    ///
    /// Takes the socket for itself: only the first call in a process finds it.
    pub fn from_env() -> Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let Some(number) = std::env::var_os(SOCKET_VARIABLE) else {
            return Ok(Mounter::standalone());
        };
        let number: i32 = number.to_str().and_then(|text| text.parse().ok()).filter(|n| *n > 2).ok_or_else(|| {
            MountError::Protocol { reason: format!("{SOCKET_VARIABLE} is not a descriptor's number") }
        })?;
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(MountError::Protocol { reason: "the supervisor's socket is taken already".into() });
        }
        // SAFETY: the supervisor opened this descriptor for us, and TAKEN makes sure that it gets one owner.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(io::Error::from)?;
        Mounter::with_socket(socket)
    }

    fn with_socket(socket: OwnedFd) -> Result<Self> {
        let watched = socket.try_clone()?;
        let (tell, gone) = watch::channel(false);
        thread::Builder::new().name("streamfs-supervisor".into()).spawn(move || {
            wait_for_hangup(&watched);
            let _ = tell.send(true);
        })?;
        let link = Link::Supervisor { socket: Mutex::new(socket), gone, fallback: Mutex::default() };
        Ok(Mounter { link, connecting: Mutex::default() })
    }

    /// Mounts by itself. Nobody removes the mounts when this process is killed.
    pub fn standalone() -> Self {
        Mounter { link: Link::Own(Mutex::default()), connecting: Mutex::default() }
    }

    /// Waits until the supervisor is gone; for ever if there is none. The worker should then unmount and end:
    /// unmounting works without a supervisor.
    pub async fn supervisor_gone(&self) {
        match &self.link {
            Link::Supervisor { gone, .. } => {
                // An error means that the watching thread ended, which it does only at the supervisor's end.
                let _ = gone.clone().wait_for(|gone| *gone).await;
            }
            Link::Own(_) => std::future::pending().await,
        }
    }

    /// Tells the supervisor that this worker serves (see [`crate::supervisor::run`]).
    pub fn ready(&self) -> Result<()> {
        self.ask(Request::Ready).map(drop)
    }

    /// Mounts `mount` on `dir`. When this returns, the directory shows the version and requests are answered.
    pub fn mount(&self, mount: Arc<Mount>, dir: &Path, options: &MountOptions, runtime: Handle) -> Result<Mounted> {
        self.mount_tree(mount, dir, options, runtime)
    }

    /// Puts `new` in the place of `old`. Where the kernel allows it (CAP_SYS_ADMIN, Linux 6.5), look-ups switch
    /// without a gap, and what is open stays on the old version until it is closed. Otherwise the old mount is removed
    /// first: refused as [`MountError::Busy`] while it is in use, unless `lazy`, which leaves its users on it; if
    /// mounting then fails, the directory is left without a mount.
    pub fn remount(
        &self,
        old: &Mounted,
        new: Arc<Mount>,
        options: &MountOptions,
        runtime: Handle,
        lazy: bool,
    ) -> Result<Mounted> {
        self.remount_tree(old, new, options, runtime, lazy)
    }

    /// Shows `existing` also on `dir`: the same connection where the kernel lets this user copy mounts, a second one
    /// otherwise.
    pub fn clone_to(&self, existing: &Mounted, dir: &Path) -> Result<Mounted> {
        let dir = resolve(dir)?;
        let nonempty = existing.connection.served.options().nonempty;
        let request =
            Request::Copy { mount_id: existing.mount_id, from: existing.dir.clone(), dir: dir.clone(), nonempty };
        match self.ask(request)? {
            (Done::Attached { mount_id }, _) => Ok(Mounted { dir, mount_id, connection: existing.connection.clone() }),
            (Done::NeedsOwnConnection, _) => self.connect(existing.connection.served.clone(), dir, None, false),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Removes the mount from its directory: refused as [`MountError::Busy`] while it is in use, unless `lazy`, which
    /// leaves its users on it ([`Mounted::ended`] tells when they are gone).
    pub fn unmount(&self, mounted: &Mounted, lazy: bool) -> Result<()> {
        let request = Request::Unmount { mount_id: mounted.mount_id, dir: mounted.dir.clone(), lazy };
        self.ask(request).map(drop)
    }

    pub(crate) fn mount_tree<T: Tree>(
        &self,
        tree: Arc<T>,
        dir: &Path,
        options: &MountOptions,
        runtime: Handle,
    ) -> Result<Mounted> {
        let dir = resolve(dir)?;
        self.connect(Arc::new(Version { tree, options: options.clone(), runtime }), dir, None, false)
    }

    pub(crate) fn remount_tree<T: Tree>(
        &self,
        old: &Mounted,
        tree: Arc<T>,
        options: &MountOptions,
        runtime: Handle,
        lazy: bool,
    ) -> Result<Mounted> {
        let served = Arc::new(Version { tree, options: options.clone(), runtime });
        self.connect(served, old.dir.clone(), Some(old.mount_id), lazy)
    }

    /// A new connection, answered before the mount is seen where the kernel allows that.
    fn connect(&self, served: Arc<dyn Serve>, dir: PathBuf, replaces: Option<u64>, lazy: bool) -> Result<Mounted> {
        let _one_at_a_time = self.connecting.lock();
        let spec = spec(served.options(), served.identity());
        let request = Request::Create { dir: dir.clone(), spec, replaces, lazy };
        let (done, device) = self.ask(request)?;
        let device =
            device.ok_or_else(|| MountError::Protocol { reason: "a new connection came without descriptor".into() })?;
        let started = served.start(device).map_err(|error| MountError::system("serve", &dir, error));
        let (mount_id, (ended, boundary)) = match done {
            Done::Detached => {
                let ended = started?;
                match self.ask(Request::Attach { dir: dir.clone(), replaces, lazy })? {
                    (Done::Attached { mount_id }, _) => (mount_id, ended),
                    (other, _) => return Err(unexpected(&other)),
                }
            }
            Done::Attached { mount_id } => match started {
                Ok(ended) => (mount_id, ended),
                Err(error) => {
                    // It stands already and nobody answers: better no mount than a dead one. The first error tells.
                    let _ = self.ask(Request::Unmount { mount_id, dir, lazy: true });
                    return Err(error);
                }
            },
            other => return Err(unexpected(&other)),
        };
        let options = served.options();
        if let Some(kb) = options.kernel_read_ahead_kb(boundary.is_launching()) {
            set_read_ahead(mount_id, kb);
        }
        Ok(Mounted { dir, mount_id, connection: Arc::new(Connection { served, ended, boundary }) })
    }

    fn ask(&self, request: Request) -> Result<(Done, Option<OwnedFd>)> {
        match &self.link {
            Link::Own(executor) => executor.lock().execute(request),
            Link::Supervisor { socket, fallback, .. } => {
                // One question at a time: answers carry no number.
                let answered = ask(&socket.lock(), &request)?;
                match answered {
                    Some((answer, device)) => answer.map(|done| (done, device)),
                    // Leaving must work without it: this process has the same rights.
                    None if matches!(request, Request::Unmount { .. }) => fallback.lock().execute(request),
                    None => Err(MountError::Protocol { reason: "it has ended".into() }),
                }
            }
        }
    }
}

fn spec(options: &MountOptions, identity: &Identity) -> MountSpec {
    MountSpec {
        source: format!("{}@{}", identity.package, identity.version),
        uid: options.uid,
        gid: options.gid,
        allow_other: options.allow_other,
        nonempty: options.nonempty,
    }
}

fn unexpected(done: &Done) -> MountError {
    MountError::Protocol { reason: format!("it answered {done:?}") }
}

fn wait_for_hangup(socket: &OwnedFd) {
    loop {
        let mut waiting = [PollFd::new(socket, PollFlags::RDHUP)];
        match poll(&mut waiting, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Only after INIT: the kernel sets its own value when that is answered.
fn set_read_ahead(mount_id: u64, kb: u32) {
    let Ok(Some(entry)) = table::find(mount_id) else {
        return;
    };
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", entry.device.0, entry.device.1);
    if let Err(error) = fs::write(&path, kb.to_string()) {
        tracing::debug!("read-ahead stays as it is: cannot write {path}: {error}");
    }
}
