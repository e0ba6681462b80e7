//! A share's plan becomes its device: whoever serves it is found or started here.

use std::sync::Arc;

use super::error::MachineError;
use crate::backend::virtiofsd::{self, Cache, Directory, Quotes, Sandbox, Virtiofsd};
use crate::devices::virtio::fs::{self, Fs};
use crate::devices::virtio::vhost::user::VhostUser;
use crate::devices::virtio::vhost::{Session, VhostError};
use crate::spec::plan::{ShareCache, SharePlan, ShareServer};

/// The share's device, with its server connected.
pub(super) fn open(plan: &SharePlan) -> Result<Fs, MachineError> {
    let failed = |source| MachineError::Share { tag: plan.tag.clone(), source };
    let (server, quotes) = (plan.server.clone(), Quotes::default());
    let session = Session::open(Box::new(move || reach(&server, &quotes))).map_err(failed)?;
    Ok(Fs::new(plan.tag.clone(), Box::new(session)))
}

/// Connects to who serves it, who is started for that if it is ours. Called again when the driver resets a device whose
/// server was lost.
fn reach(server: &ShareServer, quotes: &Quotes) -> Result<VhostUser, VhostError> {
    let unreachable = |error: virtiofsd::VirtiofsdError| VhostError::Unreachable(error.to_string());
    match server {
        ShareServer::Socket(path) => {
            let socket = virtiofsd::connect(path).map_err(unreachable)?;
            let name = format!("the virtiofsd at {}", path.display());
            VhostUser::new(name, socket, fs::QUEUES, Box::new(()))
        }
        ShareServer::Directory { path, readonly, cache } => {
            let cache = match cache {
                ShareCache::Auto => Cache::Auto,
                ShareCache::Never => Cache::Never,
                ShareCache::Always => Cache::Always,
            };
            let directory = Directory { path: path.clone(), readonly: *readonly, cache };
            serve(&directory, quotes)
        }
    }
}

/// Starts a virtiofsd in the strongest sandbox it can have here.
fn serve(directory: &Directory, quotes: &Quotes) -> Result<VhostUser, VhostError> {
    let mut sandbox = Sandbox::possible_here();
    if sandbox == Sandbox::None {
        quotes.warn(
            "virtiofsd runs without a sandbox of its own: this process has neither CAP_SYS_ADMIN nor CAP_SYS_CHROOT",
        );
    }
    loop {
        let started = Virtiofsd::start(directory, sandbox, quotes);
        let (process, socket) = started.map_err(|error| VhostError::Unreachable(error.to_string()))?;
        let process = Arc::new(process);
        let name = format!("virtiofsd for {}", directory.path.display());
        let reached = VhostUser::new(name, socket, fs::QUEUES, Box::new(Arc::clone(&process)));
        let Err(error) = reached else { return reached };
        let Some(words) = process.last_words() else { return Err(error) };
        let Some(weaker) = sandbox.instead(&words) else {
            return Err(VhostError::Unreachable(format!("{error}; it said: {words}")));
        };
        let (name, next) = (sandbox.name(), weaker.name());
        quotes.warn(&format!("virtiofsd may not make its sandbox `{name}` here and gets `{next}` ({words})"));
        sandbox = weaker;
    }
}
