//! A share's plan becomes its device: whoever serves it is found or started here.

use std::sync::Arc;

use super::error::MachineError;
use crate::backend::virtiofsd::{self, Cache, Directory, Sandbox, Virtiofsd};
use crate::devices::virtio::fs::{self, Fs};
use crate::devices::virtio::vhost::user::VhostUser;
use crate::devices::virtio::vhost::{Session, VhostError};
use crate::spec::plan::{ShareCache, SharePlan, ShareServer};

/// The share's device, with its server connected.
pub(super) fn open(plan: &SharePlan) -> Result<Fs, MachineError> {
    let failed = |source| MachineError::Share { tag: plan.tag.clone(), source };
    let server = plan.server.clone();
    let session = Session::open(Box::new(move || reach(&server))).map_err(failed)?;
    Ok(Fs::new(plan.tag.clone(), Box::new(session)))
}

/// Connects to who serves it, who is started for that if it is ours. Called again when the driver resets a device whose
/// server was lost.
fn reach(server: &ShareServer) -> Result<VhostUser, VhostError> {
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
            serve(&directory)
        }
    }
}

/// Starts a virtiofsd in the strongest sandbox it can have here.
fn serve(directory: &Directory) -> Result<VhostUser, VhostError> {
    let mut sandbox = Sandbox::possible_here();
    loop {
        let started = Virtiofsd::start(directory, sandbox);
        let (process, socket) = started.map_err(|error| VhostError::Unreachable(error.to_string()))?;
        let process = Arc::new(process);
        let name = format!("virtiofsd for {}", directory.path.display());
        let reached = VhostUser::new(name, socket, fs::QUEUES, Box::new(Arc::clone(&process)));
        let Err(error) = reached else { return reached };
        let Some(words) = process.last_words() else { return Err(error) };
        let Some(weaker) = sandbox.instead(&words) else {
            return Err(VhostError::Unreachable(format!("{error}; it said: {words}")));
        };
        tracing::warn!(
            "virtiofsd may not make its sandbox `{}` here and gets `{}` ({words})",
            sandbox.name(),
            weaker.name()
        );
        sandbox = weaker;
    }
}
